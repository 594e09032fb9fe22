"""TensorBoard while a model trains: the network alone, or beside its prediction."""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from torch_dmft.comparison.deviation import deviations
from torch_dmft.comparison.match import in_one_layout, refuse_mismatch
from torch_dmft.comparison.scatter import scatter
from torch_dmft.core.arguments import checked
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.numbers import require_whole
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.measurement import Recorder
from torch_dmft.report.ailing import LiveEvents, disk_errors_told
from torch_dmft.report.events import OWN, EventLog, local, run_directory
from torch_dmft.report.interrupt import interrupts_wait
from torch_dmft.report.layout import layout
from torch_dmft.report.recorded import LiveRecords, edge_of, network_about, prediction_about, steps_of_fields
from torch_dmft.report.scalars import band_scalars, deviation_scalars, scalars, width_scalars


@checked
class LiveScalars:
    """Writes loss, kernel traces and kernel movement after every record of a ``Recorder``, flushed at once.

    A run that is killed leaves complete logs up to its last record; a disk that is full ends the logs with a warning, and not
    the training. Another run that writes into the same directory is told, on both sides. The tags are those of
    ``Comparison.write_tensorboard``, so a prediction written beside it shares its charts; the DMFT tab shows the kernels too.
    Targets are those of the recorder's probe, one-hot for classes.

    Args:
        logdir: directory of this run's logs.
        recorder: the recorder, whose records are written from ``with`` on until its end.

    Example:
        >>> with LiveScalars("runs/a", recorder), recorder.attach(optimizer):  # doctest: +SKIP
        ...     train(model, optimizer)
    """

    def __init__(self, logdir: str | Path, recorder: Recorder) -> None:
        self.logdir = local(logdir)
        self.recorder = recorder
        self._log: LiveEvents | None = None
        self._tab: LiveRecords | None = None
        self._wanted: set[int] = set()

    def __call__(self, step: int, record: Trajectory) -> None:
        """Write the scalars of one record."""
        require_whole("step", step, at_least=0)
        values = scalars(record, 0, self.recorder.records[0], record.targets)
        values |= band_scalars(values)
        number = len(self.recorder.records) - 1
        # Records 0, 1, 2, 4, 8, ...: what grows with the length of the run is looked at a few times only.
        latest = self.recorder.latest() if number & (number - 1) == 0 or step in self._wanted else None
        with interrupts_wait():
            if self._log is None:
                self._log = LiveEvents(self.logdir, record, start=step)
                self._tab = LiveRecords(self.logdir, network_about(self.recorder.subject.plan, record), record)
            self._log.scalars(values, step)
            assert self._tab is not None  # made with the log
            self._tab.write(record, 0, values if latest is None else values | edge_of(latest, 0))
            if latest is not None:
                self._tab.densities(latest, step)

    def close(self) -> None:
        """Close the log file."""
        if self._log is not None:
            with interrupts_wait():
                self._log.close()
        if self._tab is not None:
            self._tab.densities(self.recorder.latest(), int(self.recorder.records[-1].steps))
            self._tab.close()

    def __enter__(self) -> LiveScalars:
        self.recorder.callbacks = (*self.recorder.callbacks, self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.recorder.callbacks = tuple(callback for callback in self.recorder.callbacks if callback is not self)
        self.close()


@checked
class LiveComparison(LiveScalars):
    """Writes a network beside its predictions while it trains, flushed after every record.

    The network's scalars are those of ``LiveScalars``. In each prediction's run stand the prediction's own numbers at the steps
    that were recorded so far, and how far the network is from them: alignment and relative error of every kernel, the relative
    error in units of 1 / sqrt(N), and, if the prediction is a ``FiniteWidth`` answer, in units of a typical network's of that
    width. The pages of TensorBoard are those of ``Comparison.write_tensorboard``, which completes them afterwards.

    Args:
        logdir: directory of the logs; every run gets a sub-directory named by its origin.
        recorder: the recorder, whose records are written from ``with`` on until its end.
        *predictions: trajectories, or paths where another process is going to save them: from then on they are compared, at the
            steps before too.

    Raises:
        InvalidInputError: at the first record, if a trajectory is about other data, another network or another training. Of a
            file that is, and of training that departs from the prediction's later, a warning is given; training goes on.

    Example:
        >>> with LiveComparison("runs/a", recorder, theory), recorder.attach(optimizer):  # doctest: +SKIP
        ...     train(model, optimizer)
    """

    def __init__(self, logdir: str | Path, recorder: Recorder, *predictions: Trajectory | str | Path) -> None:
        super().__init__(run_directory(logdir, recorder.subject.plan.origin), recorder)
        self._root = local(logdir)
        self._awaited = [Path(one) for one in predictions if not isinstance(one, Trajectory)]
        self._given = [one for one in predictions if isinstance(one, Trajectory)]
        self._wanted = {step for one in self._given for step in steps_of_fields(one)}
        self._live: list[_LivePrediction] = []

    def __call__(self, step: int, record: Trajectory) -> None:
        """Write one record, and the predictions at all recorded steps that were not written yet."""
        super().__call__(step, record)
        if not self._live and not (self._root / OWN).exists():
            told = disk_errors_told("The page Custom Scalars", step)
            with interrupts_wait(), told, EventLog(self._root / OWN) as log:
                log.add(
                    layout(
                        len(record.layers),
                        has_targets=self.recorder.probe.targets is not None,
                        has_widths=True,
                        has_scatter=bool(self._awaited) or any(run.replicas for run in self._given),
                        has_ntk=record.ntk is not None,
                    )
                )
        while self._given:
            self._live.append(_LivePrediction(self._root, self.recorder, self._given.pop(0)))
        for path in [path for path in self._awaited if path.exists()]:
            self._awaited.remove(path)
            try:
                self._live.append(_LivePrediction(self._root, self.recorder, Trajectory.load(path)))
            except InvalidInputError as error:
                warnings.warn(f"The prediction in {path} is not compared. {error}", stacklevel=2)
        for prediction in tuple(self._live):
            try:
                with interrupts_wait():
                    prediction.write()
            except InvalidInputError as error:
                self._live.remove(prediction)
                prediction.close()
                warnings.warn(
                    f"From step {step} on {prediction.predicted.origin} is compared no longer. {error}", stacklevel=2
                )

    def close(self) -> None:
        """Close the log files."""
        with ExitStack() as stack:
            stack.callback(super().close)
            for prediction in self._live:
                stack.callback(prediction.finish)


class _LivePrediction:
    """A prediction beside a recorder: writes what was recorded since it last wrote.

    Raises:
        InvalidInputError: if it is about other data, another network, or one that is trained otherwise.
    """

    def __init__(self, logdir: Path, recorder: Recorder, predicted: Trajectory) -> None:
        self.recorder = recorder
        first = recorder.records[0]
        predicted = in_one_layout((first, predicted))[1]
        self.scatter = scatter(predicted)
        about = prediction_about(predicted, first.origin)
        self.predicted = replace(predicted, replicas=())
        self.fields = steps_of_fields(predicted)
        self.positions = {step: at for at, step in enumerate(predicted.steps.tolist())}
        self.widths = [layer.width for layer in recorder.records[0].layers]
        self.written = 0
        self._checked = -1
        self._check()
        folder = run_directory(logdir, predicted.origin)
        self.log = LiveEvents(folder, predicted, start=int(first.steps))
        self.tab = LiveRecords(folder, about, first)

    def write(self) -> None:
        """Write the steps that are new, and bring them to the disk."""
        if self.recorder.step >= 2 * self._checked:
            self._check()
        for record in self.recorder.records[self.written :]:
            step = int(record.steps)
            at = self.positions.get(step)
            if at is not None:
                values = scalars(self.predicted, at, self.predicted, record.targets)
                values |= band_scalars(values, self.predicted.stderr, at)
                off = deviations(*in_one_layout((record, self.predicted.at_steps(record.steps))))
                values |= deviation_scalars(off, 0)
                units = {key: errors[at].item() for key, errors in self.scatter.items()}
                values |= width_scalars(off, 0, self.widths, units)
                self.log.scalars(values, step)
                self.tab.write(self.predicted, at, values | edge_of(self.predicted, at))
                if step in self.fields:
                    self.tab.densities(self.predicted, step)
        self.written = len(self.recorder.records)

    def close(self) -> None:
        """Close the log files."""
        self.log.close()
        self.tab.close()

    def finish(self) -> None:
        """Close the log files, and look a last time at how the network was trained."""
        self.close()
        try:
            self._check()
        except InvalidInputError as error:
            warnings.warn(
                f"{self.predicted.origin} is of another training than it was at the end. {error}", stacklevel=4
            )

    def _check(self) -> None:
        """Refuse a prediction of another run; asked whenever the training is twice as long as the last time, and at the end."""
        known = [record for record in self.recorder.records if int(record.steps) in self.positions]
        if known:
            measured = replace(known[-1], training=self.recorder.training)
            refuse_mismatch(*in_one_layout((measured, self.predicted.at_steps(measured.steps))))
            self._checked = max(self.recorder.step, 1)
