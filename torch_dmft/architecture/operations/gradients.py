"""Calls after which gradients differ from those of the forward pass: cuts, hooks, numbers taken out, unseen writing."""

from __future__ import annotations

from torch import Tensor

from torch_dmft.architecture.call import Call
from torch_dmft.architecture.trace import Trace, Value
from torch_dmft.core.errors import Place

_HOOKS = {"register_hook", "register_post_accumulate_grad_hook", "grad_fn"}
_TAKES_NUMBERS = {"item", "tolist", "numpy", "array", "dlpack", "float", "int", "index", "complex"}
_OUT_OF_PLACE = "not yet; write it with functions that return a new tensor"


def refuse_out_of_sight(trace: Trace, call: Call) -> None:
    """Complain of side effects of a call: new gradients, or new entries of features."""
    if call.name in _HOOKS:
        reason = f"`{call.name}` gives a hook access to the gradients of features, which it may change"
        trace.complain(trace.place(reason, "remove the hook; a Recorder measures gradients without one"))
    elif call.name == "set" and getattr(call.function, "__self__", None) is Tensor.data:
        trace.complain(trace.place("assigning to `data` of features changes them unseen", _OUT_OF_PLACE))
    elif not call.results and call.name in _TAKES_NUMBERS:
        reason = f"`{call.name}` takes numbers out of features, so that neither gradients nor the width follow them"
        trace.complain(trace.place(reason, "go on with the tensor, and write logs outside of forward"))


def refuse_unseen_writing(trace: Trace, call: Call) -> None:
    """Complain of writing into the memory of features by way of ``data``, which leaves no mark on them."""
    if call.name == "data" and any(value.past_weights for _, value in trace.features(call)):
        trace.shared_unseen.add(call.input.untyped_storage().data_ptr())
    if trace.shared_unseen and any(
        tensor.untyped_storage().data_ptr() in trace.shared_unseen for tensor in call.written
    ):
        trace.complain(trace.place(f"`{call.name}` writes into features by way of `data`", _OUT_OF_PLACE))


def refuse_changed(trace: Trace, name: str, values: list[Value]) -> None:
    """Complain of features that were changed out of sight; data may be, but then the model is not a chain."""
    if any(value.past_weights for value in values):
        reason = (
            f"`{name}` reads features that were written in place through a view, or have a gradient written by hand"
        )
        trace.complain(trace.place(reason, _OUT_OF_PLACE))
    elif values:
        trace.letters += "x"


def is_cut(call: Call) -> bool:
    """Whether gradients that flow into the arguments do not come from the result."""
    if not call.attached:
        return False
    results = [result for result in call.results if result.is_floating_point() or result.is_complex()]
    return bool(results) and not (call.graded and False not in [result.requires_grad for result in results])


def cut(trace: Trace, call: Call) -> Place:
    """The complaint that is due if the result of a call that cuts gradients has an effect on the output."""
    how = "" if call.graded or call.name in ("data", "detach") else " without gradients"
    reason = f"`{call.name}`{how} cuts gradients of trained parameters on their way from the output"
    return trace.place(reason, "drop it; to keep weights as they are, freeze them instead: requires_grad_(False)")
