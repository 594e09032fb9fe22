"""A whole comparison as TensorBoard logs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.utils.tensorboard.summary import text

from torch_dmft.comparison import Comparison
from torch_dmft.core.arguments import checked
from torch_dmft.core.listed import weight_label
from torch_dmft.core.replacing import writing
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.report.choice import sample_order, shown_weights
from torch_dmft.report.events import OWN, EventLog, local, run_directory
from torch_dmft.report.figures import densities, has_fields
from torch_dmft.report.hparams import Setting, write_hparams
from torch_dmft.report.images import pixels, strip
from torch_dmft.report.layout import layout
from torch_dmft.report.markdown import comparison_text, plan_table
from torch_dmft.report.recorded import write_records
from torch_dmft.report.scalars import KINDS, description, run_scalars

if TYPE_CHECKING:
    from torch_dmft.parameterization import Plan

_PICTURES = 4
"""Steps at which kernels are drawn; TensorBoard keeps 10 pictures of one tag."""


@checked
def write_comparison(
    comparison: Comparison,
    logdir: str | Path,
    plan: Plan | None = None,
    *,
    hparams: Mapping[str, Setting] | None = None,
    progress: bool = False,
) -> None:
    """Write a comparison as TensorBoard logs; a second time replaces what the first wrote.

    Every run (network, theory, static NTK, ...) becomes a TensorBoard run named by its origin, with equal tags, so that
    each chart of the Scalars page shows them together; the Custom Scalars page has the same charts weight by weight, and
    the bands of the theory. A prediction's run also has the measured run's deviation from it. The run ``comparison`` holds
    kernel images (measured, each prediction, difference) with a slider over steps, densities of neurons, the report and the
    facts of the runs as text, and a line of the HParams page. Beside the logs of every run stand its records for the DMFT tab.

    Args:
        comparison: what ``compare`` returned.
        logdir: directory of the logs.
        plan: the plan of the measured model, to show its table of parameters.
        hparams: further settings for the HParams page that a run does not know of itself, such as its seed.
        progress: whether to show a progress bar.

    Raises:
        NotWrittenError: if the file system does not take them.
    """
    with writing(logdir), ExitStack() as stack:
        advance = _progress(stack, len(comparison.runs) + 3, progress)
        for run, deviations in zip(comparison.runs, (None, *comparison.deviations), strict=True):
            folder, values = run_directory(logdir, run.origin), run_scalars(comparison, run, deviations)
            with EventLog(folder, partial(description, names=_names(run))) as log:
                for step, numbers in zip(run.steps.tolist(), values, strict=True):
                    log.scalars(numbers, step)
            write_records(folder, comparison, run, values, plan, hparams)
            advance()
        log = stack.enter_context(EventLog(local(logdir) / OWN))
        log.add(
            layout(
                len(comparison.measured.layers),
                has_targets=comparison.targets is not None,
                has_widths=comparison.narrowest is not None,
                has_scatter=any(run.replicas for run in comparison.predictions),
                has_ntk=comparison.measured.ntk is not None,
            )
        )
        for name, markdown in comparison_text(comparison).items():
            log.add(text(name, markdown))
        if plan is not None:
            log.add(text("plan", plan_table(plan)))
        write_hparams(log, comparison, hparams or {})
        advance()
        _write_kernels(log, comparison)
        advance()
        for field in ("preactivation", "gradient"):
            if has_fields(comparison, field):
                log.image(f"figures/{field}s", pixels(densities(comparison, field)), int(comparison.steps[-1]))
        advance()


def _names(run: Trajectory) -> list[str]:
    return [layer.name for layer in run.layers]


def _write_kernels(log: EventLog, comparison: Comparison) -> None:
    """A picture of every kernel at a few steps: one tag per kernel, so that TensorBoard has a slider over the steps."""
    layers, order = comparison.measured.layers, sample_order(comparison)[0]
    last = len(comparison.steps) - 1
    titles = [run.origin for run in comparison.runs]
    times = sorted({round(float(time)) for time in torch.linspace(0, last, _PICTURES)})
    for kind, attribute in KINDS.items():
        if attribute == "ntk" and comparison.measured.ntk is None:
            continue
        for position in shown_weights(len(layers), attribute):
            kernels = [getattr(run.layers[position], attribute).per_sample().equal_time for run in comparison.runs]
            for time in times:
                step = int(comparison.steps[time])
                matrices = [kernel[time][order][:, order].cpu().double().numpy() for kernel in kernels]
                caption = f"{kind} of {weight_label(position, layers[position].name)}, step {step}"
                log.image(f"{kind} kernels/{position}", strip(matrices[0], matrices[1:], titles, caption), step)


def _progress(stack: ExitStack, total: int, shown: bool) -> Callable[[], None]:
    """What to call after each of so many parts, to move a bar if one is shown."""
    if not shown:
        return lambda: None
    from rich.progress import Progress

    bar = stack.enter_context(Progress())
    task = bar.add_task("writing TensorBoard logs", total=total)
    return lambda: bar.advance(task)
