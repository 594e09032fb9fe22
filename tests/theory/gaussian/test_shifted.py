"""Averages over Gaussian variables and a shared uniform shift, against dense quadrature and by hand."""

from __future__ import annotations

from itertools import pairwise

import numpy
import pytest
import torch
from torch import Tensor

from torch_dmft.core.activation import ACTIVATIONS, activation
from torch_dmft.theory.gaussian.latents import Population
from torch_dmft.theory.gaussian.moments import marginals
from torch_dmft.theory.gaussian.shifted import shifted_marginals

ALL = slice(None)
STD = torch.tensor([0.0, 0.6, 1.3], dtype=torch.float64)
RHO = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, -0.7], [0.0, -0.7, 1.0]], dtype=torch.float64)


def brute(name: str, bound: float, share: Tensor) -> tuple[Tensor, Tensor]:
    """By 400 x 400 points in the plane for each of 200 shifts, midpoints throughout; a jump may be off by one shift."""
    phi = activation(name)
    steps = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    z = 2**0.5 * torch.erfinv(2 * steps - 1)
    shift = bound * (2 * (torch.arange(200, dtype=torch.float64) + 0.5) / 200 - 1)
    values, slopes = torch.zeros(3, 3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)
    for i in range(3):
        for j in range(3):
            x, y = z[:, None], RHO[i, j] * z[:, None] + (1 - RHO[i, j] ** 2) ** 0.5 * z
            for beta in shift:
                u, v = STD[i] * x + share[i] * beta, STD[j] * y + share[j] * beta
                values[i, j] += (phi.function(u) * phi.function(v)).mean() / 200
                slopes[i, j] += (phi.first(u) * phi.first(v)).mean() / 200
    return values, slopes


@pytest.mark.parametrize("name", ["tanh", "relu", "selu", "hardtanh"])
@pytest.mark.parametrize("share", [(1.0, 1.0, 1.0), (1.0, 0.8, 0.8)], ids=["alike", "decayed"])
def test_averages_are_those_of_dense_quadrature(name: str, share: tuple[float, ...]) -> None:
    shares = torch.tensor(share, dtype=torch.float64)
    rows = shifted_marginals(activation(name), STD.square(), 1.4 * shares)
    for found, expected in zip(rows.pair(ALL, ALL, RHO * torch.outer(STD, STD)), brute(name, 1.4, shares), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1 / 200)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
@pytest.mark.parametrize("bound", [0.7, 3.0])
def test_one_variable_by_quadrature_in_both(name: str, bound: float) -> None:
    """<phi^2> over u + beta, whose density is a difference of two normal distribution functions."""
    phi, std = activation(name), 0.8
    ends = torch.tensor(sorted({-9.0, 9.0, *phi.kinks}), dtype=torch.float64)
    node, weight = (torch.from_numpy(x) for x in numpy.polynomial.legendre.leggauss(400))
    h = torch.cat([(a + b) / 2 + (b - a) / 2 * node for a, b in pairwise(ends)])
    weights = torch.cat([(b - a) / 2 * weight for a, b in pairwise(ends)])
    density = (torch.special.ndtr((h + bound) / std) - torch.special.ndtr((h - bound) / std)) / (2 * bound)
    variance, bounds = torch.tensor([std**2], dtype=torch.float64), torch.tensor([bound], dtype=torch.float64)
    rows = shifted_marginals(phi, variance, bounds)
    assert float(rows.mean_square()) == pytest.approx(float(weights @ (density * phi.function(h) ** 2)), rel=1e-8)
    values, slopes = rows.pair(ALL, ALL, variance[:, None])
    assert float(values) == pytest.approx(float(rows.mean_square()), rel=1e-7)
    assert float(slopes) == pytest.approx(float(weights @ (density * phi.first(h) ** 2)), rel=1e-6)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_no_shift_is_none(name: str) -> None:
    """A bound of zero gives centred Gaussians, and a tiny one nearly these, by other formulas."""
    covariance = RHO * torch.outer(STD, STD)
    exact = marginals(activation(name), STD.square()).pair(ALL, ALL, covariance)
    zero = torch.zeros(3, dtype=torch.float64)
    for bound, tolerance in ((0.0, 0.0), (1e-4, 1e-6)):
        found = shifted_marginals(activation(name), STD.square(), zero + bound).pair(ALL, ALL, covariance)
        for mine, theirs in zip(found, exact, strict=True):
            torch.testing.assert_close(mine[1:, 1:], theirs[1:, 1:], rtol=0, atol=tolerance)


@pytest.mark.parametrize(("law", "moment"), [("limit", 1e-5), ("network", 0.1)])
def test_uniform_latents(law: str, moment: float) -> None:
    """Uniform numbers of variance one; at infinite width their moments are exact, and later latents orthogonal to them."""
    generator = torch.Generator().manual_seed(0)
    population = Population(4096, law=law, generator=generator, dtype=torch.float64, device="cpu")
    before, uniform, after = population.draw(2), population.draw(3, uniform=True), population.draw(2)
    gram = torch.cat([torch.ones(1, 4096), before, uniform, after]).double()
    torch.testing.assert_close(gram @ gram.T / 4096, torch.eye(8, dtype=torch.float64), rtol=0, atol=moment)
    assert float((uniform.pow(4).mean(1) - 1.8).abs().max()) < 0.1
    assert float((before.pow(4).mean(1) - 3).abs().max()) < 0.6
    if law == "network":
        assert float(uniform.abs().max()) <= 3**0.5
