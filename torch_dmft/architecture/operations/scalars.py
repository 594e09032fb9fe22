"""Parameters that are one number, which a module of one's own holds: the factor of a branch, a temperature, a shift of all.

Such a number, and whatever is computed of it alone, has no axis, so that it says nothing of those that it meets.
"""

from __future__ import annotations

from torch import Tensor

from torch_dmft.architecture.call import Call
from torch_dmft.architecture.operations import elementwise
from torch_dmft.architecture.trace import Trace, Value

_MOVING = {"reshape", "view", "squeeze", "unsqueeze", "expand", "expand_as", "getitem", "select"}
TAKING = frozenset(_MOVING | elementwise.FOLLOWERS.keys())
"""Functions that may take such a parameter itself."""


def adopt(trace: Trace, call: Call) -> None:
    """Give the parameters of one number among a call's arguments a value."""
    if call.name not in TAKING:
        return
    for parameter in trace.parameters(call):
        name = trace.bare_name(parameter) if parameter.numel() == 1 else None
        if name is not None and name not in trace.scalars:
            value = Value(
                (None,) * parameter.ndim,
                serial=trace.number("x", []),
                past_weights=True,
                trained=id(parameter) in trace.trained,
                is_scalar=True,
            )
            trace.scalars[name] = value
            trace.assign(parameter, value)


def is_taken(trace: Trace, call: Call, parameter: Tensor) -> bool:
    """Whether a parameter among a call's arguments is used as such a one may be."""
    return call.name in TAKING and trace.bare_name(parameter) in trace.scalars
