"""solve(problem, solver): one verb for every method of the theory."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from torch_dmft.core.errors import ConvergenceError, InvalidInputError, UnsupportedProblemError
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


def solve(
    problem: Problem,
    solver: Solver | None = None,
    *,
    record: Iterable[int] | int | Tensor | None = None,
    two_time: bool = False,
    progress: bool = False,
) -> Trajectory:
    """Predict what the network does: kernels, outputs and loss through training.

    Args:
        problem: the question, see ``Problem``.
        solver: the method, one of ``torch_dmft.solvers``; None takes the most accurate affordable one, and the answer's
            metadata say which and why.
        record: step or steps to keep, integers in 0..problem.steps; None keeps all. State t is the one *before* update t.
        two_time: keep kernels at pairs of times, ``(time, sample, time, sample)``, not only at equal times.
        progress: show progress bars, which solver was chosen and what it is expected to cost.

    Returns:
        A ``Trajectory`` on the CPU; ``stderr`` holds the method's standard error where it has one.

    Raises:
        InvalidInputError: if the solver is none, or the steps to record are not the problem's.
        UnsupportedProblemError: if the method does not cover the problem; the message names one that does.
        ConvergenceError: if the method fails; nothing unconverged is returned.
        InsufficientMemoryError: if the estimate of what is needed exceeds what is free.
    """
    if not isinstance(problem, Problem):
        raise InvalidInputError(
            "This is no problem.",
            got=type(problem).__name__,
            remedy="Problem.mlp(...) or Problem.like(plan, probe, ...)",
        )
    steps = problem.recorded(record)
    facts: dict[str, str | int | float | bool | None] = {}
    if solver is None:
        from torch_dmft.theory.choose import choose  # the choice knows every solver, and they know this module

        solver, facts["chosen because"] = choose(problem, steps, two_time=two_time)
        if progress:
            print(f"{type(solver).__name__}: {facts['chosen because']}")
    if isinstance(solver, type) or not isinstance(solver, Solver):
        raise InvalidInputError(
            "This is no solver.", got=repr(solver), remedy="a method with its settings, such as solvers.StaticNTK()"
        )
    check_training(problem, solver)
    solver.check(problem)
    cost = solver.estimate(problem, steps, two_time=two_time)
    if progress:
        print(f"{type(solver).__name__}, {cost}")
    cost.admit(problem)
    started = time.perf_counter()
    trajectory = solver.run(problem, steps, two_time=two_time, progress=progress).to("cpu")
    _require_finite(trajectory, problem)
    facts |= {"solver": type(solver).__name__, "gamma0": problem.gamma0, "seconds": time.perf_counter() - started}
    return replace(trajectory, metadata={**facts, **trajectory.metadata})


def _require_finite(found: Trajectory, problem: Problem) -> None:
    """Refuse an answer that is none, for instance of a training run that diverges between the recorded steps."""
    kernels = [kernel for layer in found.layers for kernel in (layer.forward, layer.backward)]
    if all(bool(torch.isfinite(array).all()) for array in (found.outputs, *(kernel.array for kernel in kernels))):
        return
    raise ConvergenceError(
        f"The solution is not finite in {problem.dtype}: training diverges.", remedy=f"an lr smaller than {problem.lr}"
    )


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
