"""Langevin noise: the theory against networks with noise, and what is left of it without data."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.reference.ensembles import Limit, observables, z_scores
from tests.theory.extensions.noise import noisy_networks
from torch_dmft.core.errors import UnsupportedProblemError
from torch_dmft.theory.choose import choose
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.solve import solve
from torch_dmft.theory.solvers import AlternatingMonteCarlo, InfiniteWidth
from torch_dmft.theory.solvers.order_parameters import free_covariances

STEPS = 6


def pose(**settings: object) -> Problem:
    generator = torch.Generator().manual_seed(5)
    inputs = 1.5 * torch.randn(2, 4, dtype=torch.float64, generator=generator)
    targets = torch.tensor([2.0, -1.0], dtype=torch.float64)
    defaults = {"depth": 2, "lr": 0.15, "steps": STEPS, "weight_decay": 0.5, "temperature": 0.6}
    return Problem.mlp(inputs, targets, loss=lambda f, y: 0.5 * (f - y).square().sum(), **{**defaults, **settings})


def scores(problem: Problem, networks: Limit) -> dict[str, float]:
    """The largest z-score of every observable at the last step."""
    run = solve(problem, AlternatingMonteCarlo(neurons=1000, replicas=4), record=[STEPS])
    values, errors = observables(run), observables(run.stderr)
    names = [name for name in networks.mean if name in values]
    found = z_scores(networks, {n: values[n] for n in names}, {n: errors[n] for n in names})
    return {name: float(score.abs().max()) for name, score in found.items()}


def test_theory_is_the_limit_of_noisy_networks() -> None:
    problem = pose()
    networks = noisy_networks(problem, STEPS, {32: 3000, 64: 2000, 128: 1000})
    assert max(networks.goodness.values()) < 5
    found = scores(problem, networks)
    assert max(found.values()) <= 5, found
    cold = scores(replace(problem, temperature=0.0), networks)
    assert min(cold[name] for name in ("outputs", "forward.1", "forward.2", "backward.0", "backward.1")) > 5, cold


@pytest.mark.long
def test_with_random_biases_and_a_gain() -> None:
    problem = pose(bias_std=0.5, gain=1.3, temperature=0.4)
    networks = noisy_networks(problem, STEPS, {32: 6000, 64: 4000, 128: 2000})
    found = scores(problem, networks)
    assert max(found.values()) <= 5, found


def test_an_untrained_weight_has_the_covariance_of_its_recursion(generator: torch.Generator) -> None:
    problem = pose(steps=5, lr=0.3)
    keep, walkers = 1 - 0.3 * 0.5, 200_000
    path = [torch.randn(walkers, generator=generator, dtype=torch.float64)]
    for _ in range(5):
        path.append(keep * path[-1] + math.sqrt(2 * 0.6 * 0.3) * torch.randn(walkers, generator=generator))
    walks = torch.stack(path)
    expected = sum(free_covariances(problem, 6))
    standard_error = ((expected.diagonal() * expected.diagonal()[:, None] + expected**2) / walkers).sqrt()
    assert float(((walks @ walks.mT / walkers - expected) / standard_error).abs().max()) <= 5


def test_in_small_steps_the_covariance_is_that_of_an_ornstein_uhlenbeck_process() -> None:
    """C(t, s) = e^(-lambda (t+s)) + (T / lambda) (e^(-lambda |t-s|) - e^(-lambda (t+s))), up to O(eta)."""
    errors = []
    for lr in (0.02, 0.01):
        time = lr * torch.arange(round(2 / lr) + 1, dtype=torch.float64)
        forgotten = torch.exp(-0.5 * (time[:, None] + time))
        flow = forgotten + 0.6 / 0.5 * (torch.exp(-0.5 * (time[:, None] - time).abs()) - forgotten)
        discrete = sum(free_covariances(pose(lr=lr, steps=len(time) - 1), len(time)))
        errors.append(float((discrete - flow).abs().max()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.2)


def test_who_takes_no_noise_says_so() -> None:
    assert isinstance(choose(pose())[0], AlternatingMonteCarlo)
    with pytest.raises(UnsupportedProblemError, match="AlternatingMonteCarlo"):
        solve(pose(), InfiniteWidth())
    biased = pose()
    with pytest.raises(UnsupportedProblemError, match="output bias"):
        solve(replace(biased, chain=replace(biased.chain, readout_bias=True)), AlternatingMonteCarlo())
