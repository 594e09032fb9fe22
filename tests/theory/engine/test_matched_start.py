"""Matched initial weights of plain networks: what is matched exactly, what is left alone, and honest, smaller errors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import torch_dmft as dmft
from tests.reference.ensembles import observables
from torch_dmft.parameterization import Plan
from torch_dmft.theory.engine import networks
from torch_dmft.theory.engine.matched_start import match_moments, matchable
from torch_dmft.theory.engine.networks import initialise, network_of
from torch_dmft.theory.solvers import DeepLinear, WideEnsemble, wide_ensemble


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square().sum()


def drawn(plan: Plan) -> dict[str, Tensor]:
    """Initial parameters in units of their standard deviation, matched."""
    initialise(plan, torch.Generator().manual_seed(7))
    match_moments(plan, matchable(plan))
    return {rule.name: plan.model.get_parameter(rule.name).detach() / rule.std for rule in plan.rules if rule.std}


def is_white(rows: Tensor) -> bool:
    """Whether rows over neurons have mean zero and the unit covariance."""
    rows = torch.cat([torch.ones_like(rows[:1]), rows])
    return bool(torch.allclose(rows @ rows.T / rows.shape[1], torch.eye(len(rows)).double(), atol=1e-10))


def test_columns_of_a_chain_are_white_and_hidden_weights_plain(generator):
    inputs = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    problem = dmft.Problem.mlp(inputs, torch.tensor([0, 1, 2, 0]), depth=2, bias_std=0.4, width_ratios=[2.0, 1.0])
    plan = network_of(problem, 32)
    found = drawn(plan)
    assert found["0.weight"].shape == (64, 5)
    assert is_white(torch.cat([found["0.weight"].T, found["0.bias"][None]]))  # they share their neurons
    assert is_white(torch.cat([found["2.bias"][None], found["4.weight"]]))
    initialise(plan, torch.Generator().manual_seed(7))
    plain = {rule.name: plan.model.get_parameter(rule.name).detach() / rule.std for rule in plan.rules if rule.std}
    assert torch.equal(found["2.weight"], plain["2.weight"])
    assert not any(is_white(plain[name].T) for name in ("0.weight", "2.weight"))


def test_columns_of_a_convolution_and_of_a_flattened_readout_are_white(generator):
    inputs = torch.randn(3, 1, 4, 4, generator=generator, dtype=torch.float64)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.Tanh(), nn.Conv2d(6, 6, 1), nn.Tanh(), nn.Flatten(), nn.Linear(24, 2)
    ).double()
    plan = dmft.parameterize(model, inputs, generator=generator)
    probe = dmft.Probe(inputs, torch.tensor([0, 1, 0]))
    wide = network_of(dmft.Problem.like(plan, probe, lr=0.1, steps=1), 4 * 64)
    found = drawn(wide)
    assert is_white(torch.cat([found["0.weight"].flatten(1).T, found["0.bias"][None]]))
    assert is_white(found["5.weight"])


def test_crowded_populations_stay_plain(generator):
    inputs = torch.randn(12, 9, generator=generator, dtype=torch.float64)
    problem = dmft.Problem.mlp(inputs, torch.randn(12, 1, generator=generator, dtype=torch.float64), depth=2)
    plan = network_of(problem, 32)
    assert matchable(plan) == (False, True)  # nine columns and a readout for 32 neurons
    found = drawn(plan)
    assert not is_white(found["0.weight"].T)
    assert is_white(found["4.weight"])
    assert matchable(network_of(problem, 36)) == (True, True)


@pytest.fixture
def data(generator):
    return torch.randn(4, 5, generator=generator), torch.sign(torch.randn(4, 1, generator=generator))


def test_every_width_is_matched_as_the_smallest_can_be(data, monkeypatch):
    """Where one width had another law than the others, the corrections b/N would not be one line."""
    seen = []
    monkeypatch.setattr(wide_ensemble, "match_moments", lambda plan, which: seen.append((plan.width, tuple(which))))
    problem = dmft.Problem.mlp(*data, depth=2, lr=0.05, steps=1)
    dmft.solve(problem, WideEnsemble((16, 12, 64), pairs=4))
    assert set(seen) == {(12, (False, True)), (16, (False, True)), (64, (False, True))}


def test_the_same_number_of_networks_says_more(data, monkeypatch):
    problem = dmft.Problem.mlp(*data, depth=2, loss=half_square, lr=0.08, steps=4)
    runs = [dmft.solve(problem, WideEnsemble((32, 64, 128), pairs=30), record=[4])]
    monkeypatch.setattr(networks, "matchable", lambda plan: (False,) * len(matchable(plan)))
    runs.append(dmft.solve(problem, WideEnsemble((32, 64, 128), pairs=30), record=[4]))
    matched, plain = (observables(run.stderr) for run in runs)
    for name in ("outputs", "ntk", "forward.1", "backward.1"):
        assert float(matched[name].norm() / plain[name].norm()) < 0.85, name


@pytest.mark.long
def test_standard_errors_are_honest(data):
    """Forty seeds against the exact solution; entries pooled, as a reader of the report would."""
    problem = dmft.Problem.mlp(*data, depth=2, activation="linear", loss=half_square, lr=0.08, steps=6)
    exact = observables(dmft.solve(problem, DeepLinear(), record=[0, 3, 6]))
    scores, fits = [], []
    for seed in range(40):
        random = torch.Generator().manual_seed(seed)
        run = dmft.solve(problem, WideEnsemble((32, 64, 128), pairs=20, generator=random), record=[0, 3, 6])
        values, errors = observables(run), observables(run.stderr)
        fits.append(run.metadata["chi_squared"])
        for name, value in values.items():
            varies = errors[name] > 1e-5 * value.square().mean().sqrt()
            scores.append(((value - exact[name]) / errors[name])[varies])
    assert 0.8 < float(torch.cat(scores).std()) < 1.2
    assert abs(sum(fits) / 40 - 1) < 0.5
