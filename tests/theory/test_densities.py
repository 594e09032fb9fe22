"""The densities of h, z and g at any time: wide networks, the engine and Algorithm 1 draw them from one law.

Of every method there are several independent runs, so that the standard errors of moments are those between runs.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import torch_dmft as dmft
from torch_dmft.theory.solvers import AlternatingMonteCarlo, GradientIndependence, InfiniteWidth

P, STEPS, WIDTH = 3, 6, 512
RUNS = 8
FIELDS = ("preactivation", "gradient", "pregradient")


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square().sum()


@pytest.fixture(scope="module")
def problem() -> dmft.Problem:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(P, 4, generator=generator, dtype=torch.float64)
    y = torch.tensor([[1.0], [-1.0], [1.0]], dtype=torch.float64)
    return dmft.Problem.mlp(x, y, depth=2, lr=0.2, steps=STEPS, gamma0=1.5, loss=half_square)


def network(problem: dmft.Problem, seed: int) -> dict[str, Tensor]:
    """Fields of a wide network in unit form, the update written out: ``(step, layer, sample, neuron)``."""
    generator = torch.Generator().manual_seed(seed)
    x, y, gamma0 = problem.inputs / 2, problem.target_values[:, 0], problem.gamma0  # / sqrt(D)
    shapes = (WIDTH, 4), (WIDTH, WIDTH), (WIDTH,)
    W0, W1, w = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    found: dict[str, list[Tensor]] = {name: [] for name in FIELDS}
    for _ in range(STEPS + 1):
        h1 = x @ W0.T
        h2 = torch.tanh(h1) @ W1.T / math.sqrt(WIDTH)
        f = torch.tanh(h2) @ w / (gamma0 * WIDTH)
        slopes = [1 - torch.tanh(h) ** 2 for h in (h1, h2)]
        z2 = w.expand(P, -1)
        z1 = (slopes[1] * z2) @ W1 / math.sqrt(WIDTH)
        g1, g2 = slopes[0] * z1, slopes[1] * z2
        for name, pair in zip(FIELDS, ((h1, h2), (g1, g2), (z1, z2)), strict=True):
            found[name].append(torch.stack(pair))
        push = problem.lr * gamma0 * (y - f)[:, None]
        W0, W1, w = (
            W0 + (push * g1).T @ x,
            W1 + (push * g2).T @ torch.tanh(h1) / math.sqrt(WIDTH),
            w + (push * torch.tanh(h2)).sum(0),
        )
    return {name: torch.stack(steps) for name, steps in found.items()}


def solved(problem: dmft.Problem, solver) -> dict[str, Tensor]:
    """The same of a prediction, at the steps that it keeps."""
    layers = dmft.solve(problem, solver, record=[0, 2, 4, 6]).layers[:-1]
    assert all(layer.fields.steps.tolist() == [0, 2, 4, 6] for layer in layers)
    shown = {name: torch.stack([getattr(layer.fields, name) for layer in layers], dim=1) for name in FIELDS}
    return {name: values[:, :, :, 0] if values.ndim == 5 else values for name, values in shown.items()}


@pytest.fixture(scope="module")
def networks(problem) -> list[dict[str, Tensor]]:
    return [{name: values[::2] for name, values in network(problem, seed).items()} for seed in range(RUNS)]


def engine(problem) -> list[dict[str, Tensor]]:
    return [solved(problem, InfiniteWidth(512, 1, generator=torch.Generator().manual_seed(s))) for s in range(RUNS)]


def algorithm1(problem) -> list[dict[str, Tensor]]:
    draws = (torch.Generator().manual_seed(seed) for seed in range(RUNS))
    return [solved(problem, AlternatingMonteCarlo(512, replicas=1, stride=None, generator=each)) for each in draws]


def worst_moment(one: list[dict[str, Tensor]], other: list[dict[str, Tensor]]) -> float:
    """The largest difference of a second or fourth moment in standard errors, pooled over samples."""
    worst = 0.0
    for name in FIELDS:
        for power in (2, 4):
            moments = [torch.stack([run[name].pow(power).mean((2, 3)) for run in runs]) for runs in (one, other)]
            error = sum(each.var(0) / len(each) for each in moments).sqrt() + 1e-3 * moments[0].mean(0)
            worst = max(worst, float(((moments[0].mean(0) - moments[1].mean(0)) / error).abs().max()))
    return worst


def distance(one: Tensor, other: Tensor) -> float:
    """Kolmogorov and Smirnov's largest difference of two distribution functions, in units of sqrt(1 / n + 1 / m)."""
    both = torch.cat([one, other]).sort().values
    rank = [torch.searchsorted(draws.sort().values, both, right=True) / len(draws) for draws in (one, other)]
    return float((rank[0] - rank[1]).abs().max()) / math.sqrt(1 / len(one) + 1 / len(other))


def worst_distance(one: list[dict[str, Tensor]], other: list[dict[str, Tensor]]) -> float:
    """Over fields, times, layers and samples; neurons of all runs together."""
    worst = 0.0
    for name in FIELDS:
        draws = [torch.cat([run[name] for run in runs], dim=-1).flatten(0, 2) for runs in (one, other)]
        worst = max(worst, *(distance(*pair) for pair in zip(*draws, strict=True)))
    return worst


@pytest.mark.parametrize("method", [engine, algorithm1])
def test_densities_are_those_of_wide_networks(problem, networks, method) -> None:
    found = method(problem)
    assert worst_moment(found, networks) < 5
    assert worst_distance(found, networks) < 2.5  # independent draws exceed it once in 10^5


def test_other_theories_and_times_have_other_densities(problem, networks) -> None:
    independent = [
        solved(problem, GradientIndependence(512, 1, generator=torch.Generator().manual_seed(seed)))
        for seed in range(4)
    ]
    assert worst_moment(independent, networks) > 5
    earlier = [{name: values[:1].expand_as(values) for name, values in run.items()} for run in networks]
    assert worst_distance(earlier, networks) > 2.5
