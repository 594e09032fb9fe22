"""Other threads: one measurement at a time, and nobody else inside of a network while it is measured.

While a network is measured it is in eval mode, its BatchNorms have other statistics, and hooks keep what its layers compute. A
thread that runs it then would get wrong numbers, and its own would be taken for those of the probe. So its calls wait until the
measurement is over. A call that is under way already is let through to its end, and the measurement waits for it.

Nothing is asked of a process with a single thread.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import wraps
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from torch_dmft.core.errors import BusyModelError
from torch_dmft.core.torch_private import attributes_of_a_call, calls_under_way, is_compiled, modules_of

PATIENCE = 60.0
"""Seconds that a thread waits for another one before it gives up."""

_turn = threading.RLock()


def _new_turn() -> None:
    """Forget who holds it: that thread does not exist in a forked process."""
    global _turn
    _turn = threading.RLock()


with suppress(AttributeError):  # where processes are not forked
    os.register_at_fork(after_in_child=_new_turn)


def in_company() -> bool:
    """Whether other threads of Python are alive; those that torch computes with are not counted."""
    return threading.active_count() > 1


_WAITING = ("threading.py", "selectors.py", "heartbeat.py")
"""Where threads stand that wait: for an event or a queue, for a socket, and in Jupyter's heartbeat."""


def waiting() -> dict[int, FrameType] | None:
    """The innermost frames of all other threads if each of them waits, as those of progress bars, loggers and Jupyter do.

    A thread that has such a frame again later did not run meanwhile: waiting once more makes another one.
    """
    mine = threading.get_ident()
    frames = {thread: frame for thread, frame in sys._current_frames().items() if thread != mine}
    codes: list[object] = [frame.f_code for frame in frames.values()]  # torch.compile tears frames down
    wait = all(isinstance(code, CodeType) and Path(code.co_filename).name in _WAITING for code in codes)
    return frames if wait else None


@contextmanager
def own_turn() -> Iterator[None]:
    """Let one thread at a time into the body: what it changes for the whole process is put back in the right order."""
    with _turn:
        yield


def of_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook that does nothing where another thread calls it, which may run the same module."""
    mine = threading.get_ident()

    @wraps(hook)
    def called(*args: Any, **settings: Any) -> Any:
        return hook(*args, **settings) if threading.get_ident() == mine else None

    return called


@contextmanager
def nobody_else_inside(
    modules: Collection[nn.Module], running: Callable[[], AbstractContextManager[Any]]
) -> Iterator[None]:
    """Run the body, in its own turn, while no other thread runs any of these modules.

    Calls of other threads that are under way when the body begins are waited for; those that come later wait for its end. Calls
    from threads that are not Python's are of a backward pass of this one, and are let through.

    Args:
        modules: a network with all its submodules.
        running: in whose context this thread runs them, from the outermost call to its end.

    Raises:
        BusyModelError: here, if another thread does not come out of them within ``PATIENCE`` seconds; there, if the body takes
            longer, or if its hooks were in the way of that very call.
    """
    mine, measured = threading.get_ident(), {id(module) for module in modules}
    depth, over, outside = 0, threading.Event(), set[int]()  # threads whose calls wait to begin
    inside = ExitStack()

    def is_measured(module: nn.Module) -> bool:
        if id(module) in measured:
            return True  # what is compiled calls no hooks of what is inside of it
        return is_compiled(module) and any(id(inner) in measured for _, inner in modules_of(module))

    def enter(module: nn.Module, _: Any) -> None:
        nonlocal depth
        if not is_measured(module):
            return
        if threading.get_ident() == mine:
            depth += 1
            if depth == 1:
                inside.enter_context(running())
        elif not over.is_set() and _is_pythons() and sum(map(is_measured, calls_under_way(sys._getframe()))) == 1:
            before = attributes_of_a_call(module)
            outside.add(threading.get_ident())
            ended = over.wait(PATIENCE)
            outside.discard(threading.get_ident())
            if not ended or before != attributes_of_a_call(module):
                raise BusyModelError(
                    "A network cannot be run while another thread measures it.",
                    got=f"a call of {type(module).__name__} in thread {threading.current_thread().name!r}",
                    remedy="call it again, or run a copy.deepcopy of it beside the training",
                )

    def leave(module: nn.Module, *_: Any) -> None:
        nonlocal depth
        if threading.get_ident() == mine and is_measured(module) and depth:
            depth -= 1
            if depth == 0:
                inside.close()

    with own_turn(), ExitStack() as stack:
        stack.callback(over.set)
        stack.enter_context(inside)  # left open by an interrupt
        stack.callback(register_module_forward_pre_hook(enter).remove)
        stack.callback(register_module_forward_hook(leave, always_call=True).remove)
        _wait_for_others(mine, is_measured, outside)
        yield


def _wait_for_others(mine: int, is_measured: Callable[[nn.Module], bool], outside: Collection[int]) -> None:
    """Wait until no other thread is inside of a call of a module, but for those that wait themselves to begin one."""
    ends = time.monotonic() + PATIENCE
    while True:
        calls = calls_of_threads().items()
        busy = [thread for thread, many in calls if thread not in {mine, *outside} and any(map(is_measured, many))]
        if not busy:
            return
        if time.monotonic() > ends:
            names = [thread.name for thread in threading.enumerate() if thread.ident in busy]
            raise BusyModelError(
                "A network cannot be measured while another thread runs it.",
                got=f"a call in {', '.join(map(repr, names)) or 'another thread'} that did not end within {PATIENCE:g} s",
                remedy="let that thread run a copy.deepcopy of the network",
            )
        time.sleep(1e-3)


def calls_of_threads() -> dict[int, list[nn.Module]]:
    """The modules that every thread is calling, the innermost first."""
    time.sleep(0)  # in a fresh turn of the interpreter no other thread moves on while its frames are looked at
    return {thread: list(calls_under_way(frame)) for thread, frame in sys._current_frames().items()}


def _is_pythons() -> bool:
    """Whether Python has started this thread, and not torch for a backward pass."""
    return threading.get_ident() in {thread.ident for thread in threading.enumerate()}
