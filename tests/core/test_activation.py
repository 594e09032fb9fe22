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
    return torch.linspace(-3, 3, 40, dtype=torch.float64).requires_grad_()  # 40 points: zero, ReLU's kink, is not one


def test_derivatives(phi: Activation, x: torch.Tensor) -> None:
    # x * 0 keeps derivatives of linear pieces in the graph
    (first,) = torch.autograd.grad((phi.function(x) + 0 * x**3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert torch.allclose(phi.first(x), first, rtol=1e-10, atol=1e-12)
    assert torch.allclose(phi.second(x), second, rtol=1e-10, atol=1e-12)


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
