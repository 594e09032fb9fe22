"""Pair expectations against closed forms, brute-force quadrature and sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from torch_dmft.core.activation import ACTIVATIONS, activation
from torch_dmft.core.errors import ConvergenceError
from torch_dmft.theory.gaussian.kinked_moments import _between_straight_pieces, _in_sectors, pair_averages
from torch_dmft.theory.gaussian.moments import correlation, marginals, mehler, project

SMOOTH = sorted(name for name, phi in ACTIVATIONS.items() if phi.smooth and phi.homogeneous is None)
KINKED = sorted(name for name, phi in ACTIVATIONS.items() if phi.kinks)
ALL = slice(None)


def pairs(variances: Tensor, rho: Tensor) -> Tensor:
    return torch.outer(variances.sqrt(), variances.sqrt()) * rho


@pytest.fixture
def variances() -> Tensor:
    return torch.tensor([0.0, 0.3, 1.0, 2.5], dtype=torch.float64)


@pytest.fixture
def rho() -> Tensor:
    values = torch.tensor([[1, 0.2, -0.5, 0.9], [0.2, 1, 1, -1], [-0.5, 1, 1, 0.999], [0.9, -1, 0.999, 1]])
    return values.double()


def test_hermite_series_agrees_with_the_closed_form_of_erf_at_every_correlation(variances: Tensor, rho: Tensor) -> None:
    closed = marginals(activation("erf"), variances)
    series = marginals(replace(activation("erf"), name="erf by series"), variances)
    assert type(closed) is not type(series)
    covariance = pairs(variances, rho)
    for exact, summed in zip(closed.pair(ALL, ALL, covariance), series.pair(ALL, ALL, covariance), strict=True):
        torch.testing.assert_close(summed, exact, rtol=0, atol=1e-10)
    torch.testing.assert_close(series.mean_square(), closed.mean_square(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", SMOOTH)
def test_hermite_series_agrees_with_quadrature_over_both_variables(name: str, variances: Tensor, rho: Tensor) -> None:
    phi = activation(name)
    points = torch.linspace(-9, 9, 400, dtype=torch.float64)  # the trapezoidal rule: geometric convergence
    weights = torch.exp(-(points**2) / 2) * 18 / 399
    weights = torch.outer(weights, weights) / (2 * math.pi)
    rows = marginals(phi, variances)
    features, slopes = rows.pair(ALL, ALL, pairs(variances, rho))
    for i, a in enumerate(variances.sqrt()):
        for j, b in enumerate(variances.sqrt()):
            r = rho[i, j] if a * b > 0 else torch.tensor(0.0)
            u, v = a * points[:, None], b * (r * points[:, None] + torch.sqrt(1 - r**2) * points)
            assert features[i, j] == pytest.approx(
                float((weights * phi.function(u) * phi.function(v)).sum()), abs=1e-10
            )
            assert slopes[i, j] == pytest.approx(float((weights * phi.first(u) * phi.first(v)).sum()), abs=1e-10)


def pieces(breaks: Tensor) -> tuple[Tensor, Tensor]:
    """Points of 60 per piece between breaks, ``(..., break)``, within +-9, and Gaussian weights."""
    node, weight = (torch.from_numpy(x) for x in numpy.polynomial.legendre.leggauss(60))
    edge = torch.full_like(breaks[..., :1], 9.0)
    ends = torch.cat([-edge, breaks.clamp(-9, 9), edge], dim=-1).sort(dim=-1).values
    half = ends.diff(dim=-1)[..., None] / 2
    points = (ends[..., :-1, None] + half + half * node).flatten(-2)
    return points, (half * weight).flatten(-2) * torch.exp(-points.square() / 2) / math.sqrt(2 * math.pi)


@pytest.mark.parametrize("correlated", [-1.0, -0.6, 0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("name", KINKED)
def test_kinks_are_integrated_piece_by_piece(name: str, correlated: float) -> None:
    """To 1e-8 against one integral inside the other, each split at the kinks; u = +-v has only one."""
    phi, kinks = activation(name), torch.tensor(ACTIVATIONS[name].kinks, dtype=torch.float64)
    left_over = math.sqrt(1 - correlated**2)
    for a, b in ((0.4, 1.7), (1.0, 1.0)):
        variance = torch.tensor([a**2, b**2], dtype=torch.float64)
        covariance = torch.full((1, 1), correlated * a * b, dtype=torch.float64)
        found = marginals(phi, variance).pair(slice(0, 1), slice(1, 2), covariance)
        x, weight = pieces(torch.cat([kinks / a, *([kinks / (correlated * b)] if correlated else [])]))
        for function, moment in zip((phi.function, phi.first), found, strict=True):
            other = function(correlated * b * x)
            if left_over:
                y, density = pieces((kinks / b - correlated * x[:, None]) / left_over)
                other = (density * function(b * (correlated * x[:, None] + left_over * y))).sum(1)
            assert float(moment) == pytest.approx(float(weight @ (function(a * x) * other)), abs=1e-8)


@pytest.mark.parametrize("average", [_in_sectors, _between_straight_pieces])
@pytest.mark.parametrize("name", ["relu", "leaky_relu"])
def test_both_ways_to_integrate_kinks_give_the_arc_cosine_kernels(
    name: str, average: Callable, variances: Tensor, rho: Tensor
) -> None:
    std = variances.sqrt()
    a, b = (side[1:, 1:].flatten() for side in torch.broadcast_tensors(std[:, None], std))  # phi'(0) is a convention
    found = average(activation(name), a, b, rho[1:, 1:].flatten())
    closed = marginals(activation(name), variances).pair(ALL, ALL, pairs(variances, rho))
    for mine, exact in zip(found, closed, strict=True):
        torch.testing.assert_close(mine, exact[1:, 1:].flatten(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["hardtanh", "relu6", "softsign", "selu"])
def test_kinks_at_extreme_correlations_and_scales(name: str) -> None:
    """<phi' phi'> integrates to <phi phi>, d<phi phi>/d rho = a b <phi' phi'>, up to rho = 1 and far beyond the kinks."""
    phi, a, b = activation(name), torch.tensor([4.0], dtype=torch.float64), torch.tensor([4.0, 3.9, 0.3]).double()
    node, weight = (torch.from_numpy(x) for x in numpy.polynomial.legendre.leggauss(80))
    angle, weight = math.pi / 4 * (node + 1), math.pi / 4 * weight  # rho = sin(angle)
    for at, other in enumerate(b):
        slopes = torch.stack([pair_averages(phi, a, other[None], r.sin().reshape(1, 1))[1].squeeze() for r in angle])
        one, none = (pair_averages(phi, a, b, torch.full((1, 3), r, dtype=torch.float64))[0][0, at] for r in (1.0, 0.0))
        integral = float(a * other * (weight * angle.cos() * slopes).sum())
        assert float(one - none) == pytest.approx(integral, rel=1e-6)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_moments_agree_with_sampling(name: str, generator: torch.Generator) -> None:
    phi = activation(name)
    factor = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    covariance = factor @ factor.T
    sampled = torch.randn(200_000, 3, generator=generator, dtype=torch.float64) @ factor.T
    rows = marginals(phi, covariance.diagonal())
    for function, moment in zip((phi.function, phi.first), rows.pair(ALL, ALL, covariance), strict=True):
        products = function(sampled)[:, :, None] * function(sampled)[:, None, :]
        error = products.std(0) / math.sqrt(len(products))
        assert ((products.mean(0) - moment).abs() <= 5 * error + 1e-10).all()


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_mean_square_is_the_diagonal(name: str, variances: Tensor) -> None:
    rows = marginals(activation(name), variances)
    features, _ = rows.pair(ALL, ALL, pairs(variances, torch.ones(4, 4, dtype=torch.float64)))
    torch.testing.assert_close(rows.mean_square(), features.diagonal(), rtol=0, atol=1e-10)


@given(degree=st.integers(0, 5), a=st.floats(0.1, 2), b=st.floats(0.1, 2), rho=st.floats(-1, 1))
@settings(max_examples=30, deadline=None)
def test_series_is_exact_for_powers(degree: int, a: float, b: float, rho: float) -> None:
    """Isserlis: <u^n v> = n a^(n-1) b rho times the moment of order n - 1, for odd n."""
    std = torch.tensor([a, b], dtype=torch.float64)
    power, identity = project(lambda x: x**degree, std[:1]), project(lambda x: x, std[1:])
    moment = math.prod(range(degree - 2, 0, -2)) if degree % 2 else 0  # (n - 2)!! = <x^(n-1)>
    expected = degree * a**degree * b * rho * moment
    found = mehler(power, identity, torch.tensor([[rho]], dtype=torch.float64))
    assert float(found) == pytest.approx(expected, abs=1e-9)


def test_a_step_is_refused_rather_than_approximated() -> None:
    with pytest.raises(ConvergenceError, match="order"):
        project(torch.sign, torch.ones(1, dtype=torch.float64), order=256)


def test_correlation_of_a_constant_is_zero() -> None:
    assert float(correlation(torch.zeros(1, 1), torch.zeros(1, 1))) == 0
