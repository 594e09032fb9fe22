"""Ctrl-C that waits for the end of a block."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Let an interrupt that comes during the block take effect at its end.

    The log writer hands events to a thread of its own through a queue. A KeyboardInterrupt in the middle of that can leave
    the queue in a state in which closing the log waits for ever; elsewhere it can come in a call whose errors are cleared, and
    be lost. Blocks may be nested: the outermost one decides.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is None or threading.current_thread() is not threading.main_thread():
        yield  # only the main thread is interrupted, and a handler that is not Python's cannot be put back
        return
    came = False

    def remember(number: int, frame: object) -> None:
        nonlocal came
        came = True

    signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            signal.raise_signal(signal.SIGINT)
