r"""From a watched pass to what every use gives: the flow through its product, or the gradients by its weight, per sample.

A backward pass of sum_mu f_c(mu) holds the gradients of all samples at once, since the rows of different samples do not
interact; where whose rows are was measured (``ownership``). The gradients by what a weight is made of follow from those by
the weight, through the few operators that make it: one backward pass, batched over samples and outputs.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from torch_dmft.uses.forms import Entrywise, Opaque, Part, Product
from torch_dmft.uses.ownership import Owners, Rows, Where, parted, split
from torch_dmft.uses.parts import parts
from torch_dmft.uses.watch import Pass, Slot, gradients_of


@dataclass(frozen=True)
class Places:
    """Where samples are in the tensors of one use."""

    owners: Owners | None
    number: int
    samples: int

    def where(self, slot: Slot | None) -> Where:
        """Of an argument, or of the output."""
        return None if self.owners is None else self.owners[self.number, slot]

    def split(self, slot: Slot | None, tensor: Tensor) -> Tensor:
        """An argument or the output, or a gradient by it, as ``(sample, ...)``."""
        return split(tensor, self.where(slot), self.samples)


@dataclass(frozen=True, eq=False)
class Flow:
    """What flows through one product.

    Attributes:
        product: the product.
        inputs: as its operator was given it, ``(sample, ...)``, or ``(1, ...)`` if all samples share it.
        outputs: what came out, likewise.
        gradients: df_c/d(output), ``(sample, output, ...)``.
    """

    product: Product
    inputs: Tensor
    outputs: Tensor
    gradients: Tensor


@dataclass(frozen=True, eq=False)
class Pull:
    """Gradients by one weight.

    Attributes:
        names: the parameters it is made of.
        weight: the weight, attached to them, or where in the graph it was made.
        gradients: ``(sample, output, *weight)``.
    """

    names: frozenset[str]
    weight: Tensor | GradientEdge
    gradients: Tensor


@dataclass(eq=False)
class Gathered:
    """Everything that one pass gives.

    Attributes:
        samples: P.
        count: number of outputs.
        flows: one for each product that meets data.
        pulls: gradients by weights that are not the matrix of a product.
        shared: products of a weight with constants; their gradients follow from the pulls.
    """

    samples: int
    count: int
    flows: list[Flow] = field(default_factory=list)
    pulls: list[Pull] = field(default_factory=list)
    shared: list[tuple[Product, Places]] = field(default_factory=list)


def gather(
    taken: Pass, owners: Owners | None, trained: Set[str], *, retain_graph: bool = True, fields: bool = True
) -> Gathered:
    """What every use of a pass gives.

    Args:
        taken: the pass.
        owners: where its samples are; None for a pass of one sample.
        trained: names of the parameters that have a share in the NTK. Gradients by those that meet constants only are taken
            in any case: G at that place follows from them.
        retain_graph: False frees what the pass has kept for its derivatives, as gradients are taken for the last time.
        fields: False frees then what came out of the uses, too; NaN is put in its place.
    """
    if not (retain_graph or fields):
        for use in taken.uses:
            if use.meets_data:  # its place in the graph is known
                use.output = use.output.detach().new_full((), torch.nan).expand(use.output.shape)
    samples, count = taken.outputs.shape
    gathered = Gathered(samples, count)
    trained = trained | {
        name for use in taken.uses if not use.meets_data for names in use.weights.values() for name in names
    }
    by_output = [
        gradients_of(taken.outputs[:, c].sum(), taken.uses, retain_graph=retain_graph or c < count - 1)
        for c in range(count)
    ]
    for number, use in enumerate(taken.uses):
        places = Places(owners, number, samples)
        if owners is not None:
            use.per_sample |= {slot for slot in use.weights if owners.get((number, slot)) is not None}
        raw = [found[number] for found in by_output]
        if not use.meets_data:
            gathered.shared += [(part, places) for part in parts(use) if isinstance(part, Product)]
            continue
        if use.edge is None:
            continue
        raw_gradients = _stacked([torch.zeros_like(use.output) if one is None else one for one in raw])
        gradients = _stacked([_widened(places.split(None, one)) for one in raw_gradients], 1)
        for part in parts(use):
            weight = use.argument(part.slot)
            if isinstance(part, Product):
                inputs, outputs = use.argument(part.data).detach(), use.output.detach()
                gathered.flows.append(
                    Flow(part, places.split(part.data, inputs), places.split(None, outputs), gradients)
                )
            elif use.is_attached(part.slot) and use.weights[part.slot] & trained:
                gathered.pulls.append(_pull(part, places, weight, gradients, raw_gradients))
    return gathered


def _stacked(tensors: list[Tensor], axis: int = 0) -> Tensor:
    """Tensors on a new axis; a single one is not copied."""
    return tensors[0].unsqueeze(axis) if len(tensors) == 1 else torch.stack(tensors, axis)


def _widened(tensor: Tensor) -> Tensor:
    """Half precision is raised to float32: Gram matrices are sums over many neurons."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _pull(part: Part, places: Places, weight: Tensor, gradients: Tensor, raw: Tensor) -> Pull:
    """Gradients by a weight that is not the matrix of a product."""
    use, where = part.use, places.where(part.slot)
    if isinstance(part, Entrywise):
        by = None
        if part.by is not None:
            by = places.split(None, part.by())
        elif part.by_slot is not None:
            by = places.split(part.by_slot, use.argument(part.by_slot).detach())
        alone = split(weight, where, places.samples).shape[1:]
        found = part.gradient(by, gradients, alone)
    else:
        assert isinstance(part, Opaque)
        found = _opaque(part, places, where, raw)
    pull = _of_repeated(use.weights[part.slot], weight, where, found, places.samples)
    return replace(pull, weight=use.origins[part.slot]) if part.slot in use.origins else pull


def _opaque(part: Opaque, places: Places, where: Where, raw: Tensor) -> Tensor:
    """Gradients by the weight of an operator, as it is for one sample alone."""
    out = places.where(None)
    if where is not None or out is None:
        pulled = part.pull_back(list(raw))
        return torch.stack([_widened(split(one, where, places.samples)) for one in pulled], 1)
    found = []
    for mu in range(places.samples):
        cotangents = []
        for one in raw:
            masked = torch.zeros_like(one, memory_format=torch.contiguous_format)
            parted(masked, out, places.samples)[mu] = parted(one, out, places.samples)[mu]
            cotangents.append(masked)
        found.append(torch.stack(part.pull_back(cotangents)))
    return _widened(torch.stack(found))


def _of_repeated(names: frozenset[str], weight: Tensor, where: Rows | None, found: Tensor, samples: int) -> Pull:
    """Of a weight with a part for every sample, the gradients by its parts."""
    if where is None:
        return Pull(names, weight, found)
    if weight.stride(where.axis) == 0:  # the same for all, merely repeated: as good as one
        return Pull(names, weight.narrow(where.axis, 0, found.shape[2 + where.axis]), found)
    whole = found.new_zeros(*found.shape[:2], *weight.shape)
    for mu in range(samples):
        for c in range(found.shape[1]):
            place = parted(whole[mu, c], where, samples)[mu]
            place.copy_(found[mu, c].reshape(place.shape))
    return Pull(names, weight, whole)


def pull_to_parameters(
    gathered: Gathered, written_out: Sequence[Flow], parameters: dict[str, Tensor]
) -> tuple[dict[str, Tensor], list[Flow]]:
    """Gradients by parameters, and the flows through products with constants.

    Args:
        gathered: what one pass gives.
        written_out: flows whose gradients by the weight are to be written out.
        parameters: of which the gradients are wanted.

    Returns:
        ``(sample, output, *parameter)`` by name, and the flows.
    """
    rows = gathered.samples, gathered.count
    pulls = list(gathered.pulls)
    pulls += [
        Pull(flow.product.names, flow.product.origin(), flow.product.gradient(flow.inputs, flow.gradients))
        for flow in written_out
        if flow.product.use.is_attached(flow.product.slot)
    ]
    found: dict[str, Tensor] = {}
    made: list[Pull] = []
    for pull in pulls:
        if isinstance(pull.weight, Tensor) and pull.weight.is_leaf:
            (name,) = pull.names
            found[name] = found[name] + pull.gradients if name in found else pull.gradients
        else:
            made.append(pull)
    shared = [(product, places) for product, places in gathered.shared if product.use.edge is not None]
    names = [name for name in parameters if any(name in pull.names for pull in made)]
    wanted: list[Tensor | GradientEdge] = [parameters[name] for name in names]
    wanted += [product.use.edge for product, _ in shared if product.use.edge is not None]
    pulled = _batched(made, wanted) if made and wanted else [None] * len(wanted)
    for name, gradient in zip(names, pulled, strict=False):
        if gradient is not None:
            gradient = gradient.unflatten(0, rows)
            found[name] = found[name] + gradient if name in found else gradient
    flows = []
    for (product, places), gradient in zip(shared, pulled[len(names) :], strict=True):
        output = product.use.output.detach()
        if gradient is None:
            gradient = output.new_zeros(rows[0] * rows[1], *output.shape)
        gradient = gradient.unflatten(0, rows)
        if places.where(None) is not None:  # constants that are there for every sample: each has its own
            own = [torch.stack([places.split(None, one)[mu] for one in gradient[mu]]) for mu in range(rows[0])]
            gradient = torch.stack(own)
        inputs = places.split(product.data, product.use.argument(product.data).detach())
        flows.append(Flow(product, inputs, places.split(None, output), gradient))
    return found, flows


def _batched(pulls: list[Pull], wanted: Any) -> list[Tensor | None]:
    weights: Any = [pull.weight for pull in pulls]
    cotangents = [pull.gradients.flatten(0, 1).to(_dtype(pull)) for pull in pulls]
    try:
        return list(
            torch.autograd.grad(
                weights, wanted, cotangents, retain_graph=True, allow_unused=True, is_grads_batched=True
            )
        )
    except RuntimeError:  # an operator that knows no batches of gradients
        rows = [
            torch.autograd.grad(weights, wanted, list(one), retain_graph=True, allow_unused=True)
            for one in zip(*cotangents, strict=True)
        ]
        return [None if one[0] is None else torch.stack(one) for one in zip(*rows, strict=True)]


def _dtype(pull: Pull) -> torch.dtype:
    return pull.weight.dtype if isinstance(pull.weight, Tensor) else pull.gradients.dtype
