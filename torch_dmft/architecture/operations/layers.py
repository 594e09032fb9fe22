"""Functions that apply the parameters of a layer."""

from __future__ import annotations

from typing import Any, Literal

from torch_dmft.architecture.axes import SAMPLE
from torch_dmft.architecture.call import Call
from torch_dmft.architecture.facts import Norm, Weight
from torch_dmft.architecture.operations.outcome import Dims, Followers, Outcome, follows
from torch_dmft.architecture.trace import Trace, Use

FOLLOWERS: Followers = {}


@follows(FOLLOWERS, "linear conv1d conv2d conv3d embedding")
def _weight(trace: Trace, call: Call) -> Outcome | None:
    tensor, weight, bias = call.input, call.argument(1, "weight"), call.argument(2, "bias")
    path, facts = trace.layer_of(weight) or ("", None)
    if not isinstance(facts, Weight) or not call.name.startswith(facts.kind):
        return None
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
    # embedding's third argument is not a bias
    has_bias = facts.kind != "embedding" and trace.layer_of(bias) is not None
    claimed = (weight, bias) if has_bias else (weight,)
    is_plain = facts.kind == "linear" and tensor.ndim == 2 and len(tensor) == trace.samples
    letter: Literal["L", "x"] = "L" if is_plain else "x"
    return Outcome([new], letter, frozenset({path}), claimed, path)


@follows(FOLLOWERS, "batch_norm instance_norm layer_norm group_norm rms_norm")
def _norm(trace: Trace, call: Call) -> Outcome:
    value = trace.value(call.input)
    per_channel = call.name in ("batch_norm", "instance_norm", "group_norm")
    shape = () if per_channel else tuple(call.argument(1, "normalized_shape"))
    normed = value.dims[len(value.dims) - len(shape) :]  # gains of the entries of one head are no width of heads
    widths = [label for label in normed if label not in (None, SAMPLE) and not trace.axes.is_fixed(label)]
    label = value.dims[1] if per_channel else next(iter(widths), None)
    trace.mixes_rows |= call.name == "batch_norm" and bool(call.argument(5, "training", False))
    layers = [(parameter, trace.layer_of(parameter)) for parameter in trace.parameters(call)]
    trace.note_numbers(call, _settings(call))
    own = [(parameter, layer[0]) for parameter, layer in layers if layer and isinstance(layer[1], Norm)]
    for _, path in own:
        trace.norms[path] = trace.axes.unify(trace.norms[path], label) if path in trace.norms else label
    return Outcome([value.dims], weights=value.weights, claimed=tuple(parameter for parameter, _ in own))


_NEGLIGIBLE = 1e-3
"""Up to this ``eps``, a norm layer divides by the size of features alone, whatever the width makes of it."""

_SETTINGS = {
    "batch_norm": (3, 4, 7),
    "instance_norm": (3, 4, 7),
    "layer_norm": (2, 3, 4),
    "group_norm": (2, 3, 4),
    "rms_norm": (2, 3, 3),
}
"""Where the functions have their gain, shift and ``eps``; ``rms_norm`` has no shift."""


def _settings(call: Call) -> list[Any]:
    """What acts on features in a norm layer beside its parameters; statistics of the data are left out."""
    gain, shift, small = _SETTINGS[call.name]
    found = [call.argument(gain, "weight"), call.argument(small, "eps")]
    if shift != small:
        found.append(call.argument(shift, "bias"))
    return [one for one in found if not (isinstance(one, float) and one <= _NEGLIGIBLE)]
