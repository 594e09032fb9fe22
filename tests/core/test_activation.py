"""Derivatives against autograd, modules against functions."""

from __future__ import annotations

import pytest
import torch

from torch_dmft.core.activation import ACTIVATIONS, Activation, activation
from torch_dmft.core.errors import InvalidInputError


@pytest.fixture(params=ACTIVATIONS.values(), ids=lambda a: a.name)
def phi(request: pytest.FixtureRequest) -> Activation:
    return request.param


@pytest.fixture
def x() -> torch.Tensor:
    return torch.linspace(
        -3.05, 7.1, 60, dtype=torch.float64
    ).requires_grad_()  # both sides of all kinks, but none of them


def test_derivatives(phi: Activation, x: torch.Tensor) -> None:
    # x * 0 keeps derivatives of linear pieces in the graph
    (first,) = torch.autograd.grad((phi.function(x) + 0 * x**3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert torch.allclose(phi.first(x), first, rtol=1e-10, atol=1e-12)
    assert torch.allclose(phi.second(x), second, rtol=1e-10, atol=1e-12)


def test_kinks_are_where_a_derivative_jumps(phi: Activation) -> None:
    # up to 6, which is as far as there are kinks
    grid = torch.linspace(-7, 7, 14001, dtype=torch.float64)
    jumps = torch.stack([phi.first(grid), phi.second(grid)]).diff(dim=1).abs().amax(0) > 0.005
    found = grid[1:][jumps].round(decimals=1).unique()
    assert found.tolist() == pytest.approx(sorted(phi.kinks), abs=1e-9)
    assert phi.smooth == (not phi.kinks)


def test_slopes_from_values(phi: Activation, x: torch.Tensor) -> None:
    torch.testing.assert_close(phi.slope(x, phi.function(x)), phi.first(x), rtol=1e-9, atol=1e-12)


def test_module_is_the_function(phi: Activation, x: torch.Tensor) -> None:
    assert torch.equal(phi.module()(x), phi.function(x))


def test_homogeneity(phi: Activation, x: torch.Tensor) -> None:
    scaled = phi.function(2.5 * x)
    degree = 1 if phi.homogeneous is None else phi.homogeneous
    assert torch.allclose(scaled, 2.5**degree * phi.function(x), rtol=1e-10) == (phi.homogeneous is not None)


def test_lookup() -> None:
    assert activation("tanh") is ACTIVATIONS["tanh"]
    with pytest.raises(InvalidInputError, match=r"'swish'.*silu"):
        activation("swish")
