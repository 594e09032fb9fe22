"""compare: a measured run beside one or more predictions of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torch_dmft.comparison import table
from torch_dmft.comparison.deviation import Deviations
from torch_dmft.comparison.deviation import deviations as deviations_from
from torch_dmft.comparison.match import common_steps, distinct_origins, in_one_layout, refuse_mismatch, refuse_swapped
from torch_dmft.comparison.verdict import verdict
from torch_dmft.comparison.yardstick import narrowest
from torch_dmft.core.arguments import checked, typed
from torch_dmft.core.divergence import last_sane
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.numbers import require_choice, require_whole
from torch_dmft.core.page import Page
from torch_dmft.core.plain import as_json, plain
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.theory import Problem, solve, solvers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from torch_dmft.parameterization import Plan

SCHEMA = "torch_dmft/compare/1"
"""Name and version of the JSON."""

_SEED = 7_461_220_925_113
"""Of the networks of equal width."""


@typed
@dataclass(frozen=True, repr=False)
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
    def end(self) -> int:
        """Position of the last common step at which neither the measured run nor the first prediction has diverged."""
        return last_sane(self.runs[:2])

    @property
    def runs(self) -> tuple[Trajectory, ...]:
        """The measured run, then the predictions."""
        return (self.measured, *self.predictions)

    @property
    def targets(self) -> Tensor | None:
        """``(sample, output)``, from the first run that knows them; predictions do not know those of test rows."""
        return next((run.targets for run in self.runs if run.targets is not None), None)

    @property
    def widths(self) -> tuple[int | None, ...]:
        """How many features each weight of the measured network makes, None where they are no width; () if nobody knows."""
        widths = tuple(layer.width for layer in self.measured.layers)
        return widths if any(width is not None for width in widths) else ()

    @property
    def narrowest(self) -> int | None:
        """The narrowest width of the measured network; the readout's fan-in if no other is known, None if none is."""
        return self.yardstick("ntk")

    def yardstick(self, kernel: str, position: int = 0) -> int | None:
        """N of the few 1 / sqrt(N) by which finite width alone makes a kernel deviate (``comparison.yardstick``).

        Args:
            kernel: ``"forward"``, ``"backward"`` or ``"ntk"``.
            position: l, of the weight.

        Returns:
            The narrowest width that the kernel is an average over; the readout's fan-in where the widths are not known; None if
            that is not known either.
        """
        require_choice("kernel", kernel, ("forward", "backward", "ntk"))
        require_whole("position", position, at_least=0, at_most=len(self.measured.layers) - 1)
        if self.widths:
            return narrowest(self.widths, kernel, position)
        return self.measured.width

    @property
    def verdict(self) -> str:
        """What the numbers say, in a few sentences."""
        return verdict(self)

    def to_dict(self) -> dict[str, Any]:
        """The verdict and all deviations as plain numbers, words, lists and dictionaries; None for what is not known.

        Lists over time are as long as ``steps``. ``is_consistent`` is None without networks of the measured one's width.
        """
        judged = [one.consistency for one in self.deviations if one.consistency is not None]
        return {
            "schema": SCHEMA,
            "verdict": self.verdict,
            "is_consistent": judged[0].consistent if judged and judged[0].is_decidable else None,
            "p": judged[0].p if judged else None,
            "steps": plain(self.steps),
            "runs": [{"origin": run.origin, "losses": plain(run.losses), "width": run.width} for run in self.runs],
            "widths": plain(self.widths),
            "predictions": [
                {"origin": run.origin, "deviations": plain(one)}
                for run, one in zip(self.predictions, self.deviations, strict=True)
            ],
        }

    def to_json(self) -> str:
        """``to_dict`` as JSON."""
        return as_json(self.to_dict())

    def details(self) -> Page:
        """Every table: all kernels against every prediction, loss and outputs, what was learned, what the width explains."""
        return table.details(self)

    def figures(self) -> dict[str, Figure]:
        """Every figure of the report, by name; see ``torch_dmft.report.figures``."""
        return _report().figures.figures(self)

    def write_tensorboard(
        self,
        logdir: str | Path,
        *,
        plan: Plan | None = None,
        hparams: Mapping[str, str | int | float | bool] | None = None,
        progress: bool = False,
    ) -> None:
        """Write scalars, kernels, figures, text and hyperparameters for TensorBoard, and the records of the DMFT tab.

        Args:
            logdir: directory of the logs; every run (network, theory, ...) gets a sub-directory named by its origin.
            plan: the plan of the measured model, to show its table.
            hparams: further settings for the HParams page that a run does not know of itself, such as its seed.
            progress: whether to show a progress bar.
        """
        _report().tensorboard.write_comparison(self, logdir, plan, hparams=hparams, progress=progress)

    def write_html(
        self,
        path: str | Path,
        *,
        plan: Plan | None = None,
        hparams: Mapping[str, str | int | float | bool] | None = None,
    ) -> None:
        """Write the page of TensorBoard's DMFT tab as one HTML file, which opens from disk and asks for nothing.

        Args:
            path: of the file; an existing one is replaced.
            plan: the plan of the measured model, to show its table.
            hparams: further settings to show, such as the seed.
        """
        _report().write_html(self, path, plan, hparams=hparams)

    def __repr__(self) -> str:
        predictions = ", ".join(repr(run.origin) for run in self.predictions)
        return f"<Comparison of {self.measured.origin!r} with {predictions}: {len(self.steps)} common steps>"

    def __str__(self) -> str:
        return str(table.summary(self))

    def __rich__(self) -> Page:
        return table.summary(self)

    def _repr_html_(self) -> str:
        """The report for a notebook, its details folded away."""
        details = self.details()._repr_html_()
        return f"{table.summary(self)._repr_html_()}\n<details><summary>Details</summary>\n{details}\n</details>"


@checked
def compare(
    measured: Trajectory,
    predicted: Trajectory,
    *others: Trajectory,
    problem: Problem | None = None,
    replicas: int = 64,
) -> Comparison:
    """Set a measured run beside its prediction, and beside further predictions such as the static NTK.

    Per weight and step: the alignment tr(X Y^T) / (|X| |Y|) and the relative error |X - Y| / |Y| of Phi^l, G^{l+1} and
    the NTK, with error bars from the prediction's standard errors (``Deviation``); for outputs and loss the difference.
    Weights are matched by position, times by step: only steps that all runs recorded are compared. Where one of the runs has
    no NTK, Phi and G alone are compared; where G and the NTK of one are averaged over outputs, those of the others are averaged
    in the same way.

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
        The comparison; ``print`` shows the verdict and a table, ``details()`` the rest.

    Raises:
        InvalidInputError: if the runs have no step in common, or differ in inputs, samples, outputs, training rows, targets,
            weights, or in how they were trained up to the last common step (optimizer and all its numbers, what is frozen,
            start, loss, batches, gamma0), or one is no trajectory, or a prediction stands where the measured run belongs; the
            message lists every difference by value. With a problem also if the measured run is no single network of one
            width.
    """
    for run in (measured, predicted, *others):
        if not isinstance(run, Trajectory):
            raise InvalidInputError(
                "Only trajectories can be compared, each an argument by itself.",
                got=type(run).__name__,
                remedy="recorder.trajectory() for the network, solve(problem) for a prediction",
            )
    require_whole("replicas", replicas, at_least=0)
    refuse_swapped(measured, predicted, *others)
    predictions = [predicted, *others]
    if problem is not None:
        steps = common_steps([measured, *predictions])
        predictions.append(_networks_like(measured, problem, steps, replicas))
    runs = distinct_origins(in_one_layout((measured, *predictions)))
    for prediction in runs[1:]:
        refuse_mismatch(runs[0], prediction)
    steps = common_steps(runs)
    at_common = tuple(run.at_steps(steps) for run in runs)
    return Comparison(
        measured=at_common[0],
        predictions=at_common[1:],
        deviations=tuple(deviations_from(at_common[0], prediction) for prediction in at_common[1:]),
        recorded=tuple(len(run.steps) for run in runs),
    )


def _networks_like(measured: Trajectory, problem: Problem, steps: Tensor, replicas: int) -> Trajectory:
    """What networks of the measured one's width do."""
    width = measured.width
    if width is None or measured.centered:
        raise InvalidInputError(
            "Only a network as it is, of one known width, can be judged by others of that width.",
            got=f"{measured.origin!r}, {'centered' if measured.centered else f'width {width}'}",
            remedy="a Recorder's run of plan.model, or compare without problem",
        )
    # A user's networks start from seeds such as 0; one of them must not be among those that it is judged by.
    networks = solvers.FiniteWidth(width, replicas, generator=torch.Generator().manual_seed(_SEED))
    return solve(problem, networks, record=steps)


def _report() -> Any:
    """The report, one floor up: a comparison shows itself, and what that needs is loaded only when it does."""
    from torch_dmft import report

    return report
