"""Which rows inside the network belong to which sample: measured by running samples apart.

A sample that the model is given apart from the others (in two copies, as operators take other ways for a batch of one) leaves
tensors of its own inside. Where these are one part of the tensors of the whole batch, cut along one axis, the place of that
part is the sample's, and a batch can be measured at once. Where they are not (experts that take the tokens routed to them,
packed rows), every sample is measured by itself, which is exact and takes longer. If the outputs themselves differ, samples
interact, and there are no kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_dmft.core.errors import Place, UnsupportedModelError
from torch_dmft.uses.forms import Entrywise, Opaque, Product
from torch_dmft.uses.parts import parts
from torch_dmft.uses.watch import Pass, Slot, Use

TOLERANCES = {torch.float64: 1e-8, torch.float32: 2e-3, torch.float16: 5e-2, torch.bfloat16: 1e-1}
"""By how much numbers of one sample may differ between batches of different size, in units of the largest."""

_APART = 8
"""Most samples that are run apart to find where samples are."""


@dataclass(frozen=True)
class Rows:
    """Where the samples of a tensor are: on ``axis``, in ``before`` blocks of one run of rows for every sample.

    Attributes:
        axis: the axis.
        before: blocks; 1 where the rows of one sample stand together, as many as a sample has rows where samples alternate.
    """

    axis: int
    before: int


Where = Rows | None
"""None for one tensor that all samples share."""

Owners = Mapping[tuple[int, Slot | None], Where]
"""Where samples are in every tensor that is needed: (number of the use, argument or None for its output)."""


def split(tensor: Tensor, where: Where, samples: int) -> Tensor:
    """``(sample, *shape of one sample alone)``; ``(1, *shape)`` if all samples share it."""
    if where is None:
        return tensor.unsqueeze(0)
    return parted(tensor, where, samples).flatten(where.axis + 1, where.axis + 2)


def parted(tensor: Tensor, where: Rows, samples: int) -> Tensor:
    """A view ``(sample, ..., before, after, ...)`` of a tensor."""
    return tensor.unflatten(where.axis, (where.before, samples, -1)).movedim(where.axis + 1, 0)


def chosen(samples: int) -> list[int]:
    """The samples that are run apart."""
    if samples <= _APART:
        return list(range(samples))
    return sorted({round(i * (samples - 1) / (_APART - 1)) for i in range(_APART)})


def copies(samples: int) -> int:
    """How many copies of one sample are run: a number that tells them from the batch."""
    return 3 if samples == 2 else 2


def find_owners(
    whole: Pass, alone: Iterable[tuple[int, Pass]], touched: Callable[[int], list[Tensor | None]]
) -> Owners | None:
    """Where the samples of every tensor are.

    Args:
        whole: all samples together.
        alone: some samples apart, in ``copies`` each, with their numbers; looked at one after the other.
        touched: for a sample, the gradients of its outputs by the outputs of all uses; asked where values do not tell.

    Returns:
        None if they are not in one place each; samples then have to be measured apart.

    Raises:
        UnsupportedModelError: if the outputs of a sample depend on the others.
    """
    samples = len(whole.outputs)
    candidates: dict[tuple[int, Slot | None], list[Where]] | None = None
    aligned = True
    for mu, one in alone:
        aligned = aligned and are_alike(whole, one)
        if not close(whole.outputs[mu].detach(), one.outputs[0].detach()):
            place = _first_mixed(whole, mu, one, aligned=aligned)
            raise UnsupportedModelError("The outputs of one sample depend on the others:", [place])
        if not aligned:
            continue
        mark_per_sample(whole, one)
        if candidates is None:
            candidates = {
                (number, slot): _candidates(_tensor(use, slot), _tensor(one.uses[number], slot), samples)
                for number, use in enumerate(whole.uses)
                for slot in _needed(use)
            }
        for (number, slot), known in candidates.items():
            tensor, other = _tensor(whole.uses[number], slot), _tensor(one.uses[number], slot)
            known[:] = [where for where in known if _fits(tensor, mu, other, samples, where)]
    if not aligned or candidates is None:
        return None
    owners: dict[tuple[int, Slot | None], Where] = {}
    gradients: list[Tensor | None] | None = None
    for (number, slot), known in candidates.items():
        use, left = whole.uses[number], known
        if slot is None and len(left) > 1 and use.edge is not None:
            gradients = touched(0) if gradients is None else gradients
            left = [where for where in left if _holds(gradients[number], where, samples)]
        if not left or (slot is None and use.meets_data and None in left):
            return None  # nowhere, or one tensor made of data, but the same for all
        owners[number, slot] = left[0]
    return owners


def mark_per_sample(whole: Pass, alone: Pass) -> None:
    """Note the weights that have a part for every sample: their shape changes with the number of samples.

    Args:
        whole: all samples together.
        alone: some other number of samples, with the same operators.
    """
    for use, other in zip(whole.uses, alone.uses, strict=True):
        for slot in use.weights:
            if use.argument(slot).shape != other.argument(slot).shape:
                use.per_sample.add(slot)
                other.per_sample.add(slot)


def are_alike(one: Pass, other: Pass) -> bool:
    """Whether two passes ran the same operators with weights."""
    return _signature(one) == _signature(other)


def _signature(one: Pass) -> list[tuple[str, str, tuple[Slot, ...]]]:
    return [(use.operator, use.path, tuple(use.weights)) for use in one.uses]


def _needed(use: Use) -> list[Slot | None]:
    """Output and arguments of which the samples must be known."""
    needed: dict[Slot | None, None] = {None: None}
    for part in parts(use):
        if isinstance(part, Product):
            needed[part.data] = None
        if isinstance(part, Entrywise) and part.by_slot is not None:
            needed[part.by_slot] = None
        if not isinstance(part, Product):
            needed[part.slot] = None
        if isinstance(part, Opaque):
            needed[part.slot] = None
    return list(needed)


def _tensor(use: Use, slot: Slot | None) -> Tensor:
    return (use.output if slot is None else use.argument(slot)).detach()


def close(joint: Tensor, alone: Tensor) -> bool:
    """Whether two tensors are the same up to rounding."""
    if joint.shape != alone.shape:
        return False
    if not joint.is_floating_point():
        return bool(torch.equal(joint, alone))
    if not joint.numel():
        return True
    scale = float(joint.abs().max())
    return float((joint - alone).abs().max()) <= TOLERANCES.get(joint.dtype, 1e-3) * scale


def _candidates(tensor: Tensor, alone: Tensor, samples: int) -> list[Where]:
    """Every place at which the samples could be, by the shape of a tensor and of that of one sample alone."""
    shape, many = alone.shape, copies(samples)
    if len(shape) != tensor.ndim:
        return []
    if shape == tensor.shape:
        return [None]
    differ = [axis for axis in range(len(shape)) if shape[axis] != tensor.shape[axis]]
    if len(differ) != 1:
        return []
    axis, rows = differ[0], shape[differ[0]] // many
    if (rows * many, rows * samples) != (shape[axis], tensor.shape[axis]):
        return []
    return [Rows(axis, before) for before in range(1, rows + 1) if rows % before == 0]


def _fits(tensor: Tensor, mu: int, alone: Tensor, samples: int, where: Where) -> bool:
    """Whether a place holds the numbers of a sample alone."""
    if where is None:
        return close(tensor, alone)
    many = copies(samples)
    expected = list(tensor.shape)
    expected[where.axis] = expected[where.axis] // samples * many
    if list(alone.shape) != expected:
        return False
    return close(split(tensor, where, samples)[mu], split(alone, where, many)[0])


def _holds(gradient: Tensor | None, where: Where, samples: int) -> bool:
    """Whether the gradient of sample 0 stays within its part."""
    if gradient is None or where is None:
        return True
    return not split(gradient, where, samples)[1:].any()


def _first_mixed(whole: Pass, mu: int, alone: Pass, *, aligned: bool) -> Place:
    """The first place at which a sample alone is another than in company."""
    samples = len(whole.outputs)
    reason = f"sample {mu} is another alone than among the {samples} samples of the probe"
    remedy = (
        "a model whose samples interact (batch statistics in eval mode, attention across the batch) has no kernels; "
        "if only outputs differ, check that the output selected has samples on its first axis"
    )
    for use, other in zip(whole.uses, alone.uses, strict=False) if aligned else ():
        tensor, apart = _tensor(use, None), _tensor(other, None)
        places = _candidates(tensor, apart, samples)
        if use.meets_data and not any(_fits(tensor, mu, apart, samples, where) for where in places):
            return Place(use.path or "(model)", reason, remedy)
    return Place("(output)", reason, remedy)
