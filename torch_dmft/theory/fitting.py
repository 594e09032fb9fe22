"""What would fit: for a solution that needs too much memory, the largest settings that do not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from torch import Tensor

from torch_dmft.core.errors import DMFTError, InvalidInputError
from torch_dmft.core.memory import free_memory
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.solver import Solver

_SETTINGS = {"neurons": 64, "width": 16, "replicas": 4}
"""Settings of solvers that memory grows with, and the smallest value that is worth naming."""
_TOLERANCE = 0.01
"""Of two-time kernels that are asked for exactly, and do not fit."""


def what_fits(
    solver: Solver, problem: Problem, record: Iterable[int] | int | Tensor | None, *, two_time: bool | float
) -> str:
    """Every single change that makes a solution fit, with the largest number that does, as a remedy.

    Args:
        solver: the method.
        problem: the question.
        record: the steps to keep, as ``solve`` takes them; only their number matters, so that none are listed.
        two_time: whether kernels are kept at pairs of times.
    """
    free, number = free_memory(problem.device), problem.number_recorded(record)

    def fits(solver: Any = solver, problem: Problem = problem, count: int = number, **other: bool | float) -> bool:
        try:
            return bool(solver.estimate(problem, range(count), two_time=other.get("two_time", two_time)).memory <= free)
        except DMFTError:  # a setting of its own kind of size
            return False

    found = ["two_time=False"] if two_time and fits(two_time=False) else []
    if two_time is True and fits(two_time=_TOLERANCE):
        found.append(f"two_time={_TOLERANCE}, all pairs to within {_TOLERANCE:.0%}")
    count = _largest(lambda n: fits(count=n), 1, number)
    if count:
        found.append(f"at most {count} recorded step{'s' * (count > 1)} (record=...)")
    rows = _largest(lambda n: fits(problem=replace(problem, probe=problem.kept[:n])), 2, len(problem.kept))
    if rows:
        found.append(f"a probe of at most {rows} rows")
    for name, least in _SETTINGS.items():
        if hasattr(solver, name):
            most = _largest(lambda n, name=name: fits(_with(solver, name, n)), least, getattr(solver, name))  # type: ignore[misc]
            if most:
                found.append(f"{name}={getattr(_with(solver, name, most), name)} at most")
    if found:
        return f"{' or '.join(found)}; or another solver"
    return "a smaller question in several ways at once (rows, outputs, recorded steps), or another solver"


def _largest(fits: Callable[[int], bool], least: int, asked: int) -> int:
    """The largest number from ``least`` to below ``asked`` that fits, 0 if not even the least does."""
    if least >= asked or not fits(least):
        return 0
    low, high = least, asked
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _with(solver: Any, name: str, value: int) -> Any:
    """A solver with another setting, or with one less where it takes pairs."""
    try:
        return replace(solver, **{name: value})
    except InvalidInputError:
        return replace(solver, **{name: value - 1})
