"""Functions that act on entries one by one."""

from __future__ import annotations

from torch import Tensor

from torch_dmft.architecture.axes import Label
from torch_dmft.architecture.call import Call
from torch_dmft.architecture.operations.outcome import Dims, Followers, Outcome, follows
from torch_dmft.architecture.trace import CONSTANT, Trace

FOLLOWERS: Followers = {}


@follows(
    FOLLOWERS,
    "alias bfloat16 clone contiguous cpu cuda data detach double float half positive real requires_grad to "
    "type type_as",
)
def _same(trace: Trace, call: Call) -> Outcome | None:
    value = trace.value(call.input)
    if trace.parameters(call):
        return Outcome([(None,) * call.input.ndim])
    if value.serial == CONSTANT or call.input.is_floating_point() > call.results[0].is_floating_point():
        return _constant(trace, call)
    return Outcome([value.dims], "", value.weights, factor=1.0)


@follows(
    FOLLOWERS,
    "empty_like full_like new_empty new_full new_ones new_tensor new_zeros ones_like rand_like randn_like zeros_like",
)
def _constant(trace: Trace, call: Call) -> Outcome:
    return Outcome([(None,) * result.ndim for result in call.results], constant=True)


@follows(FOLLOWERS, "alpha_dropout dropout dropout1d dropout2d dropout3d feature_alpha_dropout feature_dropout")
def _dropout(trace: Trace, call: Call) -> Outcome:
    value = trace.value(call.input)
    if call.argument(1, "p", 0.5) == 0:
        return Outcome([value.dims], "", value.weights, factor=1.0)
    trace.masked.append(_drawn_for(call, value.dims))
    return Outcome([value.dims], "x", value.weights)


def _drawn_for(call: Call, dims: Dims) -> Dims:
    """The axes for each entry of which dropout draws anew: all of them, or samples and channels."""
    if call.name in ("dropout", "alpha_dropout"):
        return dims
    return dims[:2] if len(dims) > 2 else ()  # without an axis of samples or of positions it is another function


_NAMED = {
    name: name
    for name in (
        *("relu", "tanh", "erf", "sigmoid", "gelu", "silu", "softplus", "mish", "sin"),
        *("leaky_relu", "elu", "selu", "hardtanh", "relu6", "softsign"),
    )
}
_NAMED |= {"special_erf": "erf", "special_expit": "sigmoid"}


@follows(FOLLOWERS, " ".join(_NAMED))
def _named_activation(trace: Trace, call: Call) -> Outcome:
    name = _NAMED[call.name]
    trace.has_numbers |= any(type(one) in (int, float) for one in (*call.args, *call.kwargs.values()))
    variant = {
        "gelu": lambda: {"none": "gelu", "tanh": "gelu_tanh"}.get(call.argument(1, "approximate", "none")),
        "softplus": lambda: _if(call.argument(1, "beta", 1) == 1 and call.argument(2, "threshold", 20) >= 20, name),
        "leaky_relu": lambda: _if(call.argument(1, "negative_slope", 0.01) == 0.01, name),
        "elu": lambda: _if(call.argument(1, "alpha", 1) == 1, name),
        "hardtanh": lambda: {(-1, 1): "hardtanh", (0, 6): "relu6"}.get(
            (call.argument(1, "min_val", -1), call.argument(2, "max_val", 1))
        ),
    }
    return _elementwise(trace, call, variant.get(name, lambda: name)())


def _if(plain: bool, name: str) -> str | None:
    return name if plain else None


@follows(
    FOLLOWERS,
    "abs celu clamp clip cos exp expm1 hardshrink hardsigmoid hardswish log log1p log_sigmoid logsigmoid nan_to_num "
    "pow reciprocal rrelu rsqrt sgn sign softshrink special_erfc sqrt square tanhshrink threshold",
)
def _other_activation(trace: Trace, call: Call) -> Outcome:
    return _elementwise(trace, call, None)


def _elementwise(trace: Trace, call: Call, name: str | None) -> Outcome:
    value = trace.value(call.input)
    trace.activation(value.weights, name)
    if name is None:
        trace.note_numbers(call)
    return Outcome([_broadcast(trace, call)], "x" if name is None else "a")


@follows(FOLLOWERS, "add sub subtract rsub lerp neg negative where masked_fill")
def _sum(trace: Trace, call: Call) -> Outcome:
    trace.note_numbers(call)
    return Outcome([_broadcast(trace, call)], weights=_through(trace, call))


@follows(FOLLOWERS, "mul multiply div divide true_divide truediv addcmul addcdiv maximum minimum fmax fmin")
def product(trace: Trace, call: Call) -> Outcome:
    """Entrywise products and choices between tensors: an unknown activation to the weights that meet."""
    features = trace.mixed(call)
    if len(features) > 1:
        for _, value in features:
            trace.activation(value.weights, None)
    factor = 1.0 if _is_scaled(trace, call) else _constant_factor(trace, call)
    if factor is None:
        trace.note_numbers(call)
    else:
        trace.has_numbers = True
    claimed = (scale,) if (scale := _layer_scale(trace, call)) is not None else ()
    return Outcome([_broadcast(trace, call)], weights=_through(trace, call), factor=factor, claimed=claimed)


def _layer_scale(trace: Trace, call: Call) -> Tensor | None:
    """The parameter of one number per neuron that features are multiplied by, if it is one."""
    parameters, features = trace.parameters(call), trace.features(call)
    if call.name not in ("mul", "multiply") or len(parameters) != 1 or len(features) != 1 or len(call.tensors) != 2:
        return None
    (parameter,), ((tensor, value),) = parameters, features
    name = trace.scale_of(parameter)
    back = next((n for n in range(1, parameter.ndim + 1) if parameter.shape[-n] > 1), 0)
    if name is None or back > tensor.ndim or tensor.shape[-back] != parameter.numel() or not value.past_weights:
        return None
    label = value.dims[-back]
    trace.scales[name] = trace.axes.unify(trace.scales[name], label) if name in trace.scales else label
    return parameter


def _is_scaled(trace: Trace, call: Call) -> bool:
    """Whether features are multiplied or divided by parameters of one number and nothing else."""
    features, mixed = trace.features(call), trace.mixed(call)
    if not len(mixed) < len(features) == len(call.tensors) or len(mixed) != 1:
        return False
    is_first = bool(call.args) and call.args[0] is mixed[0][0]
    return call.name in ("mul", "multiply") or (call.name in _DIVIDING and is_first and not _is_reflected(call))


def _is_reflected(call: Call) -> bool:
    return getattr(call.function, "__name__", "") in ("__rtruediv__", "__rdiv__")


_DIVIDING = ("div", "divide", "true_divide", "truediv")


def _constant_factor(trace: Trace, call: Call) -> float | None:
    """The number that a product or quotient multiplies features by, if it is one."""
    feature, other = (*call.args, *call.kwargs.values(), None)[:2]
    divides = call.name in _DIVIDING
    if not divides and not isinstance(feature, Tensor):
        feature, other = other, feature
    if not divides and isinstance(other, Tensor) and trace.value(feature).serial == CONSTANT:
        feature, other = other, feature
    is_number = isinstance(other, int | float) or (isinstance(other, Tensor) and other.numel() == 1)
    if not is_number or _is_reflected(call) or (not divides and call.name not in ("mul", "multiply")):
        return None
    if isinstance(other, Tensor) and trace.value(other).serial != CONSTANT:
        return None
    number = float(other)
    return (1 / number if number else None) if divides else number


def _through(trace: Trace, call: Call) -> frozenset[str]:
    """The weights whose output passes a function unmixed: those of its only feature argument."""
    features = trace.mixed(call)
    return features[0][1].weights if len(features) == 1 else frozenset()


def _broadcast(trace: Trace, call: Call) -> Dims:
    """Labels of an elementwise result: axes that meet are one, unless one side is constant, one number or broadcast."""
    shape = call.results[0].shape
    labels: list[Label] = []
    for back in range(1, len(shape) + 1):
        met = []
        for tensor, value in trace.mixed(call):
            if back <= tensor.ndim and tensor.shape[-back] == shape[-back]:
                met.append(value.dims[-back])
            elif back <= tensor.ndim:
                trace.axes.fix(value.dims[-back])
        labels.append(trace.axes.unified(met))
    return tuple(reversed(labels))
