"""Workers: the runs of a sweep in several processes, or in this one."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any

import torch

from torch_dmft.core.errors import InsufficientMemoryError
from torch_dmft.referee.one_run import Run, trained
from torch_dmft.referee.setup import Batches, Factory

Task = tuple[int, int, int, float, int]
"""value, power, seed, lr, steps."""

_work: tuple[Factory, Batches | None] | None = None
"""Of a worker process: what it trains, which tasks need not carry then."""


class Workers:
    """Trains the runs of a sweep.

    Args:
        factory: makes the set-ups.
        data: their batches.
        processes: how many at once; None: as many as there are processors; 1: in this process. One as well where a process
            cannot be had: CUDA is in use already, or the functions cannot be sent to one on a system that does not fork.
    """

    def __init__(self, factory: Factory, data: Batches | None, processes: int | None) -> None:
        self._factory, self._data = factory, data
        count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        method = "fork" if sys.platform.startswith("linux") else "spawn"
        can = not torch.cuda.is_initialized() and (method == "fork" or _travels((factory, data)))
        self.count = (count if processes is None else processes) if can else 1
        self._pool: ProcessPoolExecutor | None = None
        if self.count > 1:
            self._pool = ProcessPoolExecutor(
                self.count, multiprocessing.get_context(method), initializer=_begin, initargs=(factory, data)
            )

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            # After an error or an interruption nobody waits for what is running.
            for process in list((self._pool._processes or {}).values()) if error is not None else ():
                process.terminate()
            self._pool.shutdown(wait=error is None, cancel_futures=True)

    def train(self, tasks: Iterable[Task]) -> Iterator[Run]:
        """Train, and give every run as it ends.

        Raises:
            InsufficientMemoryError: if a process was killed, which is what happens when memory is short.
        """
        if self._pool is None:
            for value, power, seed, lr, steps in tasks:
                yield trained(self._factory, self._data, value, power, seed, lr, steps)
            return
        futures: list[Future[Run]] = [self._pool.submit(_train, task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise InsufficientMemoryError(
                "A process of the sweep was killed, most likely for want of memory.",
                got=f"{self.count} processes",
                remedy="begin again with the same log and fewer processes: what was trained is kept",
            ) from error


def _begin(factory: Factory, data: Batches | None) -> None:
    global _work
    torch.set_num_threads(1)
    _work = factory, data
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """Leave when the process that began this one is gone, killed perhaps: nobody would tell it to stop."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _train(task: Task) -> Run:
    assert _work is not None
    value, power, seed, lr, steps = task
    return trained(*_work, value, power, seed, lr, steps)


def _travels(what: Any) -> bool:
    try:
        pickle.dumps(what)
    except Exception:
        return False
    return True


Told = Callable[[int, int, float, str], None]
"""Called with the number of runs done, how many there will be about, the seconds left about, and what was trained last."""
