"""Functions that move, join or select entries."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from torch_dmft.architecture.axes import SAMPLE, Label
from torch_dmft.architecture.call import Call, tensors_in
from torch_dmft.architecture.operations.bare import beside_positions
from torch_dmft.architecture.operations.outcome import Dims, Followers, Outcome, follows
from torch_dmft.architecture.operations.regroup import regroup
from torch_dmft.architecture.trace import CONSTANT, Trace, Value

FOLLOWERS: Followers = {}


@follows(FOLLOWERS, "view reshape flatten unflatten ravel view_as reshape_as")
def _reshape(trace: Trace, call: Call) -> Outcome | None:
    tensor = call.input
    value = trace.value(tensor)
    groups = regroup(tuple(tensor.shape), tuple(call.results[0].shape))
    labels: list[Label] = [None] * call.results[0].ndim
    for old, new in groups:
        before = [value.dims[axis] for axis in old]
        widths = [label for label in before if label not in (None, SAMPLE) and not trace.axes.is_fixed(label)]
        if SAMPLE in before and widths:
            return None
        if not widths:
            labels[new[0]] = SAMPLE if SAMPLE in before else None
        elif len(old) == len(new) == 1:
            labels[new[0]] = before[0]
        elif len(new) == 1:
            labels[new[0]] = trace.axes.joined(tuple(before))
        elif len(old) == 1 and (grown := _grown(trace, call, new)) is not None:
            sizes = tuple(None if axis == grown else call.results[0].shape[axis] for axis in new)
            for axis, label in zip(new, trace.axes.split(widths[0], sizes), strict=True):
                labels[axis] = label
                if axis == grown:
                    trace.parts[label] = call.results[0].shape[axis]
        else:
            whole = trace.axes.derived(before)
            for axis in new:
                labels[axis] = whole
            reason = f"`{call.name}` splits a width into several axes, and nothing says which of them grow with it"
            trace.must_be_fixed.append((whole, trace.place(reason, _SPLIT)))
    _pick(trace, value, tuple(axis for axis, size in enumerate(tensor.shape) if size == 1))
    if call.results[0].dtype != tensor.dtype:  # a view of the same bits as other numbers
        return None
    return Outcome([tuple(labels)], "r", value.weights, factor=1.0)


def _grown(trace: Trace, call: Call, new: tuple[int, ...]) -> int | None:
    """Which of a width's new axes grows with it: the one left to torch, else the one that does in a wider copy."""
    inferred = _inferred(call)
    if inferred in new:
        return inferred
    place = trace.grows(tuple(call.results[0].shape[axis] for axis in new))
    return None if place is None else new[place]


def _inferred(call: Call) -> int | None:
    """The axis of a reshape's result whose size was given as -1, so that it is what grows with a width."""
    first = 2 if call.name == "unflatten" else 1
    given = [*call.args[first:], *(call.kwargs.get(name) for name in ("size", "shape", "sizes"))]
    sizes = [size for one in given if one is not None for size in ((one,) if isinstance(one, int) else one)]
    ahead = call.argument(1, "dim") % call.input.ndim if call.name == "unflatten" else 0
    return ahead + sizes.index(-1) if -1 in sizes else None


_SPLIT = (
    "fix the number of parts (heads) and leave their size to torch: unflatten(-1, (heads, -1)) or "
    "view(batch, tokens, heads, -1); or fix their size: unflatten(-1, (-1, size)); or compute one of the two from the other "
    "and the size of the tensor, in forward"
)


def _pick(trace: Trace, value: Value, axes: tuple[int, ...]) -> None:
    """Note that these axes are dropped: what remains are single entries of them."""
    for axis in axes:
        trace.axes.fix(value.dims[axis])


@follows(
    FOLLOWERS,
    "permute transpose swapaxes swapdims movedim moveaxis T mT t squeeze unsqueeze select narrow getitem "
    "expand expand_as broadcast_to chunk split split_with_sizes unbind tensor_split",
)
def _rearrange(trace: Trace, call: Call) -> Outcome | None:
    tensor = call.input
    value = trace.value(tensor)
    # The strides of a contiguous stand-in tell where each axis went, whatever the function and its arguments.
    if any(leaf is not tensor for leaf in call.tensors):
        return _gathered(trace, call, value)
    stand_in = torch.empty(tensor.shape, device="meta")
    args = [stand_in if leaf is tensor else leaf for leaf in call.args]
    kwargs = {name: stand_in if leaf is tensor else leaf for name, leaf in call.kwargs.items()}
    moved = tensors_in(call.function(*args, **kwargs))
    strides = [(stride, axis) for axis, stride in enumerate(stand_in.stride()) if tensor.shape[axis] > 1]
    origins = [[_origin(strides, *axis) for axis in zip(view.shape, view.stride(), strict=True)] for view in moved]
    dropped = set(range(tensor.ndim)).difference(*origins)
    _pick(trace, value, tuple(dropped))
    dims = [
        tuple(_kept(trace, tensor, value, *axis) for axis in zip(view.shape, axes, strict=True))
        for view, axes in zip(moved, origins, strict=True)
    ]
    return Outcome(dims, "r" if _is_whole(tensor, moved, origins) else "x", value.weights, factor=1.0)


def _is_whole(tensor: Tensor, views: list[Tensor], origins: list[list[int | None]]) -> bool:
    """Whether there is one view, which has every entry of a tensor once, in order."""
    if len(views) != 1 or views[0].numel() != tensor.numel():
        return False
    axes = [axis for axis in origins[0] if axis is not None]
    return axes == sorted(axes)


def _origin(strides: list[tuple[int, int]], size: int, stride: int) -> int | None:
    """The axis that an axis of a view with this size and stride runs along, by the strides of a contiguous tensor's axes."""
    below = [one for one in strides if one[0] <= stride]
    return max(below)[1] if size > 1 and below else None


def _kept(trace: Trace, tensor: Tensor, value: Value, size: int, axis: int | None) -> Label:
    """The label of an axis that runs along ``axis``, or along a part of it."""
    label = None if axis is None else value.dims[axis]
    whole = axis is not None and size == tensor.shape[axis]
    return label if whole or label in (None, SAMPLE) else trace.axes.derived([label])


def _gathered(trace: Trace, call: Call, value: Value) -> Outcome | None:
    """Indexing with tensors: allowed on axes before the widths, such as picking one token of each sample."""
    index = call.argument(1, "index")
    leading = len(index) if isinstance(index, tuple) else 1
    if call.name != "getitem" or any(part is None or part is Ellipsis for part in tree_leaves(index)):
        return None
    kept = value.dims[leading:]
    new = call.results[0].ndim - len(kept)
    if any(label not in (None, SAMPLE) for label in value.dims[:leading]) or new < 0:
        return None
    first: Dims = (SAMPLE, *(None,) * (new - 1)) if new and SAMPLE in value.dims[:leading] else (None,) * new
    return Outcome([(*first, *kept)], weights=value.weights)


@follows(FOLLOWERS, "cat concat concatenate")
def _cat(trace: Trace, call: Call) -> Outcome:
    tensors = call.argument(0, "tensors")
    dim = call.argument(1, "dim", 0) % call.results[0].ndim
    values = [trace.value(tensor) for tensor in tensors]
    followed = [value for value in values if value.serial != CONSTANT]
    met = list(zip(*(value.dims for value in followed), strict=True))
    labels = [_joined(trace, one) if axis == dim else trace.axes.unified(one) for axis, one in enumerate(met)]
    return Outcome([tuple(labels)], weights=frozenset().union(*(value.weights for value in followed)))


def _joined(trace: Trace, labels: tuple[Label, ...]) -> Label:
    """The axis made of these, one behind the other."""
    return None if beside_positions(trace, labels) else trace.axes.derived(labels)


@follows(FOLLOWERS, "stack")
def _stack(trace: Trace, call: Call) -> Outcome:
    dim = call.argument(1, "dim", 0) % call.results[0].ndim
    met = zip(*(value.dims for _, value in trace.features(call)), strict=True)
    labels = [trace.axes.unified(one) for one in met]
    return Outcome([(*labels[:dim], None, *labels[dim:])])


@follows(FOLLOWERS, "flip roll")
def _reorder(trace: Trace, call: Call) -> Outcome:
    value = trace.value(call.input)
    return Outcome([value.dims], weights=value.weights)


@follows(FOLLOWERS, "pad constant_pad_nd repeat_interleave repeat tile interpolate upsample")
def _enlarge(trace: Trace, call: Call) -> Outcome | None:
    tensor, result = call.input, call.results[0]
    value = trace.value(tensor)
    if result.ndim != tensor.ndim:
        return None
    pairs = zip(value.dims, tensor.shape, result.shape, strict=True)
    dims = tuple(label if old == new else trace.axes.derived([label]) for label, old, new in pairs)
    return Outcome([dims], weights=value.weights)
