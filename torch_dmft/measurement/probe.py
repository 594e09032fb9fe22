"""Probe: the fixed data on which a network is looked at while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from torch_dmft.core.arguments import checked
from torch_dmft.core.classes import is_column, one_hot_rows
from torch_dmft.core.devices import usable
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.numbers import require_whole
from torch_dmft.core.prints import Print, data_print, printed_rows
from torch_dmft.uses.outputs import Example, copied, count, moved, named_tensors, rows, tensors


@checked
@dataclass(frozen=True, eq=False)
class Probe:
    """The data points mu = 1..P at which outputs and kernels are recorded, training and test points together.

    Everything is copied: data that change later do not change the probe.

    Attributes:
        inputs: whatever ``forward`` takes, samples first. A tensor ``(sample, ...)`` is its one argument (vectors, images,
            token ids), a tuple holds its arguments by position, a mapping (a tokenizer's ``BatchEncoding`` too) by name. The
            first tensor has one row per sample; others with as many rows are cut with it, all else is the same for all.
        targets: ``(sample, output)`` or ``(sample,)`` floats, ``(sample,)`` integer classes, ``(sample, place)`` of them (next
            tokens, of outputs ``(sample, place * class)``), or None. Floats are kept in their shape, classes as int64;
            ``target_values`` has all as floats ``(sample, output)``.
        train: ``(sample,)`` bool, the rows that the model is trained on; the loss is recorded on these. Default: all.

    Raises:
        InvalidInputError: for fewer than two samples, NaN or infinity, or lengths that do not fit.

    Example:
        >>> Probe(images, labels)  # doctest: +SKIP
        >>> Probe({"input_ids": ids, "attention_mask": mask})  # doctest: +SKIP
    """

    inputs: Example
    targets: Tensor | None = None
    train: Tensor | None = None

    def __repr__(self) -> str:
        """One line."""
        shapes = ", ".join(f"{name} {tuple(leaf.shape)}" for name, leaf in named_tensors(self.inputs))
        targets = "no targets" if self.targets is None else f"targets {tuple(self.targets.shape)}"
        return f"Probe({shapes}, {targets}, {int(self.train_rows.sum())} rows trained on)"

    def __post_init__(self) -> None:
        """Refuse data that would give undefined kernels, copy it, and bring targets and train into one form."""
        for name in ("targets", "train"):
            value = getattr(self, name)
            if not isinstance(value, Tensor | None):
                raise InvalidInputError(
                    f"The {name} of a probe are a tensor.", got=type(value).__name__, remedy="torch.as_tensor(...)"
                )
        object.__setattr__(self, "inputs", copied(self.inputs))
        samples = _samples(self.inputs)
        if self.targets is not None:
            _check_targets(self.targets, samples, len(named_tensors(self.inputs)))
            targets = copied(self.targets)
            object.__setattr__(self, "targets", targets if targets.is_floating_point() else targets.long())
        train = torch.ones(samples, dtype=torch.bool, device="cpu") if self.train is None else self.train
        if train.dtype != torch.bool or train.shape != (samples,) or not bool(train.any()):
            raise InvalidInputError(
                "train is a bool mask with one entry per sample, at least one of them True.",
                got=f"shape {tuple(train.shape)}, {train.dtype}, {samples} samples",
                remedy="train=torch.arange(number_of_samples) < number_of_training_rows",
            )
        object.__setattr__(self, "train", copied(train).cpu())

    def __len__(self) -> int:
        """P, the number of samples."""
        return count(self.inputs)

    def to(self, device: torch.device | str) -> Probe:
        """The same probe on another device; ``train`` stays on the CPU."""
        where = usable(device)
        targets = None if self.targets is None else self.targets.to(where)
        return replace(self, inputs=moved(self.inputs, where), targets=targets)

    def at_rows(self, chosen: Tensor | Sequence[int]) -> Probe:
        """Some of the samples, as a probe of its own.

        Args:
            chosen: ``(kept,)`` their positions, or ``(sample,)`` bool.

        Raises:
            InvalidInputError: for positions that there are not or that come twice, fewer than two, or none that is trained on.
        """
        places = self.places(chosen)
        targets = None if self.targets is None else self.targets[places.to(self.targets.device)]
        return replace(self, inputs=rows(self.inputs, places), targets=targets, train=self.train_rows[places])

    def places(self, chosen: Tensor | Sequence[int]) -> Tensor:
        """Positions of some samples, ``(kept,)`` on the CPU, which may be given as a mask."""
        given = torch.as_tensor(chosen, device="cpu").flatten()
        is_mask = given.dtype == torch.bool and len(given) == len(self)
        places = given.nonzero().flatten() if is_mask else given
        whole = not (places.is_floating_point() or places.is_complex() or places.dtype == torch.bool)
        if (
            not whole
            or len(places) < 2
            or len(places.unique()) < len(places)
            or not 0 <= places.min() <= places.max() < len(self)
        ):
            raise InvalidInputError(
                "Some rows of a probe are told by their positions, at least two, each once.",
                got=f"{given.tolist()[:8]} of {len(self)} samples",
                remedy="rows=range(100), or a bool mask with one entry per sample",
            )
        if not bool(self.train_rows[places].any()):
            raise InvalidInputError(
                "At least one of the rows must be trained on: the loss is of these.",
                got=f"{len(places)} rows, none of them trained on",
                remedy="rows with some of probe.train_rows.nonzero() among them",
            )
        return places

    @property
    def tensor(self) -> Tensor:
        """The inputs, where they are one tensor.

        Raises:
            InvalidInputError: if they are not.
        """
        if not isinstance(self.inputs, Tensor):
            raise InvalidInputError(
                "The inputs must be one tensor here.", got=type(self.inputs).__name__, remedy="Probe(tensor, targets)"
            )
        return self.inputs

    @property
    def train_rows(self) -> Tensor:
        """``(sample,)`` bool on the CPU; never None, unlike the argument ``train``."""
        assert self.train is not None  # set in __post_init__
        return self.train

    @property
    def batch_rows(self) -> tuple[int, ...] | None:
        """Numbers of the training rows, as a batch of train mode; None if that is all rows, or too few for statistics."""
        numbers = self.train_rows.nonzero().flatten().tolist()
        return tuple(numbers) if 1 < len(numbers) < len(self) else None

    @cached_property
    def print(self) -> Print:
        """What tells these inputs from others: of every tensor, and nothing of numbers and words beside them."""
        return data_print(len(self), *tensors(rows(self.inputs, printed_rows(len(self)))))

    def target_values(self, outputs: int | None = None) -> Tensor | None:
        """The targets as floats: ``(sample, output)``, one-hot for integer classes, or None without targets.

        Args:
            outputs: number of classes; default the largest class + 1.

        Raises:
            InvalidInputError: if a class is larger than that.
        """
        if outputs is not None:
            require_whole("outputs", outputs, at_least=1)
        if self.targets is None or self.targets.is_floating_point():
            return None if self.targets is None else self.targets.reshape(len(self), -1)
        dtype = next((x.dtype for x in tensors(self.inputs) if x.is_floating_point()), torch.get_default_dtype())
        return one_hot_rows(self.targets, outputs).to(dtype)


def _samples(inputs: Example) -> int:
    """P, of inputs that kernels can be measured on."""
    named = [(name, leaf) for name, leaf in named_tensors(inputs) if leaf.ndim]
    if not named or len(named[0][1]) < 2:
        shown = [f"{name} of shape {tuple(leaf.shape)}" for name, leaf in named_tensors(inputs)]
        raise InvalidInputError(
            "A probe needs at least two samples: centered kernels and alignments are undefined for fewer.",
            got=", ".join(shown) or f"{type(inputs).__name__} without a tensor",
            remedy="a tensor (sample, ...) with two samples or more, a tuple of the arguments of forward, or a dictionary of "
            "them; the first tensor has one row per sample",
        )
    for name, leaf in named:
        if len(leaf) == len(named[0][1]) and leaf[0].numel() == 0:
            raise InvalidInputError(
                "The samples of a probe are empty.",
                got=f"{name} of shape {tuple(leaf.shape)}",
                remedy="samples with at least one number",
            )
        masks = leaf is not named[0][1]  # those that are added to scores hold -inf
        _require_finite(name, torch.nan_to_num(leaf, nan=torch.nan) if masks and leaf.is_floating_point() else leaf)
    return len(named[0][1])


def _check_targets(targets: Tensor, samples: int, leaves: int) -> None:
    if targets.ndim == 0 or len(targets) != samples:
        raise InvalidInputError(
            "A probe needs one target per sample.",
            got=f"targets {tuple(targets.shape)} for {samples} samples",
            remedy="the first tensor of the inputs is the one with a row for every sample"
            if leaves > 1
            else "targets (sample, ...), as many as inputs",
        )
    if targets.is_floating_point():
        if targets.ndim > 2:
            raise InvalidInputError(
                "Float targets have the shape (sample, output) or (sample,).",
                got=f"shape {tuple(targets.shape)}",
                remedy="targets.flatten(1)",
            )
        _require_finite("targets", targets)
    elif (
        targets.ndim > 2
        or is_column(targets)
        or targets.dtype == torch.bool
        or targets.is_complex()
        or int(targets.min()) < 0
    ):
        raise InvalidInputError(
            "Targets that are not floats are classes: integers >= 0 of shape (sample,), or (sample, place).",
            got=f"shape {tuple(targets.shape)}, {targets.dtype}",
            remedy="class numbers of these shapes (targets.flatten(), targets.flatten(1)), or floats of shape (sample, output)",
        )


def _require_finite(name: str, values: Tensor) -> None:
    if not (values.is_floating_point() or values.is_complex()):
        return
    bad = (~torch.isfinite(values)).reshape(len(values), -1).any(1).nonzero()
    if len(bad):
        raise InvalidInputError(
            f"The probe's {name} hold NaN or infinity.",
            got=f"sample {int(bad[0])} (and {len(bad) - 1} more)",
            remedy="clean the data first",
        )
