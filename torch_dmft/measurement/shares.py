r"""What every parameter adds to the NTK, and the kernels of every product, from what the passes gave.

A parameter that is only ever the matrix of products has the share

.. math:: \sum_{ij} \partial_{W_{ij}} f_c(\mu)\, \partial_{W_{ij}} f_{c'}(\alpha)
    = \sum_{ab} (g_{\mu c a} \cdot g_{\alpha c' b})\, (x_{\mu a} \cdot x_{\alpha b}),

with the positions a of all its uses; a packed parameter is used in parts that do not overlap, and their shares add up. Any
other parameter, or one that is used in different ways (a tied decoder), has its gradients written out, those of all uses
added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_dmft.architecture import Layer
from torch_dmft.core.memory import require_memory
from torch_dmft.core.torch_private import storage_key
from torch_dmft.measurement.gather import Flow, Gathered, pull_to_parameters
from torch_dmft.measurement.normal_form import Stream
from torch_dmft.uses.products import gram, sliding_ntk, weight_ntk
from torch_dmft.uses.views import are_apart

Key = tuple[object, ...]


@dataclass(frozen=True, eq=False)
class Shares:
    """What the passes over a probe give.

    Attributes:
        ntk: share of every trained parameter by name, ``(sample, output, sample, output)``, per unit of its own rate.
        flows: for every pass (one of all samples, or one of each), its flows in order.
    """

    ntk: dict[str, Tensor]
    flows: list[list[Flow]]


def shares(passes: Sequence[Gathered], parameters: Mapping[str, Tensor], *, ntk: bool = True) -> Shares:
    """The shares of all parameters.

    Args:
        passes: one pass of all samples, or one of every sample.
        parameters: the trained parameters by name.
        ntk: whether the shares are wanted, or the flows alone.

    Raises:
        InsufficientMemoryError: if the gradients that have to be written out do not fit.
    """
    factored = _factored(passes, parameters)
    meet_constants = {name for one in passes for product, _ in one.shared for name in product.names}
    others = {
        name: value for name, value in parameters.items() if name not in factored and (ntk or name in meet_constants)
    }
    _require_memory(passes, others)
    jacobians: list[dict[str, Tensor]] = []
    flows: list[list[Flow]] = []
    for one in passes:
        written_out = [f for f in one.flows if f.product.names & (others.keys() | meet_constants)]
        found, made = pull_to_parameters(one, written_out, others)
        jacobians.append({name: value for name, value in found.items() if name in others})
        flows.append([*one.flows, *made])
    of_parameters = {}
    for name in parameters if ntk else ():
        if name in factored:
            of_parameters[name] = _products([[f for f in one.flows if f.product.names == {name}] for one in passes])
        else:
            known = next((found[name] for found in jacobians if name in found), None)
            if known is not None:
                blank = known.new_zeros(1, *known.shape[1:])
                of_parameters[name] = gram(torch.cat([found.get(name, blank) for found in jacobians]))
    return Shares(of_parameters, flows)


def _factored(passes: Sequence[Gathered], parameters: Mapping[str, Tensor]) -> set[str]:
    """The parameters that are the matrix of products alone, in parts that are the same or do not overlap."""
    otherwise = {name for one in passes for pull in one.pulls for name in pull.names}
    otherwise |= {name for one in passes for product, _ in one.shared for name in product.names}
    parts: dict[str, dict[Key, Flow]] = {}
    for one in passes:
        for flow in one.flows:
            names, weight = flow.product.names, flow.product.weight
            if not flow.product.use.is_attached(flow.product.slot):
                continue
            name = next(iter(names))
            if len(names) > 1 or name not in parameters or storage_key(weight) != storage_key(parameters[name]):
                otherwise |= names
            else:
                parts.setdefault(name, {})[flow.product.geometry()] = flow
    return {
        name
        for name, used in parts.items()
        if name not in otherwise and (len(used) == 1 or are_apart([flow.product.matrix() for flow in used.values()]))
    }


def _products(passes: list[list[Flow]]) -> Tensor:
    """The share of a parameter that is the matrix of products alone."""
    keys = dict.fromkeys(flow.product.geometry() for flows in passes for flow in flows)
    totals = []
    for key in keys:
        here = [[flow for flow in flows if flow.product.geometry() == key] for flows in passes]
        if len(here) == 1 and all(flow.product.slides(flow.inputs, flow.gradients) for flow in here[0]):
            slides = [flow.product.slide(flow.inputs, flow.gradients) for flow in here[0]]
            totals.append(sliding_ntk(slides, **here[0][0].product.kernel))
            continue
        pairs = [[flow.product.factors(flow.inputs, flow.gradients) for flow in flows] for flows in here]
        product = next(flow.product for flows in here for flow in flows)
        like = next(pair for pair in pairs if pair)
        samples = [max((len(g) for _, g in pair), default=1) for pair in pairs]
        x = stacked(
            [[part.expand(n, *part.shape[1:]) for part, _ in pair] for pair, n in zip(pairs, samples, strict=True)],
            1,
            like[0][0],
            fill=-1,
        )
        g = stacked([[part for _, part in pair] for pair in pairs], 2, like[0][1])
        if product.kind == "embedding":
            tokens = torch.unique(x[x != product.padding])
            x = x == tokens[tokens >= 0]
        totals.append(weight_ntk(x.to(g.dtype), g))
    return totals[0] if len(totals) == 1 else torch.stack(totals).sum(0)


def stacked(passes: list[list[Tensor]], axis: int, like: Tensor, *, fill: int = 0) -> Tensor:
    """Tensors of several uses side by side along their positions, samples below each other.

    Args:
        passes: for every pass the tensors of its uses, samples first.
        axis: of the positions; a pass with fewer of them is filled up.
        like: any tensor of the right shape apart from samples and positions.
        fill: what with, if the tensors are tokens; else with zeros.
    """
    rows = [_side_by_side(parts, axis) if parts else like[:1].narrow(axis, 0, 0) for parts in passes]
    longest = max(row.shape[axis] for row in rows)
    value = fill if not like.is_floating_point() else 0

    def filled(row: Tensor) -> Tensor:
        missing = longest - row.shape[axis]
        if not missing:
            return row
        shape = [*row.shape]
        shape[axis] = missing
        return torch.cat([row, row.new_full(shape, value)], axis)

    return torch.cat([filled(row) for row in rows]) if len(rows) > 1 else rows[0]


def _side_by_side(parts: list[Tensor], axis: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)


def _require_memory(passes: Sequence[Gathered], others: Mapping[str, Tensor]) -> None:
    rows = sum(one.samples for one in passes) * passes[0].count
    used = {name for one in passes for names in _names(one) for name in names}
    entries = sum(value.numel() for name, value in others.items() if name in used)
    device = next(iter(others.values())).device if others else torch.device("cpu")
    require_memory(
        2 * rows * entries * 4 if others else 0,
        device,
        what=f"Writing out gradients of {entries} parameters for {rows} outputs",
        remedy="a probe with fewer samples, or outputs= with fewer numbers",
    )


def _names(one: Gathered) -> list[frozenset[str]]:
    return [*(pull.names for pull in one.pulls), *(flow.product.names for flow in one.flows)]


def stream(
    layer: Layer, gamma0: float, passes: list[list[Flow]], samples: int, count: int, border: Sequence[int] = ()
) -> Stream:
    """The flow through one layer in normal form.

    Args:
        layer: the layer.
        gamma0: effective richness.
        passes: for every pass the flows through the layer.
        samples: P.
        count: number of outputs.
        border: of the inputs of a convolution, what is a mere copy of the inside.
    """
    like = next((flow for flows in passes for flow in flows), None)
    if like is None:
        return _unused(layer, gamma0, samples, count, torch.zeros((), device="cpu"))

    def x_form(flow: Flow) -> Tensor:
        return flow.product.input_vectors(flow.inputs, border)

    def h_form(flow: Flow) -> Tensor:
        return flow.product.output_vectors(flow.outputs)

    def g_form(flow: Flow) -> Tensor:
        g = flow.gradients
        return flow.product.output_vectors(g.flatten(0, 1)).unflatten(0, g.shape[:2])

    inputs, outputs, gradients = [], [], []
    for use in range(max(len(one) for one in passes)):
        here = [one[use : use + 1] for one in passes]
        x, h = (
            stacked([[form(flow) for flow in one] for one in here], 1, form(like), fill=-1) for form in (x_form, h_form)
        )
        if x.shape[1]:  # an expert that no token came to has no rows
            inputs.append(x)
            outputs.append(h)
            gradients.append(stacked([[g_form(flow) for flow in one] for one in here], 2, g_form(like)))
    if not inputs:
        return _unused(layer, gamma0, samples, count, like.gradients)
    dtype = gradients[0].dtype
    if layer.kind == "embedding":
        tokens = torch.unique(torch.cat([x.flatten() for x in inputs]))
        tokens = tokens[tokens >= 0]
        inputs = [x.unsqueeze(-1) == tokens for x in inputs]
    return Stream(
        layer, gamma0, tuple(x.to(dtype) for x in inputs), tuple(h.to(dtype) for h in outputs), tuple(gradients)
    )


def _unused(layer: Layer, gamma0: float, samples: int, count: int, like: Tensor) -> Stream:
    """The flow through a layer that meets no sample."""
    blank = like.new_zeros(())
    x, h, g = blank.expand(1, 1, 1), blank.expand(samples, 1, 1), blank.expand(samples, count, 1, 1)
    return Stream(layer, gamma0, (x,), (h,), (g,))
