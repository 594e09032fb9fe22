"""Carry what is known of a call's arguments over to its results."""

from __future__ import annotations

import math

from torch import Tensor

from torch_dmft.architecture.axes import SAMPLE
from torch_dmft.architecture.operations import elementwise, layers, products, rearranging, reducing
from torch_dmft.architecture.operations.outcome import Dims, Outcome, Rules
from torch_dmft.architecture.trace import CONSTANT, Call, Sum, Trace, Value

_RULES: Rules = elementwise.RULES | rearranging.RULES | reducing.RULES | products.RULES | layers.RULES

_OTHER_PRODUCTS = {"mv", "dot", "inner", "outer", "kron", "tensordot", "addmm", "addbmm", "baddbmm", "chain_matmul"}


def follow(trace: Trace, call: Call) -> None:
    """Give the results of a call their values, and complain of what has no rule."""
    if call.name == "setitem":
        _complain(trace, call)
    features, parameters = trace.features(call), trace.parameters(call)
    lost = any(map(trace.is_lost, call.tensors))
    if not call.results or not (features or parameters or lost):
        return
    known = _RULES.get(call.name)
    if known is None and _is_comparison(trace, call):
        return
    if lost:
        trace.complain(trace.place(f"`{call.name}` meets a tensor of unseen origin", "write it with torch functions"))
    outcome = known(trace, call) if known else None
    if outcome is None:
        _complain(trace, call)
        outcome = Outcome([_of_data(trace, call, result) for result in call.results])
    trace.used.update(map(id, parameters))
    for parameter in parameters:
        if not outcome.constant and not any(parameter is claimed for claimed in outcome.claimed):
            trace.misused(call, parameter)

    if outcome.constant:
        serial = CONSTANT
    elif outcome.letter or not features:
        serial = trace.number(outcome.letter, features)
    else:
        serial = features[0][1].serial
    before = [value.sources for _, value in features]
    sources = frozenset((outcome.source,)) if outcome.source is not None else frozenset().union(*before)
    factor, total = _scale(trace, outcome, [value for _, value in features])
    dims = outcome.dims if len(outcome.dims) == len(call.results) else outcome.dims * len(call.results)
    for result, labels in zip(call.results, dims, strict=True):
        trace.assign(result, Value(labels, outcome.weights, sources, serial, factor, total))


def _scale(trace: Trace, outcome: Outcome, features: list[Value]) -> tuple[float, Sum | None]:
    """What a result was multiplied by, and the sum it is; a sum that anything else happens to has its final factor."""
    if outcome.factor is not None and len(features) == 1:
        return features[0].factor * outcome.factor, features[0].sum
    for value in features:
        trace.settle_sum(value)
    return (math.prod(value.factor for value in features) if outcome.sum else 1.0), outcome.sum


def _is_comparison(trace: Trace, call: Call) -> bool:
    """Whether the result is a mask or an index made of features, which acts like a constant."""
    exact = not any(result.is_floating_point() for result in call.results)
    return exact and any(value.past_weights for _, value in trace.features(call))


def _complain(trace: Trace, call: Call) -> None:
    """Complain of a function without a rule if it acts past a weight; the data may be prepared in any way."""
    if not any(value.past_weights for _, value in trace.features(call)):
        return
    if call.name in _OTHER_PRODUCTS:
        remedy = "write it with `@`, einsum or scaled_dot_product_attention"
    elif call.name in products.RULES:
        remedy = "not yet; products are taken within a sample, over tokens or over one width that both arguments share"
    else:
        remedy = "not yet; write it with elementwise functions, reshapes, sums, pooling, norms and layers"
    trace.complain(trace.place(f"`{call.name}` on features has no rule", remedy))


def _of_data(trace: Trace, call: Call, result: Tensor) -> Dims:
    """Labels of something computed from the data: no widths; the samples stay first if their number is the same."""
    for tensor, value in trace.features(call):
        if value.dims and result.ndim and value.dims[0] == SAMPLE and result.shape[0] == tensor.shape[0]:
            return (SAMPLE, *(None,) * (result.ndim - 1))
    return (None,) * result.ndim
