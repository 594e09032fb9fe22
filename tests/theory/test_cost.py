"""What a solution needs is told before it starts, in one place, and about right."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from torch_dmft import Problem, solve
from torch_dmft.core.errors import InsufficientMemoryError
from torch_dmft.theory import solvers
from torch_dmft.theory.cost import answer_memory, extrapolation_error

EVERY: dict[str, Any] = {
    "InfiniteWidth": solvers.InfiniteWidth(),
    "GradientIndependence": solvers.GradientIndependence(),
    "AlternatingMonteCarlo": solvers.AlternatingMonteCarlo(),
    "DeepLinear": solvers.DeepLinear(),
    "WhitenedLinear": solvers.WhitenedLinear(),
    "StaticNTK": solvers.StaticNTK(),
    "Perturbation": solvers.Perturbation(),
    "FiniteWidth": solvers.FiniteWidth(128),
    "WideEnsemble": solvers.WideEnsemble(),
}


def _problem(samples: int = 8, steps: int = 10, **options: Any) -> Problem:
    generator = torch.Generator().manual_seed(0)
    inputs = samples**0.5 * torch.linalg.qr(torch.randn(samples, samples, generator=generator)).Q  # white
    targets = torch.sign(torch.randn(samples, generator=generator))
    return Problem.mlp(inputs, targets, **{"depth": 2, "lr": 0.05, "steps": steps, "activation": "linear", **options})


@pytest.mark.parametrize("solver", EVERY)
def test_what_does_not_fit_is_refused_before_any_work(solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(EVERY[solver]), "run", lambda *_, **__: pytest.fail("it began"))
    huge = _problem(samples=400, steps=10**5)
    needed = EVERY[solver].estimate(huge).memory / 2**30
    assert needed > 100
    with pytest.raises(InsufficientMemoryError, match=rf"needs about {needed:.1f} GiB.*GiB free.*or another solver"):
        solve(huge, EVERY[solver])
    if solver != "AlternatingMonteCarlo":  # holds all pairs of times, whatever is recorded
        assert EVERY[solver].estimate(huge, record=[0, 5]).memory < 0.7 * 2**30 * needed


@pytest.mark.parametrize("solver", EVERY)
def test_the_answer_is_a_part_of_what_is_needed(solver: str) -> None:
    problem = _problem()
    estimate = EVERY[solver].estimate
    for record, two_time in ((None, False), ([0, 5, 10], True)):
        records = len(problem.recorded(record))
        cost = estimate(problem, record, two_time=two_time)
        found = answer_memory(problem, records, two_time=two_time)
        assert found < cost.memory
        assert cost.seconds > 0
        assert "GiB" in str(cost)
    assert estimate(problem, two_time=True).memory - estimate(problem).memory >= 100 * answer_memory(
        problem, 1, two_time=False
    )


def test_answer_memory_counts_the_answer() -> None:
    problem = _problem()
    for two_time in (False, True):
        answer = solve(problem, solvers.StaticNTK(), record=[0, 5, 10], two_time=two_time)
        arrays = [answer.ntk.array]
        arrays += [kernel.array for layer in answer.layers for kernel in (layer.forward, layer.backward, layer.ntk)]
        held = sum(array.numel() * array.element_size() for array in arrays)
        assert answer_memory(problem, 3, two_time=two_time) == held


SCRIPT = r"""
import re, torch
from pathlib import Path
from torch_dmft import solve
from torch_dmft.theory import solvers
from tests.theory.test_cost import _problem

def peak():  # what getrusage tells begins with the peak of the process that started this one
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])

solve(_problem(activation="tanh", steps=2), solvers.InfiniteWidth(256, replicas=1))  # what is loaded on first use
before = peak()
problem, solver = _problem(**{problem}), solvers.{solver}
solve(problem, solver)
print((peak() - before) / solver.estimate(problem).memory)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc tells the peak memory")
@pytest.mark.parametrize(
    ("problem", "solver"),
    [
        ({"samples": 150, "steps": 100, "activation": "tanh"}, "StaticNTK()"),
        ({"samples": 100, "steps": 10, "activation": "tanh"}, "InfiniteWidth(2048, replicas=2)"),
    ],
    ids=["StaticNTK", "InfiniteWidth"],
)
def test_memory_is_within_a_factor_of_three(problem: dict[str, Any], solver: str) -> None:
    script = SCRIPT.format(problem=problem, solver=solver)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
    assert 1 / 3 < float(done.stdout) < 3


@pytest.mark.parametrize(
    "solver",
    [solvers.InfiniteWidth(1024), solvers.WideEnsemble((64, 128, 256), pairs=8)],
    ids=["InfiniteWidth", "WideEnsemble"],
)
def test_the_expected_error_is_about_the_reported_one(solver: Any) -> None:
    problem = _problem(activation="tanh", depth=3)
    run = solve(problem, solver, record=[10])
    assert run.stderr is not None
    kernels = [(layer.forward, layer.backward) for layer in run.layers[:-1]]
    errors = [(layer.forward, layer.backward) for layer in run.stderr.layers[:-1]]
    worst = max(
        float(error.array.norm() / kernel.array.norm())
        for pair, spread in zip(kernels, errors, strict=True)
        for kernel, error in zip(pair, spread, strict=True)
    )
    expected = solver.estimate(problem).error
    assert 0.5 < worst / expected < 2


def test_extrapolation_loses_what_least_squares_say() -> None:
    """Of y = a + b / N at two widths N and 2 N the fit is exact: a = 2 y(2 N) - y(N), of variance 4 / (2 N) + 1 / N."""
    ratio = extrapolation_error((100, 200), 4) / extrapolation_error((400, 800), 1)
    assert ratio == pytest.approx(1.0, rel=1e-10)
    assert extrapolation_error((100, 200), 1) == pytest.approx(2.2 * (3 / 100) ** 0.5, rel=1e-10)


def test_progress_shows_the_estimate_before_it_starts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(solvers.StaticNTK, "run", run)
    with pytest.raises(KeyboardInterrupt):
        solve(_problem(), solvers.StaticNTK(), progress=True)
    assert "StaticNTK, estimate: " in capsys.readouterr().out
