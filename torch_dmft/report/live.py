"""TensorBoard while a model trains."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import TracebackType

from torch_dmft.measurement import Recorder
from torch_dmft.measurement.record import Record
from torch_dmft.report.events import EventLog
from torch_dmft.report.interrupt import interrupts_wait
from torch_dmft.report.scalars import band_scalars, description, scalars


class LiveScalars:
    """Writes loss, kernel traces and kernel movement after every record of a ``Recorder``, flushed at once.

    A run that is killed leaves complete logs up to its last record. The tags are those of
    ``Comparison.write_tensorboard``, so a prediction written beside it shares its charts. Targets are those of the
    recorder's probe, one-hot for classes.

    Args:
        logdir: directory of this run's logs.
        recorder: the recorder, whose records are written from ``with`` on until its end.

    Example:
        >>> with LiveScalars("runs/a", recorder), recorder.attach(optimizer):  # doctest: +SKIP
        ...     train(model, optimizer)
    """

    def __init__(self, logdir: str | Path, recorder: Recorder) -> None:
        self.logdir = Path(logdir)
        self.recorder = recorder
        self._log: EventLog | None = None

    def __call__(self, step: int, record: Record) -> None:
        """Write the scalars of one record."""
        targets = self.recorder.probe.target_values(record.outputs.shape[1])
        values = scalars(record, self.recorder.records[0], targets)
        values |= band_scalars(values, None)
        with interrupts_wait():
            if self._log is None:
                names = [layer.name for layer in record.layers]
                # Points of an earlier run into the same directory, from this step on, are forgotten.
                self._log = EventLog(self.logdir, partial(description, names=names), start=step)
            self._log.scalars(values, step)
            self._log.flush()

    def close(self) -> None:
        """Close the log file."""
        if self._log is not None:
            with interrupts_wait():
                self._log.close()

    def __enter__(self) -> LiveScalars:
        self.recorder.callbacks = (*self.recorder.callbacks, self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.recorder.callbacks = tuple(callback for callback in self.recorder.callbacks if callback is not self)
        self.close()
