"""Solver: the protocol of every method of the theory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from torch import Tensor

from torch_dmft.core.errors import UnsupportedProblemError
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.theory.cost import Cost
from torch_dmft.theory.problem import Problem


@runtime_checkable
class Solver(Protocol):
    """A method: a frozen dataclass of its settings with these three functions.

    One that covers more than SGD says so by a class attribute: ``takes = frozenset({"noise", "adam"})`` covers Langevin noise
    and Adam.
    """

    def check(self, problem: Problem) -> None:
        """Refuse, with a reason and a remedy, a problem outside the method's assumptions."""

    def estimate(
        self, problem: Problem, record: Iterable[int] | int | Tensor | None = None, *, two_time: bool = False
    ) -> Cost:
        """Tell what solving a problem that ``check`` accepts will cost; ``record`` and ``two_time`` are those of ``solve``."""

    def run(self, problem: Problem, record: Tensor, *, two_time: bool, progress: bool) -> Trajectory:
        """Solve the problem; ``record`` is ``(time,)`` sorted steps in 0..problem.steps to keep."""


def check_training(problem: Problem, solver: Solver) -> None:
    """Refuse Langevin noise and Adam where the solver does not say that it takes them.

    Raises:
        UnsupportedProblemError: if so.
    """
    takes: frozenset[str] = getattr(solver, "takes", frozenset())
    if problem.temperature and "noise" not in takes:
        raise UnsupportedProblemError(
            f"{type(solver).__name__} trains without noise.",
            got=f"temperature={problem.temperature}",
            remedy="solvers.AlternatingMonteCarlo() for chains, solvers.WideEnsemble() for any network, or temperature=0.0",
        )
    if problem.optimizer != "sgd" and "adam" not in takes:
        raise UnsupportedProblemError(
            f"{type(solver).__name__} trains by SGD; of steps that are not linear in the gradient there is no theory.",
            got=f"optimizer={problem.optimizer!r}",
            remedy='solvers.WideEnsemble(), a reference from wide networks, or optimizer="sgd"',
        )
