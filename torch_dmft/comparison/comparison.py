"""compare: a measured run beside one or more predictions of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torch_dmft.comparison import table
from torch_dmft.comparison.consistency import Consistency, consistency
from torch_dmft.comparison.deviation import Deviation, deviation
from torch_dmft.comparison.match import common_steps, distinct_origins, refuse_mismatch
from torch_dmft.comparison.verdict import verdict
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.trajectory import LayerKernels, Trajectory
from torch_dmft.theory import Problem, solve, solvers

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import RenderableType

_SEED = 7_461_220_925_113
"""Of the networks of equal width."""


@dataclass(frozen=True)
class Difference:
    """How far numbers in units of their own (outputs, a loss) are from their prediction at each common step.

    Attributes:
        rms: ``(time,)``, root of the mean squared difference.
        noise: ``(time,)``, the rms of the prediction's standard errors, NaN if it has none.
    """

    rms: Tensor
    noise: Tensor


@dataclass(frozen=True)
class LayerDeviations:
    """The deviations of one weight's kernels: forward Phi^l, backward G^{l+1}, and the part of the NTK."""

    name: str
    forward: Deviation
    backward: Deviation
    ntk: Deviation


@dataclass(frozen=True)
class Deviations:
    """How far the measured run is from one prediction.

    Attributes:
        layers: one entry per weight, l = 0..L, named as in the measured model.
        ntk: of the whole NTK.
        outputs: over the rows the model is trained on, in units of the output.
        test_outputs: over the other rows; None if there are none.
        losses: the absolute difference of the losses.
        consistency: whether the measured run's width explains them, if the prediction is a ``FiniteWidth`` answer.
    """

    layers: tuple[LayerDeviations, ...]
    ntk: Deviation
    outputs: Difference
    test_outputs: Difference | None
    losses: Difference
    consistency: Consistency | None = None


@dataclass(frozen=True)
class Comparison:
    """A measured run and its predictions at the steps they have in common; ``print`` it, or write it to TensorBoard.

    Attributes:
        measured: the measured run, at the common steps.
        predictions: the predictions, at the common steps.
        deviations: how far the measured run is from each prediction, in the same order.
        recorded: how many steps each had before, the measured run first.
    """

    measured: Trajectory
    predictions: tuple[Trajectory, ...]
    deviations: tuple[Deviations, ...]
    recorded: tuple[int, ...]

    @property
    def steps(self) -> Tensor:
        """``(time,)``, the common steps."""
        return self.measured.steps

    @property
    def runs(self) -> tuple[Trajectory, ...]:
        """The measured run, then the predictions."""
        return (self.measured, *self.predictions)

    @property
    def targets(self) -> Tensor | None:
        """``(sample, output)``, from the first run that knows them; predictions do not know those of test rows."""
        return next((run.targets for run in self.runs if run.targets is not None), None)

    @property
    def verdict(self) -> str:
        """What the numbers say, in two or three sentences."""
        return verdict(self)

    def figures(self) -> dict[str, Figure]:
        """Every figure of the report, by name; see ``torch_dmft.report.figures``."""
        return _report().figures.figures(self)

    def write_tensorboard(self, logdir: str | Path, *, plan: Any = None) -> None:
        """Write scalars, kernels, histograms, figures and text for TensorBoard.

        Args:
            logdir: directory of the logs; every run (network, theory, ...) gets a sub-directory named by its origin.
            plan: the plan of the measured model, to show its table.
        """
        _report().tensorboard.write_comparison(self, logdir, plan)

    def __rich__(self) -> RenderableType:
        return table.render(self)

    def __str__(self) -> str:
        return table.text(self)


def compare(
    measured: Trajectory, predicted: Trajectory, *others: Trajectory, problem: Problem | None = None, replicas: int = 64
) -> Comparison:
    """Set a measured run beside its prediction, and beside further predictions such as the static NTK.

    Per weight and step: the alignment tr(X Y^T) / (|X| |Y|) and the relative error |X - Y| / |Y| of Phi^l, G^{l+1} and
    the NTK, with error bars from the prediction's standard errors (``Deviation``); for outputs and loss the difference.
    Weights are matched by position, times by step: only steps that all runs recorded are compared.

    With ``problem`` networks of the measured one's width are trained too, ``solvers.FiniteWidth(width, replicas)``, and every
    deviation becomes a z-score against what that width explains (``Consistency``): the measured network is consistent
    with its width, or the kernel and the weight are named that are not.

    Args:
        measured: the run to judge; usually a ``Recorder``'s.
        predicted: the prediction to judge it by; the verdict is about this one.
        *others: more predictions, shown beside it. A ``FiniteWidth`` answer among them judges as one made here does.
        problem: what the measured network was trained on; costs ``replicas`` trainings.
        replicas: how many networks of the same width; 19 or more, and more see smaller faults.

    Returns:
        The comparison; ``print`` shows it as a table with a verdict.

    Raises:
        InvalidInputError: if the runs have no step in common, or differ in samples, outputs, training rows, targets,
            weights, or in how they were trained up to the last common step (optimizer and all its numbers, what is frozen,
            start, loss, batches, gamma0), or one is no trajectory; the message lists every difference by value. With a
            problem also if the measured run is no single network of one width.
    """
    for run in (measured, predicted, *others):
        if not isinstance(run, Trajectory):
            raise InvalidInputError(
                "Only trajectories can be compared, each an argument of its own.",
                got=type(run).__name__,
                remedy="recorder.trajectory() for the network, solve(problem) for a prediction",
            )
    predictions = [predicted, *others]
    if problem is not None:
        steps = common_steps([measured, *predictions])
        predictions.append(_networks_like(measured, problem, steps, replicas))
    runs = distinct_origins((measured, *predictions))
    for prediction in runs[1:]:
        refuse_mismatch(runs[0], prediction)
    steps = common_steps(runs)
    at_common = tuple(run.at_steps(steps) for run in runs)
    return Comparison(
        measured=at_common[0],
        predictions=at_common[1:],
        deviations=tuple(_deviations(at_common[0], prediction) for prediction in at_common[1:]),
        recorded=tuple(len(run.steps) for run in runs),
    )


def _networks_like(measured: Trajectory, problem: Problem, steps: Tensor, replicas: int) -> Trajectory:
    """What networks of the measured one's width do."""
    width, centered = measured.metadata.get("width"), measured.metadata.get("centered")
    if not isinstance(width, int) or centered:
        raise InvalidInputError(
            "Only a network as it is, of one known width, can be judged by others of that width.",
            got=f"{measured.origin!r}, {'centered' if centered else f'width {width}'}",
            remedy="a Recorder's run of plan.model, or compare without problem",
        )
    # A user's networks start from seeds such as 0; one of them must not be among those that it is judged by.
    networks = solvers.FiniteWidth(width, replicas, generator=torch.Generator().manual_seed(_SEED))
    return solve(problem, networks, record=steps)


def _deviations(measured: Trajectory, predicted: Trajectory) -> Deviations:
    def spread(values: str) -> Tensor | None:
        return None if predicted.stderr is None else getattr(predicted.stderr, values)

    train, test = measured.train.cpu(), ~measured.train.cpu()
    outputs = measured.outputs, predicted.outputs, spread("outputs")
    return Deviations(
        layers=tuple(
            _layer_deviations(*layers)
            for layers in zip(
                measured.layers,
                predicted.layers,
                _layers(measured.stderr, len(measured.layers)),
                _layers(predicted.stderr, len(measured.layers)),
                strict=True,
            )
        ),
        ntk=deviation(
            measured.ntk,
            predicted.ntk,
            None if measured.stderr is None else measured.stderr.ntk,
            None if predicted.stderr is None else predicted.stderr.ntk,
        ),
        outputs=_difference(*outputs, rows=train),
        test_outputs=_difference(*outputs, rows=test) if test.any() else None,
        losses=_difference(measured.losses, predicted.losses, spread("losses")),
        consistency=consistency(measured, predicted),
    )


def _layers(stderr: Trajectory | None, count: int) -> tuple[LayerKernels | None, ...]:
    return (None,) * count if stderr is None else stderr.layers


def _layer_deviations(
    measured: LayerKernels, predicted: LayerKernels, *stderrs: LayerKernels | None
) -> LayerDeviations:
    def of(kernel: str) -> Deviation:
        return deviation(
            *(getattr(layer, kernel) for layer in (measured, predicted)),
            *(None if layer is None else getattr(layer, kernel) for layer in stderrs),
        )

    return LayerDeviations(measured.name, forward=of("forward"), backward=of("backward"), ntk=of("ntk"))


def _difference(measured: Tensor, predicted: Tensor, stderr: Tensor | None, rows: Tensor | None = None) -> Difference:
    def rms(values: Tensor) -> Tensor:
        values = values.detach().to("cpu", torch.float64)
        values = values if rows is None else values[:, rows]
        return values.reshape(len(values), -1).square().mean(1).sqrt()

    difference = measured.detach().to("cpu", torch.float64) - predicted.detach().to("cpu", torch.float64)
    return Difference(rms(difference), rms(torch.full_like(difference, torch.nan) if stderr is None else stderr))


def _report() -> Any:
    """The report, one floor up: a comparison shows itself, and what that needs is loaded only when it does."""
    from torch_dmft import report

    return report
