"""Carry what is known of a call's arguments over to its results."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from torch_dmft.architecture.axes import SAMPLE
from torch_dmft.architecture.call import Call
from torch_dmft.architecture.operations import bare, elementwise, layers, products, rearranging, reducing, scalars
from torch_dmft.architecture.operations.gradients import cut, is_cut, refuse_out_of_sight, refuse_unseen_writing
from torch_dmft.architecture.operations.outcome import Dims, Followers, Outcome
from torch_dmft.architecture.trace import CONSTANT, Sum, Trace, Value

_FOLLOWERS: Followers = (
    elementwise.FOLLOWERS | rearranging.FOLLOWERS | reducing.FOLLOWERS | products.FOLLOWERS | layers.FOLLOWERS
)

_OTHER_PRODUCTS = {"mv", "dot", "inner", "outer", "kron", "tensordot", "addmm", "addbmm", "baddbmm", "chain_matmul"}


def follow(trace: Trace, call: Call) -> None:
    """Give the results of a call their values, and complain of functions that cannot be followed."""
    parameters = trace.parameters(call)
    if parameters:
        scalars.adopt(trace, call)
        bare.adopt(trace, call)
    features = trace.features(call)
    lost = call.attached and any(map(trace.is_lost, call.tensors))
    if not (features or parameters or lost):
        return
    values = tuple([value for _, value in features])
    past_weights = True in [value.past_weights for value in values]
    if past_weights:
        refuse_out_of_sight(trace, call)
    refuse_unseen_writing(trace, call)
    if call.name == "setitem":
        _set(trace, call, features)
    known = _FOLLOWERS.get(call.name)
    if not call.results:
        return
    if known is None and _is_comparison(trace, call):
        trace.note_numbers(call)
        return
    if lost:
        trace.complain(trace.place(f"`{call.name}` meets a tensor of unseen origin", "write it with torch functions"))
    outcome = known(trace, call) if known else None
    if outcome is None:
        _complain(trace, call)
        outcome = Outcome([_of_data(trace, call, result) for result in call.results])
    if past_weights and not outcome.constant and outcome.factor is None and call.name not in _NOTED:
        trace.note_numbers(call, _acting(call, outcome))
    trace.used.update(map(id, parameters))
    for parameter in parameters:
        is_claimed = any(parameter is claimed for claimed in outcome.claimed)
        is_claimed |= bare.is_taken(trace, call, parameter) or scalars.is_taken(trace, call, parameter)
        if not outcome.constant and not is_claimed:
            trace.misused(call, parameter)

    cuts = not outcome.constant and is_cut(call)
    if outcome.constant:
        serial = CONSTANT
    elif outcome.letter or cuts or not features:
        serial = trace.number("x" if cuts else outcome.letter, features)
    else:
        serial = features[0][1].serial
    is_scalar = bool(values) and all(value.is_scalar for value in values)
    trained = True in [value.trained for value in values] or not trace.trained.isdisjoint(map(id, parameters))
    about = (
        outcome.weights,
        serial,
        *_scale(trace, call, outcome, features),
        outcome.source,
        values,
        past_weights or outcome.source is not None,
        trained,
        cut(trace, call) if cuts and trained else None,
        is_scalar,
    )
    dims = outcome.dims if len(outcome.dims) == len(call.results) else outcome.dims * len(call.results)
    for result, labels in zip(call.results, dims, strict=True):
        trace.assign(result, Value(labels, *about))


_NOTED = {*elementwise.FOLLOWERS, "batch_norm", "instance_norm", "layer_norm", "group_norm", "rms_norm"}
"""Functions whose followers note the numbers that act."""

_INTEGERS = {
    **dict.fromkeys(("norm", "linalg_norm", "linalg_vector_norm", "normalize"), (1, "p", "ord")),
    **dict.fromkeys(("lp_pool1d", "lp_pool2d"), (1, "norm_type")),
    **dict.fromkeys(("avg_pool2d", "avg_pool3d"), (6, "divisor_override")),
    **dict.fromkeys(("var", "std", "var_mean", "std_mean"), ("correction",)),
}
"""Positions and names of arguments that act even if they are integers; other integers are axes and sizes."""


def _acting(call: Call, outcome: Outcome) -> list[Any]:
    """The arguments that act on features as numbers: tensors, and numbers other than axes and sizes."""
    integers = _INTEGERS.get(call.name, ())
    named = [*enumerate(call.args), *call.kwargs.items()]
    if outcome.absorbed:  # it belongs to the sum of products
        named = [(name, one) for name, one in named if name != "scale"]
    return [*call.tensors, *(one for name, one in named if isinstance(one, float) or name in integers)]


def _set(trace: Trace, call: Call, features: list[tuple[Tensor, Value]]) -> None:
    """Follow ``tensor[index] = ...``, which is allowed for preparing the data only."""
    _complain(trace, call)
    tensor = call.input
    made_from = tuple(value for _, value in features)
    serial = trace.number("x", features)
    trace.assign(tensor, Value(_of_data(trace, call, tensor), serial=serial, made_from=made_from))


def _scale(
    trace: Trace, call: Call, outcome: Outcome, features: list[tuple[Tensor, Value]]
) -> tuple[float, tuple[str, str, int] | None, Sum | None]:
    """Factor, last multiplication and sum of a result; features that enter any other operation have their final factor."""
    mixed = [(tensor, value) for tensor, value in features if not value.is_scalar] or features
    for _, value in features:
        if value.is_scalar and len(features) > 1:
            trace.settle(value)
    features, values = mixed, [value for _, value in mixed]
    if outcome.factor is not None and len(values) == 1:
        (value,) = values
        scaled = value.scaled if outcome.factor == 1.0 else (trace.path, call.name, trace.serial)
        return value.factor * outcome.factor, scaled, value.sum
    is_added = call.name in ("add", "sub", "subtract", "rsub") and len(features) > 1
    for tensor, value in features:
        if value.sum is not None or (outcome.sum is None and not any(tensor is one for one in outcome.absorbed)):
            trace.settle(value, is_added=is_added)
    return (math.prod(value.factor for value in values) if outcome.sum else 1.0), None, outcome.sum


def _is_comparison(trace: Trace, call: Call) -> bool:
    """Whether the result is a mask or an index made of features, which acts like a constant."""
    exact = not any(result.is_floating_point() for result in call.results)
    return exact and any(value.past_weights for _, value in trace.features(call))


def _complain(trace: Trace, call: Call) -> None:
    """Complain of a function that cannot be followed if it acts past a weight; the data may be prepared in any way."""
    if not any(value.past_weights for _, value in trace.features(call)):
        return
    if call.name in _OTHER_PRODUCTS:
        remedy = "write it with `@`, einsum or scaled_dot_product_attention"
    elif call.name in products.FOLLOWERS:
        remedy = "not yet; products are taken within a sample, over tokens or over one width that both arguments share"
    else:
        remedy = "not yet; write it with elementwise functions, reshapes, sums, pooling, norms and layers"
    trace.complain(trace.place(f"`{call.name}` on features cannot be followed", remedy))


def _of_data(trace: Trace, call: Call, result: Tensor) -> Dims:
    """Labels of something computed from the data: no widths; the samples stay first if their number is the same."""
    for tensor, value in trace.features(call):
        if value.dims and result.ndim and value.dims[0] == SAMPLE and result.shape[0] == tensor.shape[0]:
            return (SAMPLE, *(None,) * (result.ndim - 1))
    return (None,) * result.ndim
