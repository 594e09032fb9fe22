"""Functions that sum, average or compare along axes."""

from __future__ import annotations

import torch

from torch_dmft.architecture.axes import SAMPLE, Label
from torch_dmft.architecture.call import Call
from torch_dmft.architecture.operations.elementwise import product
from torch_dmft.architecture.operations.outcome import Dims, Followers, Outcome, follows
from torch_dmft.architecture.trace import Trace, Value

FOLLOWERS: Followers = {}


def _reduced(trace: Trace, call: Call, value: Value, position: int = 1) -> tuple[list[int], Dims]:
    """The axes a reduction runs over and the labels of its result."""
    ndim, result = len(value.dims), call.results[0]
    dim = call.argument(position, "dim", call.kwargs.get("axis"))
    if dim is None or isinstance(dim, bool):
        axes = list(range(ndim))
    else:
        axes = [axis % ndim for axis in (dim if isinstance(dim, (tuple, list, torch.Size)) else (dim,))]
    trace.mixes_rows |= SAMPLE in [value.dims[axis] for axis in axes]
    for axis in axes:
        if call.input.shape[axis] == 1:  # the reduction only drops the axis
            trace.axes.fix(value.dims[axis])
    if result.ndim == ndim:
        return axes, tuple(None if axis in axes else label for axis, label in enumerate(value.dims))
    return axes, tuple(label for axis, label in enumerate(value.dims) if axis not in axes)


@follows(FOLLOWERS, "mean nanmean var std var_mean std_mean")
def _average(trace: Trace, call: Call) -> Outcome:
    value = trace.value(call.input)
    _, dims = _reduced(trace, call, value)
    return Outcome([dims], weights=value.weights if call.name == "mean" else frozenset())


@follows(
    FOLLOWERS, "sum nansum prod amax amin max min logsumexp norm linalg_norm linalg_vector_norm argmax argmin any all"
)
def _extensive(trace: Trace, call: Call) -> Outcome | None:
    if len(trace.features(call)) > 1:
        return product(trace, call)
    value = trace.value(call.input)
    axes, dims = _reduced(trace, call, value, 2 if "norm" in call.name else 1)
    _needs_fixed(trace, call, [value.dims[axis] for axis in axes], "use a mean, which has a limit")
    return Outcome([dims], weights=value.weights if call.name == "sum" else frozenset())


@follows(FOLLOWERS, "normalize")
def _normalize(trace: Trace, call: Call) -> Outcome:
    value = trace.value(call.input)
    _needs_fixed(
        trace, call, [value.dims[call.argument(2, "dim", 1)]], "use a norm layer, which keeps entries of order 1"
    )
    return Outcome([value.dims], weights=value.weights)


@follows(FOLLOWERS, "softmax log_softmax softmin gumbel_softmax")
def _softmax(trace: Trace, call: Call) -> Outcome:
    value = trace.value(call.input)
    trace.activation(value.weights, None)
    dim = call.argument(1, "dim")
    label = value.dims[-1 if dim is None else dim]
    trace.mixes_rows |= label == SAMPLE
    _needs_fixed(trace, call, [label], "apply it to outputs or positions only")
    return Outcome([value.dims])


def _needs_fixed(trace: Trace, call: Call, labels: list[Label], remedy: str) -> None:
    place = trace.place(f"`{call.name}` over a width", remedy)
    trace.must_be_fixed.extend((label, place) for label in labels if label not in (None, SAMPLE))


@follows(
    FOLLOWERS,
    "max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices "
    "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
    "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d adaptive_max_pool1d_with_indices "
    "adaptive_max_pool2d_with_indices adaptive_max_pool3d_with_indices lp_pool1d lp_pool2d",
)
def _pool(trace: Trace, call: Call) -> Outcome:
    value = trace.value(call.input)
    positions = int(call.name[call.name.index("pool") + len("pool")])
    _needs_fixed(trace, call, list(value.dims[-positions:]), "pool over positions only")
    return Outcome([(*value.dims[:-positions], *(None,) * positions)], weights=value.weights)
