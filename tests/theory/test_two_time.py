"""Predictions of two-time kernels to a tolerance: those of all pairs, by every solver that samples neurons."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.measurement.test_two_time import errors, kernels
from torch_dmft import Problem, compare, solve
from torch_dmft.core.errors import InvalidInputError, NotRecordedError, UnsupportedProblemError
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.theory import solvers
from torch_dmft.theory.held import answer_memory
from torch_dmft.theory.solver import Solver

STEPS, TOLERANCE = 20, 0.02


def problem(**options: Any) -> Problem:
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(5, 7, generator=generator), torch.randn(5, 1, generator=generator)
    return Problem.mlp(inputs, targets, **{"depth": 2, "activation": "tanh", "lr": 0.3, "steps": STEPS, **options})


SOLVERS: dict[str, Solver] = {
    "InfiniteWidth": solvers.InfiniteWidth(neurons=256, replicas=2),
    "in strides": solvers.InfiniteWidth(neurons=256, replicas=2, strides=True),
    "GradientIndependence": solvers.GradientIndependence(neurons=256, replicas=2),
    "FiniteWidth": solvers.FiniteWidth(64, replicas=4),
    "WideEnsemble": solvers.WideEnsemble(widths=(16, 32), pairs=4),
}
BATCHES = [torch.arange(step, step + 2) % 5 for step in range(STEPS)]
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in SOLVERS),
    ("InfiniteWidth", {"gamma0": 4.0, "lr": 0.1}),
    ("InfiniteWidth", {"batches": BATCHES}),
    ("InfiniteWidth", {"optimizer": "adam", "lr": 0.02}),
    ("FiniteWidth", {"batches": BATCHES, "optimizer": "adam", "lr": 0.02}),
]


def worst(exact: Trajectory, found: Trajectory) -> float:
    """The largest error of all kernels and pairs of times, in units of the tolerance."""
    shares = []
    for known, other in zip(kernels(exact), kernels(found), strict=True):
        error, size = errors(known, other.values)
        shares.append(float((error / size).max()))
        bound = max(other.bound(t, s) / float(size[t, s]) for t in (0, 3, STEPS) for s in range(STEPS + 1))
        # Bounds add up over networks, whose kernels differ; of a limit they are weighted by more than one.
        assert shares[-1] <= max(bound, 1e-6) + 1e-6
    return max(shares) / TOLERANCE


@pytest.mark.parametrize(
    ("name", "options"), CASES, ids=lambda part: part if isinstance(part, str) else ", ".join(part)
)
def test_all_pairs_are_within_the_tolerance(name: str, options: dict[str, Any]) -> None:
    posed, solver = problem(**options), SOLVERS[name]
    exact, few = solve(posed, solver, two_time=True), solve(posed, solver, two_time=TOLERANCE)
    assert torch.equal(exact.outputs, few.outputs)
    assert worst(exact, few) < 1
    for known, other in zip(kernels(exact), kernels(few), strict=True):
        off = 1e-2 if name == "in strides" else 1e-5  # there equal times are interpolated by themselves
        assert torch.allclose(known.equal_time, other.array, rtol=off, atol=off)
    assert few.stderr is not None
    with pytest.raises(NotRecordedError, match="equal times only"):
        few.stderr.layers[1].forward.between(0, 1)
    if not options and name in ("InfiniteWidth", "in strides"):
        assert torch.equal(solve(posed, solver).layers[1].forward.array, few.layers[1].forward.array)


def test_a_mean_needs_the_factors_of_all_replicas() -> None:
    posed, solver = problem(gamma0=4.0, lr=0.1), SOLVERS["FiniteWidth"]
    exact, few = solve(posed, solver, two_time=True), solve(posed, solver, two_time=TOLERANCE)
    kernel = few.layers[1].backward
    assert len(kernel.factors.parts) == 4
    every = torch.arange(STEPS + 1)
    one = sum(part.flatten(0, 1) @ part.flatten(0, 1).T for part in kernel.factors.parts[:2]) / 2
    error, size = errors(exact.layers[1].backward, one.reshape(kernel.values.shape))
    assert float((error / size).max()) > 2 * TOLERANCE
    assert kernel.factors.between(every, every).shape == exact.layers[1].backward.values.shape


def test_answers_are_compared_cut_and_saved(tmp_path: Any) -> None:
    posed = problem(test_inputs=torch.randn(2, 7, generator=torch.Generator().manual_seed(1)))
    few = solve(posed, SOLVERS["InfiniteWidth"], two_time=TOLERANCE, log=tmp_path / "log")
    again = solve(posed, SOLVERS["InfiniteWidth"], two_time=TOLERANCE, log=tmp_path / "log")
    assert few.layers == again.layers
    few.save(tmp_path / "few.npz")
    assert Trajectory.load(tmp_path / "few.npz") == few
    some = few.at_steps(torch.tensor([2, 9, 20])).at_rows(torch.tensor([6, 1]))
    whole, cut = few.layers[1].forward.between(2, 20), some.layers[1].forward.values[0, :, 2]
    assert torch.allclose(cut, whole[[6, 1]][:, [6, 1]], rtol=1e-5)
    assert compare(few, solve(posed, SOLVERS["InfiniteWidth"])).deviations


def test_who_does_not_sample_neurons_refuses() -> None:
    for solver in (solvers.StaticNTK(), solvers.AlternatingMonteCarlo(), solvers.Perturbation()):
        with pytest.raises(UnsupportedProblemError, match=r"sampled neurons.*InfiniteWidth"):
            solve(problem(gamma0=0.1), solver, two_time=TOLERANCE)
        with pytest.raises(UnsupportedProblemError, match=r"sampled neurons.*InfiniteWidth"):
            solver.run(problem(gamma0=0.1), torch.tensor([0, 1]), two_time=TOLERANCE, progress=False)
    with pytest.raises(InvalidInputError, match=r"two_time=0\.01"):
        solve(problem(), solvers.InfiniteWidth(), two_time=1.5)


def test_costs_of_long_runs_are_those_of_directions() -> None:
    posed = problem(steps=5000)
    solver = solvers.InfiniteWidth(neurons=2048, replicas=2)
    equal, few, every = (solver.estimate(posed, two_time=each) for each in (False, 0.01, True))
    assert equal.memory < few.memory < 2 * 2**30 < answer_memory(posed, 5001, two_time=True) < every.memory
    assert solver.estimate(posed, two_time=1e-4).memory > few.memory
    assert equal.seconds < few.seconds < every.seconds
    assert answer_memory(posed, 5001, two_time=0.01) == answer_memory(posed, 5001, two_time=False)


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc tells the peak memory")
@pytest.mark.parametrize("name", ["network", "theory"])
def test_every_pair_of_5000_steps_is_known_to_a_percent_in_two_gibibytes(name: str) -> None:
    command = [sys.executable, "-m", "tests.theory.long_two_time", name]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["peak"] < 2 * 2**30 < 4 * found["one array of all pairs"]
    assert found["worst"] < 1
    assert found["moved"] > 0.3
