"""When a step begins and when it is over, also with several optimizers and with closures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch.optim import Optimizer

from torch_dmft.core.torch_private import put_first


@contextmanager
def step_hooks(
    optimizers: tuple[Optimizer, ...],
    *,
    arrives: Callable[[], None],
    begins: Callable[[], None],
    joins: Callable[[Optimizer], None],
    stepping_is_done: Callable[[], None],
    ends: Callable[[], None],
    uneven: Callable[[], None],
) -> Iterator[None]:
    """Call functions around every step in the body; with several optimizers a step is over when each of them has stepped.

    The hooks stay the last of their optimizers, behind those that were registered later and may change gradients.

    Args:
        optimizers: all of them.
        arrives: a step was asked for.
        begins: its gradients are there; after the first call of its closure, if it has one.
        joins: a further optimizer takes part in the step.
        stepping_is_done: the weights are as the step left them, before any other hook.
        ends: the step is over, and other hooks were called.
        uneven: an optimizer steps a second time before the others stepped once.
    """
    begun: set[int] = set()
    ended: set[int] = set()
    handles: dict[int, Any] = {}

    def finish() -> None:
        begun.clear()
        ended.clear()
        ends()

    def before(number: int, optimizer: Optimizer, args: tuple[Any, ...], settings: dict[str, Any]) -> Any:
        if number in begun:
            uneven()
            finish()
        begun.add(number)
        if len(begun) > 1:
            joins(optimizer)
            return None
        arrives()
        closure = settings.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            begins()
            return None
        calls = iter([begins])

        def observed() -> Any:
            value = closure()
            next(calls, _nothing)()
            return value

        return (args[0], observed, *args[2:]), {name: value for name, value in settings.items() if name != "closure"}

    def stepped(number: int, *_: Any) -> None:
        if len(ended | {number}) == len(optimizers):
            stepping_is_done()

    def after(number: int, *_: Any) -> None:
        handles[number].remove()
        handles[number] = optimizers[number].register_step_pre_hook(partial(before, number))
        ended.add(number)
        if len(ended) == len(optimizers):
            finish()

    with ExitStack() as stack:
        for number, optimizer in enumerate(optimizers):
            handles[number] = optimizer.register_step_pre_hook(partial(before, number))
            first = optimizer.register_step_post_hook(partial(stepped, number))
            put_first(optimizer, first)  # other hooks may change the weights
            stack.callback(first.remove)
            stack.callback(optimizer.register_step_post_hook(partial(after, number)).remove)
        stack.callback(lambda: [handle.remove() for handle in handles.values()])
        yield


def _nothing() -> None:
    """Do nothing."""
