"""Workers: the trainings of a sweep or a check in several processes, or in this one."""

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
from typing import Any, Generic, TypeVar

import torch

from torch_dmft.core.errors import InsufficientMemoryError
from torch_dmft.referee.setup import Batches, Factory

Run = TypeVar("Run")
"""What is known of one training."""

_work: tuple[Callable[..., Any], Factory, Batches | None] | None = None
"""Of a worker process: how and what it trains, which tasks need not carry then."""


class Workers(Generic[Run]):
    """Trains many networks of one set-up.

    Args:
        train: ``train(factory, data, *task)`` -> what is known of one training; a function of a module.
        factory: makes the set-ups.
        data: their batches.
        processes: how many at once; None: as many as there are processors; 1: in this process. One as well where a process
            cannot be had: CUDA is in use already, or the functions cannot be sent to one on a system that does not fork.
    """

    def __init__(
        self, train: Callable[..., Run], factory: Factory, data: Batches | None, processes: int | None
    ) -> None:
        self._train, self._factory, self._data = train, factory, data
        count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        method = "fork" if sys.platform.startswith("linux") else "spawn"
        can = not torch.cuda.is_initialized() and (method == "fork" or _travels((factory, data)))
        self.count = (count if processes is None else processes) if can else 1
        self._pool: ProcessPoolExecutor | None = None
        if self.count > 1:
            self._pool = ProcessPoolExecutor(
                self.count, multiprocessing.get_context(method), initializer=_begin, initargs=(train, factory, data)
            )

    def __enter__(self) -> Workers[Run]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            # After an error or an interruption nobody waits for what is running.
            for process in list((self._pool._processes or {}).values()) if error is not None else ():
                process.terminate()
            self._pool.shutdown(wait=error is None, cancel_futures=True)

    def train(self, tasks: Iterable[tuple[Any, ...]]) -> Iterator[Run]:
        """Train, and give every run as it ends.

        Raises:
            InsufficientMemoryError: if a process was killed, which is what happens when memory is short.
        """
        if self._pool is None:
            for task in tasks:
                yield self._train(self._factory, self._data, *task)
            return
        futures: list[Future[Run]] = [self._pool.submit(_trained, task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise InsufficientMemoryError(
                "A process that trains was killed, most likely for want of memory.",
                got=f"{self.count} processes",
                remedy="fewer processes; a sweep that begins again with the same log keeps what was trained",
            ) from error


def _begin(train: Callable[..., Any], factory: Factory, data: Batches | None) -> None:
    global _work
    torch.set_num_threads(1)
    _work = train, factory, data
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """Leave when the process that began this one is gone, killed perhaps: nobody would tell it to stop."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _trained(task: tuple[Any, ...]) -> Any:
    assert _work is not None
    train, factory, data = _work
    return train(factory, data, *task)


def _travels(what: Any) -> bool:
    try:
        pickle.dumps(what)
    except Exception:
        return False
    return True


Told = Callable[[int, int, float, str], None]
"""Called with the number of runs done, how many there will be about, the seconds left about, and what was trained last."""
