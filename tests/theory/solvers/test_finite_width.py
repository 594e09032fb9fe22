"""Networks of one width: the law of dense networks, closed forms at the start, and the fall of the spread with width."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor, nn

import torch_dmft as dmft
from tests.reference.ensembles import ensemble, observables
from tests.theory.solvers.limit import chain_of, training_of
from torch_dmft.core.errors import InvalidInputError, NotRecordedError, UnsupportedModelError
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.theory.solvers import FiniteWidth, finite_width

P, RECORD = 4, (0, 3, 6)


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square().sum()


def problem(depth: int = 2, **options) -> dmft.Problem:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(P, 5, generator=generator)
    y = torch.sign(torch.randn(P, 1, generator=generator))
    return dmft.Problem.mlp(x, y, **{"depth": depth, "loss": half_square, "lr": 0.1, "steps": 6} | options)


def worst_z(found: Tensor, found_error: Tensor, expected: Tensor, expected_error: Tensor) -> float:
    error = (found_error.double() ** 2 + expected_error.double() ** 2).sqrt()
    varies = error > 1e-5 * expected.double().square().mean().sqrt()
    return float(((found.double() - expected)[varies] / error[varies]).abs().max()) if varies.any() else 0.0


@pytest.mark.parametrize("tolerance", [1e-2, 0.0], ids=["lazily sampled", "dense"])
def test_means_and_spreads_are_those_of_the_oracles_networks(monkeypatch, tolerance):
    monkeypatch.setattr(finite_width, "_DENSE_FROM", 9.0)  # lazy sampling also where it saves nothing
    posed = problem(bias_std=0.4, width_ratios=[0.5, 1.0])
    found = dmft.solve(posed, FiniteWidth(64, tolerance=tolerance), record=RECORD)
    assert found.metadata["dense"] == (tolerance == 0.0)
    generator = torch.Generator().manual_seed(1)
    oracle = ensemble(chain_of(posed), training_of(posed), 64, 1024, generator, record=RECORD, keep=True)
    means, errors, spreads = observables(found), observables(found.stderr), observables(found.spread)
    for name, draws in oracle.draws.items():
        assert worst_z(means[name], errors[name], oracle.mean[name], oracle.stderr[name]) < 5, name
        # The variance of a sample variance is (kurtosis - 1 + 2 / (n - 1)) / n times the variance squared.
        centered = draws - draws.mean(0)
        kurtosis = centered.pow(4).mean(0) / centered.square().mean(0).square().clamp_min(1e-30)
        relative = ((kurtosis - 1) / 4).clamp_min(0.1).sqrt()
        std = draws.std(0)
        z = worst_z(spreads[name], std * relative / math.sqrt(64), std, std * relative / math.sqrt(len(draws)))
        assert z < 5, name


@pytest.fixture(scope="module")
def two_layers() -> Trajectory:
    return dmft.solve(problem(depth=1, steps=0, gamma0=0.5), FiniteWidth(64, replicas=512))


def test_two_layer_kernels_start_with_the_variance_of_averages(two_layers):
    posed = problem(depth=1)
    nodes, weights = hermegauss(40)
    nodes, weights = torch.tensor(nodes), torch.tensor(weights) / math.sqrt(2 * math.pi)
    pairs = weights[:, None] * weights

    def variance(kernel: Tensor, mu: int, alpha: int, function) -> Tensor:
        """Var of the average over N neurons of function(h_mu) function(h_alpha), times N."""
        cov = kernel[[mu, alpha]][:, [mu, alpha]]
        slope = cov[0, 1] / cov[0, 0]
        h = nodes[:, None] * cov[0, 0].sqrt() + 0 * nodes
        k = slope * h + nodes * (cov[1, 1] - slope * cov[0, 1]).clamp_min(0).sqrt()
        product = function(h) * function(k)
        return (pairs * product.square()).sum() - (pairs * product).sum().square()

    spread = two_layers.spread.layers[1].forward.array[0].double()
    expected = torch.stack(
        [
            torch.stack([variance(posed.input_kernel.double(), mu, alpha, torch.tanh) for alpha in range(P)])
            for mu in range(P)
        ]
    )
    # Nearly Gaussian draws: a sample standard deviation has the relative error 1 / sqrt(2 R).
    torch.testing.assert_close(spread, (expected / 64).sqrt(), rtol=5 / math.sqrt(2 * 512), atol=0)


def test_two_layer_outputs_start_with_the_variance_of_the_last_kernel(two_layers):
    phi = two_layers.layers[1].forward.array[0]
    expected = (phi.diagonal() / (0.5**2 * 64)).sqrt()
    found = two_layers.spread.outputs[0, :, 0]
    torch.testing.assert_close(found, expected, rtol=5 / math.sqrt(2 * 512), atol=0)


def test_the_spread_falls_like_the_root_of_the_width():
    posed = problem(steps=2)
    found = [dmft.solve(posed, FiniteWidth(width, replicas=96), record=[2]) for width in (32, 256)]
    for kernel in ("forward", "backward"):
        small, large = (getattr(run.spread.layers[1], kernel).array.norm() for run in found)
        assert abs(math.log(large / small) / math.log(8) + 0.5) < 0.2


def test_a_rank_that_saturates_is_left_to_dense_networks():
    posed = problem(steps=6)
    found = dmft.solve(posed, FiniteWidth(24, replicas=6, tolerance=1e-6), record=[6])
    assert found.metadata["dense"]
    assert not dmft.solve(posed, FiniteWidth(600, replicas=4), record=[0]).metadata["dense"]


def test_convolutions_are_trained_as_ordinary_networks():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(P, 1, 6, 6, generator=generator)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Tanh(), nn.Conv2d(8, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(32, 1))
    plan = dmft.parameterize(model, x, generator=generator)
    posed = dmft.Problem.like(plan, dmft.Probe(x, torch.ones(P, 1)), lr=0.05, steps=2)
    found = dmft.solve(posed, FiniteWidth(32, replicas=4))
    assert found.metadata["dense"]
    assert [layer.name for layer in found.layers] == ["0", "2", "5"]
    assert found.losses[-1] < found.losses[0]


def test_two_times_and_replicas():
    found = dmft.solve(problem(), FiniteWidth(32, replicas=5), record=[0, 6], two_time=True)
    assert found.layers[1].forward.is_two_time
    assert found.origin == "theory (N=32)"
    stacked = torch.stack([run.layers[1].forward.array for run in found.replicas])
    torch.testing.assert_close(stacked.mean(0), found.layers[1].forward.equal_time)
    torch.testing.assert_close(stacked.std(0), found.spread.layers[1].forward.array)
    again = dmft.solve(problem(), FiniteWidth(32, replicas=5), record=[0, 6])
    torch.testing.assert_close(again.outputs, found.outputs, rtol=0, atol=0)


def test_what_is_refused():
    with pytest.raises(InvalidInputError, match="four replicas"):
        dmft.solve(problem(), FiniteWidth(32, replicas=2))
    with pytest.raises(NotRecordedError, match="Expected an ensemble"):
        _ = replace(dmft.solve(problem(), FiniteWidth(32, replicas=4), record=[0]), replicas=()).spread
    model = nn.Sequential(nn.Conv1d(5, 8, 1), nn.Conv1d(8, 8, 1, groups=2), nn.Flatten(), nn.Linear(8, 1))
    x = problem().inputs.unsqueeze(-1)
    plan = dmft.parameterize(model, x)
    posed = dmft.Problem.like(plan, dmft.Probe(x, torch.ones(P, 1)), lr=0.05, steps=2)
    with pytest.raises(UnsupportedModelError, match="groups"):
        dmft.solve(posed, FiniteWidth(32))
