"""When a step begins and when it is over: with several optimizers, closures, optimizers around optimizers, skipped steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from torch_dmft.core.steppers import all_of, held_by
from torch_dmft.core.torch_private import put_first, put_last, steps_followed, uncompiled


@contextmanager
def step_hooks(
    optimizers: tuple[Optimizer, ...],
    *,
    arrives: Callable[[], None],
    begins: Callable[[Optimizer], None],
    joins: Callable[[Optimizer], None],
    stepping_is_done: Callable[[], None],
    ends: Callable[[], None],
    uneven: Callable[[], None],
) -> Iterator[None]:
    """Call functions around every step in the body; with several optimizers a step is over when each of them has stepped.

    The hooks stay the last of their optimizers, behind those that were registered later and may change gradients. An optimizer
    that holds others steps when one of these does, whether in its own ``step`` or beside it, and is done when its ``step`` is.
    A step that a ``GradScaler`` hands to a fused optimizer with gradients that are not finite is none: other optimizers are not
    asked for it.

    Args:
        optimizers: all of them.
        arrives: a step was asked for.
        begins: the gradients of its first optimizer are there; after the first call of its closure, if it has one.
        joins: a further optimizer takes part in the step.
        stepping_is_done: the weights are as the step left them, before any other hook.
        ends: the step is over, and other hooks were called.
        uneven: an optimizer steps a second time before the others stepped once.
    """
    begun: set[int] = set()
    ended: set[int] = set()
    handles: dict[int, Any] = {}
    running: list[Optimizer] = []  # from the outermost inwards

    def finish() -> None:
        begun.clear()
        ended.clear()
        ends()

    def before(number: int, optimizer: Optimizer, args: tuple[Any, ...], settings: dict[str, Any]) -> Any:
        if any(one is optimizer for one in running):  # its last step raised
            running.clear()
        running.append(optimizer)
        if held_by(optimizer) or _overflows(optimizer):
            return None
        if number in begun:
            if len(running) > 1:  # the optimizer around it steps it more than once
                return None
            uneven()
            finish()
        begun.add(number)
        if len(begun) > 1:
            joins(optimizer)
            return None
        arrives()
        closure = settings.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            begins(optimizer)
            return None
        calls = iter([partial(begins, optimizer)])

        def observed() -> Any:
            value = closure()
            next(calls, _nothing)()
            return value

        return (args[0], observed, *args[2:]), {name: value for name, value in settings.items() if name != "closure"}

    def stepped(number: int, *_: Any) -> None:
        if len(running) == 1 and number in begun and len(ended | {number}) == len(optimizers):
            stepping_is_done()

    def after(number: int, optimizer: Optimizer, *_: Any) -> None:
        put_last(optimizer, handles[id(optimizer)])
        del running[-1:]
        if not running and number in begun:
            ended.add(number)
        if not running and len(ended) == len(optimizers):
            finish()

    with ExitStack() as stack:
        for number, outermost in enumerate(optimizers):
            for optimizer in all_of(outermost):
                stack.enter_context(steps_followed(optimizer))
                handles[id(optimizer)] = optimizer.register_step_pre_hook(partial(uncompiled(before), number))
                stack.callback(handles[id(optimizer)].remove)
                first = optimizer.register_step_post_hook(partial(uncompiled(stepped), number))
                put_first(optimizer, first)  # other hooks may change the weights
                stack.callback(first.remove)
                stack.callback(optimizer.register_step_post_hook(partial(uncompiled(after), number)).remove)
        yield


def _overflows(optimizer: Optimizer) -> bool:
    """Whether a ``GradScaler`` has told a fused optimizer that its gradients are not finite, so that it will not step."""
    found = getattr(optimizer, "found_inf", None)
    return isinstance(found, Tensor) and bool(found)  # waits for the device, as the scaler does with other optimizers


def _nothing() -> None:
    """Do nothing."""
