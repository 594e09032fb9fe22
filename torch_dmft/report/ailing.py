"""An ailing disk ends what is written while a network trains, and not the training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

from torch_dmft.core.trajectory import Trajectory
from torch_dmft.report.events import EventLog
from torch_dmft.report.scalars import description


@contextmanager
def disk_errors_told(what: str, step: int, ended: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Turn an error of the disk in the body into a warning.

    Args:
        what: shows nothing from then on.
        step: of the training.
        ended: called after an error.
    """
    try:
        yield
    except OSError as error:
        ended()
        warnings.warn(f"{what} shows nothing from step {step} on: {error}. Training goes on.", stacklevel=4)


class LiveEvents:
    """The TensorBoard scalars of a run that is going on. A disk that is full ends them with a warning.

    Args:
        folder: of the run.
        like: a record of it, whose weights are those of the tags.
        start: the step from which points of an earlier run into the same folder are forgotten.
    """

    def __init__(self, folder: str | Path, like: Trajectory, *, start: int) -> None:
        self._log: EventLog | None = None
        self._next = start
        describe = partial(description, names=[layer.name for layer in like.layers])
        with self._ending():
            self._log = EventLog(folder, describe, start=start)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write the scalars of one step, by tag."""
        self._next = step
        if self._log is not None:
            with self._ending():
                self._log.scalars(values, step)

    def close(self) -> None:
        """Close the file."""
        if self._log is not None:
            with self._ending():
                self._log.close()

    def _ending(self) -> AbstractContextManager[None]:
        return disk_errors_told("TensorBoard", self._next, lambda: setattr(self, "_log", None))
