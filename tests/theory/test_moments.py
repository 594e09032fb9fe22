"""Pair expectations against closed forms, brute-force quadrature and sampling."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from torch_dmft.core.activation import ACTIVATIONS, activation
from torch_dmft.core.errors import ConvergenceError
from torch_dmft.theory.moments import correlation, marginals, mehler, project

SMOOTH = sorted(name for name, phi in ACTIVATIONS.items() if phi.smooth and phi.homogeneous is None)
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
