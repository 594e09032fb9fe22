"""Ranks: the processes of ``torch.distributed`` that work on one thing, and fail together."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from torch_dmft.core.errors import DMFTError, InvalidInputError, LostProcessError
from torch_dmft.core.torch_private import store_of_processes

_T = TypeVar("_T")

_LAUNCHER = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells a process; so do other launchers, or whoever writes a batch script."""
_LONG = timedelta(days=30)
"""How long one process waits for another. That it is gone shows by its connections."""
_LOOKS = 0.5
"""Seconds between two looks whether another process has failed."""


class _FailedElsewhereError(Exception):
    """Another process has failed; what this one does is of no use any more."""


class Ranks:
    """The processes that work together, or a single one.

    What one of them raises in ``agree`` is raised by all. One that is gone is noticed when the others exchange something.

    Args:
        group: of all processes, for tensors on the CPU; None for a single process.
        name: of the work that is shared, the same on all.

    Attributes:
        rank: number of this process, from 0.
        size: how many there are.
    """

    def __init__(self, group: Any = None, name: str = "") -> None:
        self._group, self._name = group, name
        self.rank = 0 if group is None else distributed.get_rank(group)
        self.size = 1 if group is None else distributed.get_world_size(group)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def agree(self, work: Callable[[], _T]) -> _T:
        """Do some work in every process; if one fails, all do.

        Raises:
            Exception: what the work raised here, or else in the first process that failed.
            LostProcessError: if one is gone.
        """
        if self.size == 1:
            return work()
        error: Exception | None = None
        try:
            value = work()
        except _FailedElsewhereError:
            pass
        except Exception as raised:
            error = raised
            self._tell()
        told = [one for one in self.gathered(_portable(error, self.rank)) if one is not None]
        if error is not None:
            raise error
        if told:
            raise told[0]
        return value

    def gathered(self, value: _T) -> list[_T]:
        """What every process has, in their order."""
        return [self.shared(value, source) for source in range(self.size)]

    def shared(self, value: _T, source: int = 0) -> _T:
        """What one process has; others may give anything.

        Raises:
            LostProcessError: if one is gone.
        """
        if self.size == 1:
            return value
        box = [value if source == self.rank else None]
        try:
            distributed.broadcast_object_list(box, src=source, group=self._group, device=torch.device("cpu"))
        except RuntimeError as error:  # gloo's: a connection was closed
            raise LostProcessError(
                "Another of the processes that work together has ended.",
                got=f"process {self.rank} of {self.size} lost its connection",
                remedy="start again; with log=, a folder, what is finished is kept and not computed once more",
            ) from error
        received: Any = box[0]
        return received

    def watched(self, steps: Iterable[_T]) -> Iterator[_T]:
        """Steps that end early, by an error that ``agree`` understands, once another process has failed."""
        looked = time.monotonic()
        for step in steps:
            if self.size > 1 and time.monotonic() - looked > _LOOKS:
                looked = time.monotonic()
                if self._failed():
                    raise _FailedElsewhereError
            yield step

    def on_this_machine(self, device: torch.device) -> int:
        """How many of the processes share the memory of a device with this one."""
        index = device.index if device.index is not None or device.type != "cuda" else torch.cuda.current_device()
        mine = socket.gethostname(), device.type, index
        return self.gathered(mine).count(mine)

    def _tell(self) -> None:
        """Tell the others that this process has failed, at once."""
        with suppress(RuntimeError):  # whoever keeps the store is gone
            store_of_processes().set(self._name, "failed")

    def _failed(self) -> bool:
        try:
            return bool(store_of_processes().check([self._name]))
        except RuntimeError:  # whoever keeps the store is gone: what is under way here can still be kept
            return False


def _portable(error: Exception | None, rank: int) -> DMFTError | None:
    """An error as other processes raise it."""
    if error is None or isinstance(error, DMFTError):
        return error
    return DMFTError(
        f"Process {rank} has failed.",
        got=f"{type(error).__name__}: {error}",
        remedy="its own traceback, which says where",
    )


@contextmanager
def ranks(*, several: bool) -> Iterator[Ranks]:
    """The processes of ``torch.distributed``, or this one alone.

    A process group that nobody has made is made, as torchrun says, and stays: its store serves one group. Whatever the backend
    of the group is, a group of gloo beside it carries what is exchanged here, from the memory of the CPU.

    Args:
        several: whether there are others; False for this process alone.

    Raises:
        InvalidInputError: if nothing tells which processes there are.
    """
    if not several:
        yield Ranks()
        return
    if not (distributed.is_available() and distributed.is_gloo_available()):
        raise InvalidInputError(
            "`distributed` needs torch.distributed with gloo.", got="a torch without", remedy="distributed=False"
        )
    if not distributed.is_initialized():
        missing = [name for name in _LAUNCHER if name not in os.environ]
        if missing:
            raise InvalidInputError(
                "`distributed=True` needs processes that know of each other.",
                got=f"no process group, and no {', '.join(missing)} in the environment",
                remedy="torchrun --nproc-per-node 2 script.py, or torch.distributed.init_process_group(...) before",
            )
        distributed.init_process_group("gloo", timeout=_LONG)
    group = distributed.new_group(backend="gloo", timeout=_LONG)
    try:
        yield Ranks(group, Ranks(group).shared(f"torch_dmft/{os.getpid()}/{time.time_ns()}"))
    finally:
        with suppress(RuntimeError):
            distributed.destroy_process_group(group)
