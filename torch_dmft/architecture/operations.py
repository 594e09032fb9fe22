"""What torch functions do to the axes of tensors: one rule per family of functions, found by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from torch_dmft.architecture.axes import SAMPLE, Label
from torch_dmft.architecture.regroup import regroup
from torch_dmft.architecture.rules import Norm, Weight
from torch_dmft.architecture.trace import CONSTANT, Call, Trace, Use, Value

Dims = tuple[Label, ...]


@dataclass(frozen=True)
class Outcome:
    """What a function makes of its arguments.

    Attributes:
        dims: labels of each result, in order.
        letter: see ``Trace.letters``; empty for functions that change nothing.
        weights: see ``Value.weights``.
        claimed: the parameters used as their layer's rule says.
        source: path of the weight that was applied, if one was.
    """

    dims: list[Dims]
    letter: Literal["", "L", "a", "r", "x"] = "x"
    weights: frozenset[str] = frozenset()
    claimed: tuple[Tensor, ...] = ()
    source: str | None = None


Rule = Callable[[Trace, Call], Outcome | None]
_RULES: dict[str, Rule] = {}


def _rule(names: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        _RULES.update(dict.fromkeys(names.split(), function))
        return function

    return register


def follow(trace: Trace, call: Call) -> None:
    """Give the results of a call their values, and complain of what has no rule."""
    features = trace.features(call)
    parameters = trace.parameters(call)
    if call.name == "setitem":
        _unknown(trace, call)
    if not call.results or not (features or parameters or any(map(trace.is_lost, call.tensors))):
        return
    if any(map(trace.is_lost, call.tensors)):
        trace.complain(
            trace.place(f"`{call.name}` meets a tensor of unseen origin", "not yet; write it with torch functions")
        )
    known = _RULES.get(call.name)
    outcome = known(trace, call) if known else None
    if outcome is None:
        _unknown(trace, call)
        outcome = Outcome([_of_data(trace, call, result) for result in call.results])
    for parameter in parameters:
        trace.used.add(id(parameter))
        if not any(parameter is claimed for claimed in outcome.claimed) and known is not _constant:
            trace.misused(call, parameter)
    if known is _constant:
        serial = CONSTANT
    elif outcome.letter or not features:
        serial = trace.number(outcome.letter, features)
    else:
        serial = features[0][1].serial
    sources = (
        frozenset().union(*(value.sources for _, value in features)) if outcome.source is None else {outcome.source}
    )
    dims = outcome.dims if len(outcome.dims) == len(call.results) else outcome.dims * len(call.results)
    for result, labels in zip(call.results, dims, strict=True):
        trace.assign(result, Value(labels, outcome.weights, sources, serial))


def _unknown(trace: Trace, call: Call) -> None:
    """Complain of a function without a rule, if what it works on lies past a weight; the data may be prepared freely."""
    if not any(value.past_weights for _, value in trace.features(call)):
        return
    if call.name in _PRODUCTS:
        remedy = "not yet; products of feature tensors (attention) have no scaling rule"
    else:
        remedy = "not yet; write it with elementwise functions, reshapes, sums, pooling, norms and layers"
    trace.complain(trace.place(f"`{call.name}` on features has no rule", remedy))


_PRODUCTS = [
    "matmul",
    "mm",
    "bmm",
    "mv",
    "dot",
    "einsum",
    "tensordot",
    "baddbmm",
    "addmm",
    "scaled_dot_product_attention",
    "bilinear",
    "outer",
]


def _of_data(trace: Trace, call: Call, result: Tensor) -> Dims:
    """Labels of something computed from the data: no widths; the samples stay first if their number is the same."""
    for tensor, value in trace.features(call):
        if value.dims and result.ndim and value.dims[0] == SAMPLE and result.shape[0] == tensor.shape[0]:
            return (SAMPLE, *(None,) * (result.ndim - 1))
    return (None,) * result.ndim


def _input(call: Call) -> Tensor:
    return call.argument(0, "input")


# Elementwise functions


@_rule(
    "alias bfloat16 clone contiguous cpu cuda data detach double float half positive real requires_grad to type type_as"
)
def _same(trace: Trace, call: Call) -> Outcome | None:
    value = trace.value(_input(call))
    return _constant(trace, call) if value.serial == CONSTANT else Outcome([value.dims], "", value.weights)


@_rule(
    "empty_like full_like new_empty new_full new_ones new_tensor new_zeros ones_like rand_like randn_like zeros_like"
)
def _constant(trace: Trace, call: Call) -> Outcome:
    return Outcome([(None,) * result.ndim for result in call.results])


@_rule("alpha_dropout dropout dropout1d dropout2d dropout3d feature_alpha_dropout feature_dropout")
def _dropout(trace: Trace, call: Call) -> Outcome:
    value = trace.value(_input(call))
    return Outcome([value.dims], "" if call.argument(1, "p", 0.5) == 0 else "x", value.weights)


_NAMED = {name: name for name in ("relu", "tanh", "erf", "sigmoid", "gelu", "silu", "softplus")}
_NAMED |= {"special_erf": "erf", "special_expit": "sigmoid"}


@_rule(" ".join(_NAMED))
def _named_activation(trace: Trace, call: Call) -> Outcome:
    name = _NAMED[call.name]
    exact = {
        "gelu": lambda: call.argument(1, "approximate", "none") == "none",
        "softplus": lambda: call.argument(1, "beta", 1) == 1 and call.argument(2, "threshold", 20) >= 20,
    }
    plain = exact.get(name, lambda: True)()
    return _elementwise(trace, call, name if plain else None)


@_rule(
    "abs celu clamp clip cos elu exp expm1 glu_jvp hardshrink hardsigmoid hardswish hardtanh leaky_relu log log1p "
    "log_sigmoid logsigmoid mish nan_to_num pow reciprocal relu6 rrelu rsqrt selu sgn sign sin softshrink softsign "
    "special_erfc sqrt square tanhshrink threshold"
)
def _other_activation(trace: Trace, call: Call) -> Outcome:
    return _elementwise(trace, call, None)


def _elementwise(trace: Trace, call: Call, name: str | None) -> Outcome:
    value = trace.value(_input(call))
    trace.activation(value.weights, name)
    return Outcome([_broadcast(trace, call)], "x" if name is None else "a")


@_rule("add sub subtract rsub lerp neg negative where masked_fill")
def _sum(trace: Trace, call: Call) -> Outcome:
    return Outcome([_broadcast(trace, call)], weights=_through(trace, call))


@_rule("mul multiply div divide true_divide truediv addcmul addcdiv maximum minimum fmax fmin")
def _product(trace: Trace, call: Call) -> Outcome:
    features = trace.features(call)
    if len(features) > 1:
        for _, value in features:
            trace.activation(value.weights, None)
    return Outcome([_broadcast(trace, call)], weights=_through(trace, call))


def _through(trace: Trace, call: Call) -> frozenset[str]:
    """The weights whose output passes a function unmixed: those of its only feature argument."""
    features = trace.features(call)
    return features[0][1].weights if len(features) == 1 else frozenset()


def _broadcast(trace: Trace, call: Call) -> Dims:
    """Labels of an elementwise result: axes that meet are one, except where one side is constant or spread out."""
    shape = call.results[0].shape
    labels: list[Label] = []
    for back in range(1, len(shape) + 1):
        here = [
            (tensor.shape[-back], value.dims[-back]) for tensor, value in trace.features(call) if back <= tensor.ndim
        ]
        met = [label for size, label in here if size == shape[-back]]
        for _, spread in (one for one in here if one[0] != shape[-back]):
            trace.axes.fix(spread)
        label = met[0] if met else None
        for other in met[1:]:
            label = trace.axes.unify(label, other)
        labels.append(label)
    return tuple(reversed(labels))


# Rearranging


@_rule("view reshape flatten unflatten ravel view_as reshape_as")
def _reshape(trace: Trace, call: Call) -> Outcome | None:
    tensor = _input(call)
    value = trace.value(tensor)
    groups = regroup(tuple(tensor.shape), tuple(call.results[0].shape))
    labels: list[Label] = [None] * call.results[0].ndim
    for old, new in groups:
        before = [value.dims[axis] for axis in old]
        widths = [label for label in before if label not in (None, SAMPLE)]
        if SAMPLE in before and widths:
            return None
        if not widths:
            labels[new[0]] = SAMPLE if SAMPLE in before else None
        elif len(old) == len(new) == 1:
            labels[new[0]] = before[0]
        else:
            whole = trace.axes.derived(before)
            for axis in new:
                labels[axis] = whole
            if len(new) > 1:
                place = trace.place(
                    f"`{call.name}` splits a width into several axes", "not yet; keep features on one axis"
                )
                trace.must_be_fixed.append((whole, place))
    _pick(trace, value, tuple(axis for axis, size in enumerate(tensor.shape) if size == 1))
    return Outcome([tuple(labels)], "r", value.weights)


def _pick(trace: Trace, value: Value, axes: tuple[int, ...]) -> None:
    """Note that these axes are dropped: what remains are single entries of them."""
    for axis in axes:
        trace.axes.fix(value.dims[axis])


@_rule(
    "permute transpose swapaxes swapdims movedim moveaxis T mT t squeeze unsqueeze select narrow getitem expand expand_as "
    "broadcast_to chunk split split_with_sizes unbind tensor_split flip"
)
def _rearrange(trace: Trace, call: Call) -> Outcome | None:
    tensor = call.argument(0, "input")
    value = trace.value(tensor)
    # The strides of a contiguous stand-in tell where each axis went, whatever the function and its arguments.
    stand_in = torch.empty(tensor.shape, device="meta")
    args, kwargs = tree_map(lambda leaf: stand_in if leaf is tensor else leaf, (call.args, call.kwargs))
    if call.name == "flip":
        return Outcome([value.dims], weights=value.weights)
    if any(isinstance(leaf, Tensor) and leaf is not stand_in for leaf in tree_leaves((args, kwargs))):
        return _gathered(trace, call, value)
    moved = [leaf for leaf in tree_leaves(call.function(*args, **kwargs)) if isinstance(leaf, Tensor)]
    origins = [[_origin(stand_in, *axis) for axis in zip(view.shape, view.stride(), strict=True)] for view in moved]
    dropped = set(range(tensor.ndim)).difference(*origins)
    _pick(trace, value, tuple(dropped))
    dims = [
        tuple(_kept(trace, tensor, value, *axis) for axis in zip(view.shape, axes))
        for view, axes in zip(moved, origins)
    ]
    return Outcome(dims, "r" if len(moved) == 1 else "x", value.weights)


def _origin(source: Tensor, size: int, stride: int) -> int | None:
    """The axis of a contiguous tensor that an axis of a view with this size and stride runs along."""
    axes = [axis for axis in range(source.ndim) if source.shape[axis] > 1 and source.stride(axis) <= stride]
    return max(axes, key=source.stride) if size > 1 and axes else None


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


@_rule("cat concat concatenate")
def _cat(trace: Trace, call: Call) -> Outcome:
    tensors = call.argument(0, "tensors")
    dim = call.argument(1, "dim", 0) % call.results[0].ndim
    values = [trace.value(tensor) for tensor in tensors]
    followed = [value for value in values if value.serial != CONSTANT]
    labels: list[Label] = []
    for axis in range(call.results[0].ndim):
        met = [value.dims[axis] for value in followed]
        if axis == dim:
            labels.append(trace.axes.derived(met))
            continue
        label = met[0]
        for other in met[1:]:
            label = trace.axes.unify(label, other)
        labels.append(label)
    return Outcome([tuple(labels)], weights=frozenset().union(*(value.weights for value in followed)))


@_rule("stack")
def _stack(trace: Trace, call: Call) -> Outcome:
    dim = call.argument(1, "dim", 0) % call.results[0].ndim
    met = [value.dims for _, value in trace.features(call)]
    labels = list(met[0])
    for other in met[1:]:
        labels = [trace.axes.unify(a, b) for a, b in zip(labels, other, strict=True)]
    return Outcome([(*labels[:dim], None, *labels[dim:])])


@_rule("pad constant_pad_nd repeat_interleave repeat tile interpolate upsample")
def _enlarge(trace: Trace, call: Call) -> Outcome | None:
    tensor, result = _input(call), call.results[0]
    value = trace.value(tensor)
    if result.ndim != tensor.ndim:
        return None
    pairs = zip(value.dims, tensor.shape, result.shape, strict=True)
    dims = tuple(label if old == new else trace.axes.derived([label]) for label, old, new in pairs)
    return Outcome([dims], weights=value.weights)


# Reducing


def _reduced(call: Call, value: Value, position: int = 1) -> tuple[list[int], Dims]:
    """The axes a reduction runs over and the labels of its result."""
    ndim, result = len(value.dims), call.results[0]
    dim = call.argument(position, "dim", call.kwargs.get("axis"))
    if dim is None or isinstance(dim, bool):
        axes = list(range(ndim))
    else:
        axes = [axis % ndim for axis in (dim if isinstance(dim, (tuple, list, torch.Size)) else (dim,))]
    if result.ndim == ndim:
        return axes, tuple(None if axis in axes else label for axis, label in enumerate(value.dims))
    return axes, tuple(label for axis, label in enumerate(value.dims) if axis not in axes)


@_rule("mean nanmean var std var_mean std_mean")
def _average(trace: Trace, call: Call) -> Outcome:
    value = trace.value(_input(call))
    axes, dims = _reduced(call, value)
    trace.mixes_rows |= SAMPLE in [value.dims[axis] for axis in axes]
    return Outcome([dims], weights=value.weights if call.name == "mean" else frozenset())


@_rule("sum nansum prod amax amin max min logsumexp norm linalg_norm linalg_vector_norm argmax argmin any all")
def _extensive(trace: Trace, call: Call) -> Outcome | None:
    if len(trace.features(call)) > 1:
        return _product(trace, call)
    value = trace.value(_input(call))
    axes, dims = _reduced(call, value, 2 if "norm" in call.name else 1)
    trace.mixes_rows |= SAMPLE in [value.dims[axis] for axis in axes]
    _needs_fixed(trace, call, [value.dims[axis] for axis in axes], "use a mean, which has a limit")
    return Outcome([dims], weights=value.weights if call.name == "sum" else frozenset())


@_rule("softmax log_softmax softmin gumbel_softmax")
def _softmax(trace: Trace, call: Call) -> Outcome:
    value = trace.value(_input(call))
    trace.activation(value.weights, None)
    dim = call.argument(1, "dim")
    label = value.dims[-1 if dim is None else dim]
    trace.mixes_rows |= label == SAMPLE
    _needs_fixed(trace, call, [label], "apply it to outputs or positions only")
    return Outcome([value.dims])


def _needs_fixed(trace: Trace, call: Call, labels: list[Label], remedy: str) -> None:
    place = trace.place(f"`{call.name}` over a width", remedy)
    trace.must_be_fixed.extend((label, place) for label in labels if label not in (None, SAMPLE))


@_rule(
    "max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices avg_pool1d "
    "avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d "
    "adaptive_max_pool2d adaptive_max_pool3d adaptive_max_pool1d_with_indices adaptive_max_pool2d_with_indices "
    "adaptive_max_pool3d_with_indices lp_pool1d lp_pool2d"
)
def _pool(trace: Trace, call: Call) -> Outcome:
    value = trace.value(_input(call))
    positions = int(call.name[call.name.index("pool") + len("pool")])
    _needs_fixed(trace, call, list(value.dims[-positions:]), "pool over positions only")
    return Outcome([value.dims], weights=value.weights)


# Layers


@_rule("linear conv1d conv2d conv3d embedding")
def _weight(trace: Trace, call: Call) -> Outcome | None:
    tensor, weight, bias = _input(call), call.argument(1, "weight"), call.argument(2, "bias")
    layer = trace.layer_of(weight)
    if layer is None or not isinstance(layer[1], Weight) or layer[1].kind not in call.name.rstrip("123"):
        return None
    path, facts = layer
    dims = trace.value(tensor).dims
    ahead = {"linear": 1, "conv": tensor.ndim - 1, "embedding": 0}[facts.kind]
    in_axis = dims[-ahead] if ahead else None
    if in_axis == SAMPLE:
        return None
    use = trace.uses.get(path)
    if use is None:
        use = trace.uses[path] = Use(in_axis, trace.axes.new())
    else:
        trace.axes.unify(use.in_axis, in_axis)
    use.output = call.result
    if facts.kind == "conv":
        new: Dims = (dims[0], use.out_axis, *(None,) * (call.result.ndim - 2))
    else:
        new = (*dims[: len(dims) - ahead], use.out_axis)
    # embedding's third argument is no bias
    claimed = (weight,) if bias is None or facts.kind == "embedding" or trace.layer_of(bias) is None else (weight, bias)
    letter: Literal["L", "x"] = "L" if facts.kind == "linear" and tensor.ndim == 2 else "x"
    return Outcome([new], letter, frozenset({path}), claimed, path)


@_rule("batch_norm instance_norm layer_norm group_norm rms_norm normalize")
def _norm(trace: Trace, call: Call) -> Outcome:
    value = trace.value(_input(call))
    per_channel = call.name in ("batch_norm", "instance_norm", "group_norm")
    widths = [label for label in value.dims if label not in (None, SAMPLE)]
    label = value.dims[1] if per_channel else next(iter(widths), None)
    trace.mixes_rows |= call.name == "batch_norm" and bool(call.argument(5, "training", False))
    layers = [(parameter, trace.layer_of(parameter)) for parameter in trace.parameters(call)]
    own = [(parameter, layer[0]) for parameter, layer in layers if layer and isinstance(layer[1], Norm)]
    for _, path in own:
        trace.norms[path] = trace.axes.unify(trace.norms[path], label) if path in trace.norms else label
    return Outcome([value.dims], weights=value.weights, claimed=tuple(parameter for parameter, _ in own))
