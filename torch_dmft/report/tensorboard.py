"""TensorBoard: scalars while a model trains, and a whole comparison afterwards."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from torch_dmft.comparison import Comparison, Deviations
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.measurement.record import Record
from torch_dmft.report.choice import sample_order, shown_weights
from torch_dmft.report.figures import figures
from torch_dmft.report.images import pixels, strip
from torch_dmft.report.interrupt import interrupts_wait
from torch_dmft.report.markdown import comparison_text, plan_table
from torch_dmft.report.scalars import KINDS, deviation_scalars, records, scalars, weight_label

if TYPE_CHECKING:
    from torch_dmft.parameterization import Plan


class LiveScalars:
    """Writes loss, kernel traces and kernel movement after every record of a ``Recorder``, flushed at once.

    A run that is killed leaves complete logs up to its last record. Give it as one of the recorder's ``callbacks``; the
    tags are those of ``Comparison.write_tensorboard``, so a prediction written beside it shares its charts.

    Args:
        logdir: directory of this run's logs.
        targets: ``(sample,)`` or ``(sample, output)`` floats, to log target alignments too.

    Example:
        >>> with LiveScalars("runs/a") as live:  # doctest: +SKIP
        ...     recorder = Recorder(plan, probe, callbacks=[live])
    """

    def __init__(self, logdir: str | Path, targets: Tensor | None = None) -> None:
        self.logdir = Path(logdir)
        self._targets = targets
        self._writer: SummaryWriter | None = None
        self._first: Record | None = None

    def __call__(self, step: int, record: Record) -> None:
        """Write the scalars of one record."""
        self._first = self._first or record
        values = scalars(record, self._first, self._targets)
        with interrupts_wait():
            if self._writer is None:
                # Points of an earlier run into the same directory, from this step on, are forgotten.
                self._writer = SummaryWriter(str(self.logdir), purge_step=step)
            for tag, value in values.items():
                self._writer.add_scalar(tag, value, step)
            self._writer.flush()

    def close(self) -> None:
        """Close the log file."""
        if self._writer is not None:
            with interrupts_wait():
                self._writer.close()

    def __enter__(self) -> LiveScalars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def write_comparison(comparison: Comparison, logdir: str | Path, plan: Plan | None = None) -> None:
    """Write a comparison as TensorBoard logs; a second time replaces what the first wrote.

    Every run (network, theory, static NTK, ...) becomes a TensorBoard run named by its origin, with equal tags, so that
    each chart of the Scalars page shows them together; the Custom Scalars page has the same charts weight by weight. A
    prediction's run also has the measured run's deviation from it. The run ``comparison`` holds kernel images
    (measured, each prediction, difference), the figures, and the tables as text.

    Args:
        comparison: what ``compare`` returned.
        logdir: directory of the logs.
        plan: the plan of the measured model, to show its table of parameters.
    """
    for run, deviations in zip(comparison.runs, (None, *comparison.deviations), strict=True):
        with _writer(logdir, run.origin) as writer:
            _write_run(writer, run, comparison.targets, deviations)
    with _writer(logdir, "comparison") as writer:
        writer.add_custom_scalars(_layout(comparison))
        _write_kernels(writer, comparison)
        for name, figure in figures(comparison).items():
            writer.add_image(f"figures/{name}", pixels(figure), int(comparison.steps[-1]), dataformats="HWC")
        writer.add_text("comparison", comparison_text(comparison))
        if plan is not None:
            writer.add_text("plan", plan_table(plan))


def _writer(logdir: str | Path, run: str) -> SummaryWriter:
    """A writer whose first event tells TensorBoard to forget what an earlier file of the same run held."""
    return SummaryWriter(str(Path(logdir) / run.replace("/", "-")), purge_step=0)


def _write_run(writer: SummaryWriter, run: Trajectory, targets: Tensor | None, deviations: Deviations | None) -> None:
    steps = list(records(run))
    for time, record in enumerate(steps):
        values = scalars(record, steps[0], targets)
        values |= {} if deviations is None else deviation_scalars(deviations, time)
        for tag, value in values.items():
            writer.add_scalar(tag, value, record.step)
    for position, layer in enumerate(run.layers):
        if layer.fields is not None:
            for step, preactivation in zip(layer.fields.steps, layer.fields.preactivation, strict=True):
                tag = f"preactivations/{weight_label(position, layer.name)}"
                writer.add_histogram(tag, preactivation.flatten(), int(step))


def _write_kernels(writer: SummaryWriter, comparison: Comparison) -> None:
    """At three steps, each under a tag of its own: TensorBoard shows only some of a tag's images."""
    layers, order = comparison.measured.layers, sample_order(comparison)[0]
    for time in sorted({0, len(comparison.steps) // 2, len(comparison.steps) - 1}):
        step = int(comparison.steps[time])
        for kind, attribute in KINDS.items():
            for position in shown_weights(len(layers), attribute):
                kernels = (getattr(run.layers[position], attribute).per_sample() for run in comparison.runs)
                matrices = [kernel.equal_time[time][order][:, order].double().numpy() for kernel in kernels]
                tag = f"{kind} kernels/{weight_label(position, layers[position].name)} step {step}"
                writer.add_image(tag, strip(matrices[0], matrices[1:]), step, dataformats="HWC")


def _layout(comparison: Comparison) -> dict[str, dict[str, list]]:
    """The Custom Scalars page: runs together in one chart per quantity and weight."""
    labels = [weight_label(position, layer.name) for position, layer in enumerate(comparison.measured.layers)]

    def charts(quantity: str) -> Iterator[tuple[str, list]]:
        for label in labels:
            yield f"{quantity}, weight {label}", ["Multiline", [f"^{re.escape(f'{quantity}/{label}')}$"]]

    layout = {"Loss": {"loss": ["Multiline", ["^loss$"]]}}
    for kind in KINDS:
        layout[f"{kind}: movement"] = dict(charts(f"{kind} moved"))
        layout[f"{kind}: trace"] = dict(charts(f"{kind} trace"))
        layout[f"{kind}: relative error"] = dict(charts(f"{kind} relative error"))
    if comparison.targets is not None:
        layout["Phi: alignment with the targets"] = dict(charts("Phi on targets"))
    return layout
