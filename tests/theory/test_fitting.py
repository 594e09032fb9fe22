"""Of a solution that needs too much memory it is told what would fit, and that fits."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from torch_dmft.core.errors import InsufficientMemoryError
from torch_dmft.theory import Problem, solve, solvers
from torch_dmft.theory.fitting import what_fits

GENERATOR = torch.Generator().manual_seed(0)
PROBLEM = Problem.mlp(torch.randn(60, 20, generator=GENERATOR), torch.ones(60), depth=2, steps=200)
SOLVERS = [
    solvers.InfiniteWidth(4096, replicas=8),
    solvers.FiniteWidth(2048, replicas=16),
    solvers.WideEnsemble((64, 4096), pairs=40),
    solvers.StaticNTK(),
]


@pytest.mark.parametrize("two_time", [False, True])
@pytest.mark.parametrize("share", [0.9, 0.3, 0.05])
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
def test_every_remedy_fits_and_is_the_largest(
    solver: Any, share: float, two_time: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = PROBLEM.recorded()
    free = int(share * solver.estimate(PROBLEM, steps, two_time=two_time).memory)
    monkeypatch.setattr("torch_dmft.theory.fitting.free_memory", lambda device: free)
    told = what_fits(solver, PROBLEM, steps, two_time=two_time)

    def needs(solver: Any = solver, problem: Problem = PROBLEM, count: int = len(steps), two: bool = two_time) -> int:
        return solver.estimate(problem, steps[torch.linspace(0, 200, count).round().long()], two_time=two).memory

    known = 0
    for pattern, need in (
        (r"at most (\d+) recorded", lambda n: needs(count=n)),
        (r"probe of at most (\d+) rows", lambda n: needs(problem=replace(PROBLEM, probe=PROBLEM.kept[:n]))),
        (r"neurons=(\d+)", lambda n: needs(replace(solver, neurons=n))),
        (r"width=(\d+)", lambda n: needs(replace(solver, width=n))),
        (r"replicas=(\d+)", lambda n: needs(replace(solver, replicas=n))),
    ):
        found = re.search(pattern, told)
        if found:
            known += 1
            assert need(int(found[1])) <= free < need(int(found[1]) + 1)
    assert ("two_time=False" in told) == (two_time and needs(two=False) <= free)
    assert known or share < 0.9
    assert "or another solver" in told


def test_a_refused_solution_says_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    free = solvers.StaticNTK().estimate(PROBLEM, range(100)).memory
    monkeypatch.setattr("torch_dmft.core.memory.free_memory", lambda device: free)
    monkeypatch.setattr("torch_dmft.theory.fitting.free_memory", lambda device: free)
    monkeypatch.setattr("torch_dmft.core.memory._TRIFLE", 0)
    with pytest.raises(InsufficientMemoryError, match=r"Remedy: at most 100 recorded steps"):
        solve(PROBLEM, solvers.StaticNTK())
    free = 1000
    with pytest.raises(InsufficientMemoryError, match="in several ways at once"):
        solve(PROBLEM)


def test_ten_million_steps_are_refused_at_once() -> None:
    """Steps are counted, not listed one by one."""
    problem = PROBLEM.trained(steps=10**7)
    with pytest.raises(InsufficientMemoryError, match="recorded steps"):
        solve(problem, solvers.StaticNTK(), record=range(10**7))
