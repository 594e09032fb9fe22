"""Langevin noise: the theory against networks with noise, and what is left of it without data."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.reference.ensembles import Limit, observables, z_scores
from tests.theory.extensions.noise import noisy_networks
from torch_dmft.architecture import Role
from torch_dmft.core.errors import UnsupportedProblemError
from torch_dmft.measurement import Probe
from torch_dmft.parameterization import parameterize
from torch_dmft.theory.chains.order_parameters import free_covariances
from torch_dmft.theory.engine.networks import langevin_noise
from torch_dmft.theory.network import ChainNetwork
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.solve import solve
from torch_dmft.theory.solvers import AlternatingMonteCarlo, FiniteWidth, InfiniteWidth, WideEnsemble

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
    cold = scores(problem.trained(temperature=0.0), networks)
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
    with pytest.raises(UnsupportedProblemError, match=r"AlternatingMonteCarlo.*WideEnsemble"):
        solve(pose(), InfiniteWidth())


def test_plain_networks_with_noise_meet_the_field_theory() -> None:
    problem = pose(steps=4, bias_std=0.5)
    problem = replace(problem, network=ChainNetwork.unnamed(replace(problem.chain, readout_bias=True)))
    theory = solve(problem, AlternatingMonteCarlo(neurons=1000, replicas=4), record=[4])
    expected, own = observables(theory), observables(theory.stderr)

    def largest(posed: Problem) -> dict[str, float]:
        run = solve(posed, WideEnsemble((32, 64, 128), pairs=100), record=[4])
        found, noise, z = observables(run), observables(run.stderr), {}
        for name in ("outputs", "forward.1", "forward.2", "backward.0", "backward.1", "ntk"):
            unfinished = 1e-3 * expected[name].square().mean().sqrt()  # the iteration stops there
            error = (noise[name] ** 2 + own[name] ** 2 + unfinished**2).sqrt()
            z[name] = float(((found[name] - expected[name]) / error).abs().max())
        return z

    z, cold = largest(problem), largest(problem.trained(temperature=0.0))
    assert max(z.values()) <= 5, z
    assert min(cold[name] for name in ("forward.1", "forward.2", "backward.0", "ntk")) > 8, cold


def test_noise_on_a_wrapped_network_is_that_of_the_unit_form(generator: torch.Generator) -> None:
    """sqrt(2 T eta) in unit form, which for a loop of one's own is sqrt(2 T lr_p / N) / gamma0; none on frozen weights."""
    model = nn.Sequential(
        nn.Linear(60, 200), nn.LayerNorm(200), nn.Tanh(), nn.Linear(200, 150), nn.Tanh(), nn.Linear(150, 90)
    )
    model[0].bias.requires_grad_(False)
    plan = parameterize(model, torch.randn(3, 60), gamma0=0.7)
    problem = Problem.like(plan, Probe(torch.randn(3, 60), torch.randn(3, 90)), lr=0.2, steps=1, temperature=0.3)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    langevin_noise(problem, plan, generator)(0)
    rates = {id(parameter): group["lr"] for group in plan.param_groups(0.2) for parameter in group["params"]}
    for rule in plan.rules:
        parameter = model.get_parameter(rule.name)
        kick = (parameter - before[rule.name]).detach()
        if rule.name == "0.bias":
            assert not kick.any()
            continue
        multiplier = {Role.VECTOR: 1.0, Role.OUTPUT_BIAS: 1 / (0.7 * 150**0.5)}.get(rule.role, rule.std)
        expected = multiplier * math.sqrt(2 * 0.3 * 0.2)
        assert expected == pytest.approx(math.sqrt(2 * 0.3 * rates[id(parameter)] / 150) / 0.7)
        relative = float(kick.square().mean()) / expected**2 - 1
        assert abs(relative) <= 5 * math.sqrt(2 / kick.numel()), rule.name


def test_an_antithetic_pair_stays_one_under_noise() -> None:
    """With targets of zero the opposite network is as good, and the mean output of a pair is zero for all times."""
    problem = pose(steps=4)
    run = solve(replace(problem, targets=torch.zeros_like(problem.targets)), WideEnsemble((16, 32), pairs=4))
    assert run.outputs.abs().max() < 1e-12
    assert not torch.allclose(run.layers[1].forward.array[4], run.layers[1].forward.array[0], rtol=0.05)


def test_one_width_has_its_own_prediction_with_noise() -> None:
    """Networks of one finite width against the oracle's."""
    problem = pose()
    networks = noisy_networks(problem, STEPS, {32: 2000, 64: 2000}).estimates[0]
    run = solve(problem, FiniteWidth(32, replicas=400), record=[STEPS])
    found, noise = observables(run), observables(run.stderr)
    for name in ("forward.1", "forward.2", "backward.0", "backward.1"):
        z = (found[name] - networks.mean[name]) / (noise[name] ** 2 + networks.stderr[name] ** 2).sqrt()
        assert float(z.abs().max()) <= 5, name
