"""Parameters that a module of one's own holds, and adds to features, puts beside them or, rearranged, multiplies them by.

Positions, class tokens, and layer scales such as ``gamma.reshape(1, -1, 1, 1)``.

Such a tensor has one number per neuron for each of its other entries. Which of its axes is the width is told by what it meets:
every axis is a new one at first, and those that meet positions of the data are fixed.
"""

from __future__ import annotations

from torch import Tensor

from torch_dmft.architecture.axes import SAMPLE, Label
from torch_dmft.architecture.call import Call
from torch_dmft.architecture.trace import Trace, Value

_JOINING = ("add", "sub", "cat", "concat", "concatenate")
_MOVING = (
    *("expand", "expand_as", "broadcast_to", "repeat", "tile"),
    *("getitem", "narrow", "select", "squeeze", "unsqueeze"),
    *("reshape", "reshape_as", "view", "view_as", "flatten", "unflatten", "ravel"),
    *("T", "mT", "t", "transpose", "swapaxes", "swapdims", "permute", "movedim", "moveaxis"),
)
TAKING = frozenset((*_JOINING, *_MOVING))
"""Functions that may take such a parameter itself; what they return is like any features."""


def adopt(trace: Trace, call: Call) -> None:
    """Give the parameters among a call's arguments that belong to no layer a value, like features."""
    if call.name not in TAKING:
        return
    for parameter in trace.parameters(call):
        name = trace.bare_name(parameter)
        if name is not None and name not in trace.bare and name not in trace.scalars:
            dims = tuple(trace.axes.new() if size > 1 else None for size in parameter.shape)
            trace.bare[name] = dims
            is_trained = id(parameter) in trace.trained
            serial = trace.number("x", [])
            trace.assign(parameter, Value(dims, serial=serial, past_weights=True, trained=is_trained))


def is_taken(trace: Trace, call: Call, parameter: Tensor) -> bool:
    """Whether a parameter among a call's arguments is used as such a one may be."""
    return call.name in TAKING and trace.bare_name(parameter) in trace.bare


def beside_positions(trace: Trace, labels: tuple[Label, ...]) -> bool:
    """Whether these axes, put one behind the other, are positions of the data and rows of such parameters, which this fixes."""
    own = {trace.axes.root(label) for dims in trace.bare.values() for label in dims if label is not None}
    rows = [label for label in labels if label not in (None, SAMPLE)]
    if len(rows) == len(labels) or any(trace.axes.root(label) not in own for label in rows if label is not None):
        return False
    for label in rows:
        trace.axes.fix(label)
    return SAMPLE not in labels
