"""StaticNTK: the lazy limit as a solver."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.numbers import require_whole
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.theory.chains.assembly import about_the_probe, require_chain
from torch_dmft.theory.chains.lazy_limit import lazy_limit
from torch_dmft.theory.chains.uniform_start import (
    operations_per_pair,
    require_gaussian_fields,
    require_no_start_on_a_kink,
)
from torch_dmft.theory.cost import Cost, deterministic_cost
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.solver import SEES, method, require_training


@method
@dataclass(frozen=True)
class StaticNTK:
    """The infinite-width network in the lazy limit gamma0 -> 0: NNGP and tangent kernel, df/dt = K Delta.

    Covers dense chains with any loss, several outputs, gains, biases, unequal widths, minibatches and all that SGD does to
    all parameters alike (schedules, momentum, weight decay), and learning rules: outputs then follow a kernel of the rule's
    (``chains.lazy_limit``), and the NTK is that of true gradients, as ever. ``problem.gamma0`` plays no role. Kernels are in
    closed form for piecewise linear activations and erf and by Hermite series for smooth ones; biases that start uniform, as
    torch's do, are averaged over by quadrature. Fields that are exactly zero have the slope that torch gives them (0 of ReLU).
    Computes in float64; exact, so ``stderr`` is None.

    With n rows the cost is O(L n^2) for the kernels. Outputs are in closed form for squared error with full batches, O(n^3)
    whatever the number of steps; else they are stepped, O(T n^2), or integrated. With weight decay the kernels change in
    time, and it is O(L T^2 n^2). Memory is O(n^2) beside the answer (the paper's Table 1). Refuses networks that are no dense
    chain, uniform input weights, rows of zeros that a trained bias moves off a kink, Langevin noise, Adam, and weight decay
    beside a learning rule; gradient flow also momentum, weight decay and minibatches.

    What it leaves out is of order gamma0^2; of Hebb's rule, whose updates are not independent of the features, of order gamma0.

    Attributes:
        time: "discrete" for the steps of gradient descent, "continuous" for gradient flow at the times eta * step.
        order: the largest number of Hermite terms for smooth activations.
    """

    time: Literal["discrete", "continuous"] = "discrete"
    order: int = 1024

    def __post_init__(self) -> None:
        """Refuse invalid settings."""
        require_whole("order", self.order, at_least=1)
        if self.time not in ("discrete", "continuous"):
            raise InvalidInputError(
                "`time` must be discrete or continuous.",
                got=f"time={self.time!r}",
                remedy='time="discrete" or time="continuous"',
            )

    def check(self, problem: Problem) -> None:
        """Refuse networks other than dense chains, and gradient flow for trainings that only steps describe.

        Raises:
            UnsupportedProblemError: naming what is in the way.
        """
        require_chain(problem, "StaticNTK")
        covers = SEES | {"uniform starts", "rule"}
        if "rule" in problem.training.traits:  # backward weights do not decay beside the others
            covers -= {"decay"}
        require_training(problem, "StaticNTK", covers)
        require_gaussian_fields(problem, "StaticNTK")
        require_no_start_on_a_kink(problem, "StaticNTK")
        if self.time == "continuous":
            remedy = 'StaticNTK(time="discrete"); gradient flow is plain full-batch descent in the limit of small steps'
            require_training(problem, "Gradient flow", frozenset({"schedule", "uniform starts", "rule"}), remedy=remedy)

    def estimate(
        self, problem: Problem, record: Iterable[int] | int | Tensor | None = None, *, two_time: bool | float = False
    ) -> Cost:
        """What solving the problem will cost, with some hundred Hermite terms for every pair of rows."""
        chain, recorded = require_chain(problem, "StaticNTK"), problem.number_recorded(record)
        samples, states = problem.samples, problem.steps + 1
        times, pairs = (states, states**2 / 2) if "decay" in problem.training.traits else (1, 1.0)
        return deterministic_cost(
            problem,
            recorded,
            two_time=two_time,
            work=operations_per_pair(problem) * samples**2 * pairs + 4.0 * states * samples**2 * problem.outputs,
            calls=20 * states + 400 * chain.depth * times,
            numbers=(6.0 * chain.depth + 10) * samples**2 * times + 300.0 * chain.depth * samples * times,
            error=None,
        )

    def run(self, problem: Problem, record: Tensor, *, two_time: bool | float, progress: bool) -> Trajectory:
        """Compute the kernels, then the outputs; see ``Solver.run``."""
        flow = self.time == "continuous"
        trajectory = lazy_limit(problem, record, two_time=two_time, flow=flow, order=self.order, progress=progress)
        return about_the_probe(problem, trajectory)
