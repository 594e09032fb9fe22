"""Standard errors of every sampled method are honest: over forty seeds z-scores have unit size, entries pooled."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.reference.ensembles import observables
from torch_dmft import Problem, Trajectory, solve, solvers

SEEDS = 40
Build = Callable[[torch.Generator], Any]


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square().sum()


def pose(steps: int) -> Problem:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(4, 6, generator=generator), torch.sign(torch.randn(3, 1, generator=generator))
    return Problem.mlp(x[:3], y, depth=2, lr=0.3, steps=steps, loss=half_square, test_inputs=x[3:])


# What a method tends to, as far more draws or another method know it, and the method with few draws.
METHODS: dict[str, tuple[Build, Build]] = {
    "InfiniteWidth": (
        lambda g: solvers.InfiniteWidth(8192, 24, generator=g),
        lambda g: solvers.InfiniteWidth(1024, 4, generator=g),
    ),
    "InfiniteWidth by strides": (
        lambda g: solvers.InfiniteWidth(8192, 24, generator=g),
        lambda g: solvers.InfiniteWidth(1024, 4, generator=g, strides=True),
    ),
    "GradientIndependence": (
        lambda g: solvers.GradientIndependence(8192, 24, generator=g),
        lambda g: solvers.GradientIndependence(1024, 4, generator=g),
    ),
    "AlternatingMonteCarlo": (
        lambda g: solvers.InfiniteWidth(8192, 24, generator=g),
        lambda g: solvers.AlternatingMonteCarlo(1000, replicas=4, generator=g),
    ),
    "Perturbation": (
        lambda g: solvers.Perturbation(2**15, 16, generator=g),
        lambda g: solvers.Perturbation(512, 4, generator=g),
    ),
    "WideEnsemble": (
        lambda g: solvers.InfiniteWidth(8192, 24, generator=g),
        lambda g: solvers.WideEnsemble((64, 128), pairs=8, generator=g),
    ),
    "FiniteWidth": (
        lambda g: solvers.FiniteWidth(128, 1024, generator=g),
        lambda g: solvers.FiniteWidth(128, 6, generator=g),
    ),
}


def scores(precise: Trajectory, runs: list[Trajectory]) -> dict[str, Tensor]:
    """(found - precise) / standard error of every observable that is sampled, over all runs and entries."""
    exact, exact_error = observables(precise), observables(precise.stderr)
    found: dict[str, list[Tensor]] = {}
    for run in runs:
        errors = observables(run.stderr)
        for name, values in observables(run).items():
            if float(errors[name].max()) > 1e-4 * float(values.abs().max()):  # given kernels have no error
                z = (values - exact[name]) / (errors[name] ** 2 + exact_error[name] ** 2).sqrt()
                found.setdefault(name, []).append(z.flatten())
    return {name: torch.cat(parts) for name, parts in found.items()}


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
def test_z_scores_have_unit_size(method: str) -> None:
    """About the other answer, not about their own mean: a bias beyond the error bar shows too."""
    precise, few = METHODS[method]
    steps = 40 if "strides" in method else 4
    problem, record = pose(steps), [steps // 2, steps]
    reference = solve(problem, precise(torch.Generator().manual_seed(10**6)), record=record)
    runs = [solve(problem, few(torch.Generator().manual_seed(seed)), record=record) for seed in range(SEEDS)]
    z = scores(reference, runs)
    sizes = {name: float(values.square().mean().sqrt()) for name, values in z.items()}
    assert {"outputs", "ntk", "forward.1", "forward.2", "backward.0", "backward.1"} <= set(z)
    assert 0.8 < float(torch.cat(list(z.values())).square().mean().sqrt()) < 1.2, sizes
    # Of forty numbers, as entries of one observable go together: five standard errors of their root mean square.
    assert all(abs(size - 1) < 5 / math.sqrt(2 * SEEDS) for size in sizes.values()), sizes
