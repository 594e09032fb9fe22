"""Derivatives in the forward pass: adjoints have the role of what they are the adjoints of, and no rule of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_dmft as dmft
from tests.measurement.zoo import Forces
from tests.models.handmade import Siren
from torch_dmft.architecture import Role
from torch_dmft.core.errors import UnsupportedModelError
from torch_dmft.parameterization import CoordinateCheck, coordinate_check, rules
from torch_dmft.parameterization.scheme import Scaling, mean_field
from torch_dmft.uses import two_seen
from torch_dmft.uses.steps import Steps

P = 6


class Energy(nn.Module):
    """An energy of three layers, its norm and its forces."""

    def __init__(self, width: int, factor: Callable[[int], float] = lambda width: 1.0, at: str = "none") -> None:
        super().__init__()
        self.first, self.mix, self.norm = nn.Linear(3, width), nn.Linear(width, width), nn.LayerNorm(width)
        self.last = nn.Linear(width, 1)
        self.factor, self.at = factor(width), at

    def times(self, x: Tensor, at: str) -> Tensor:
        return x * self.factor if at == self.at else x

    def energy(self, x: Tensor) -> Tensor:
        h = torch.nn.functional.silu(self.times(self.first(x), "first"))
        h = torch.tanh(self.norm(h + self.times(self.mix(h), "mix")))
        return self.times(self.last(h), "last")

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)
        return -slope


class Convolved(nn.Module):
    """The derivative of convolutions by an image, averaged over pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.energy = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.Tanh(), nn.Conv2d(width, width, 3, padding=1), nn.Tanh()
        )
        self.last = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self.last(self.energy(x).mean((2, 3))).sum(), x, create_graph=True)
        return slope.flatten(1)


class Along(nn.Module):
    """The derivative of an inner function, by the data, goes into another network."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2), nn.Tanh(), nn.Linear(2, 1))
        self.outer = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self.inner(x).sum(), x, create_graph=True)
        return self.outer(x + slope)


SHAPES: dict[Any, tuple[int, ...]] = {Siren: (2,), Convolved: (1, 4, 4)}


def data(factory: Any, generator: torch.Generator) -> Tensor:
    return torch.randn(P, *SHAPES.get(factory, (3,)), generator=generator)


def roles(plan: dmft.Plan) -> dict[str, str]:
    return {rule.name: str(rule.role) for rule in plan.rules if rule.name.endswith("weight")}


FOUND = {
    Forces: {"energy.0.weight": "input", "energy.2.weight": "readout"},
    Siren: {"a.weight": "input", "b.weight": "hidden", "c.weight": "readout"},
    Energy: {"first.weight": "input", "mix.weight": "hidden", "norm.weight": "vector", "last.weight": "readout"},
    Convolved: {"energy.0.weight": "input", "energy.2.weight": "hidden", "last.weight": "readout"},
    Along: {
        **{"inner.0.weight": "input", "inner.2.weight": "code", "inner.4.weight": "inner"},
        **{"outer.0.weight": "input", "outer.2.weight": "readout"},
    },
}


@pytest.mark.parametrize("factory", FOUND)
def test_weights_have_the_role_of_their_use_in_what_is_differentiated(factory, generator) -> None:
    x = data(factory, generator)
    plan = dmft.parameterize(factory(16), x, wider=factory)
    assert roles(plan) == FOUND[factory]
    assert not plan.architecture.folds
    assert not plan.architecture.is_chain


@pytest.mark.parametrize("factory", [Forces, Along])
def test_without_what_a_derivative_is_of_roles_are_others(factory, generator, monkeypatch) -> None:
    monkeypatch.setattr(two_seen, "sources", lambda derivatives: {})
    if factory is Forces:
        with pytest.raises(UnsupportedModelError, match="from a width to the output is missing"):
            dmft.parameterize(factory(16), data(factory, generator), wider=factory)
    else:
        found = roles(dmft.parameterize(factory(16), data(factory, generator), wider=factory))
        assert found == {**FOUND[factory], "inner.4.weight": "outer"}


RATES = {(Siren, "sgd"): 0.01, (Energy, "sgd"): 0.02, (Convolved, "sgd"): 1.0}


@pytest.mark.parametrize("gamma0", [0.3, 1.0])
@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 0.05), ("adamw", 0.02)])
@pytest.mark.parametrize("factory", [Forces, Siren, Energy, Convolved])
def test_features_and_derivatives_move_alike_at_every_width(factory, optimizer, lr, gamma0, generator) -> None:
    lr = RATES.get((factory, optimizer), lr)
    check = check_of(factory, generator, optimizer=optimizer, lr=lr, gamma0=gamma0)
    assert check.passed, str(check)


def size_of_a_hidden_weight(role: Any, *, fan_in: int, **settings: Any) -> Scaling:
    return mean_field(Role.HIDDEN if role is Role.READOUT else role, fan_in=fan_in, **settings)


def rate_of_another_power(role: Any, *, width: int, **settings: Any) -> Scaling:
    found = mean_field(role, width=width, **settings)
    return replace(found, lr=found.lr * width**-0.5, adam_lr=found.adam_lr * width**-0.5)


@pytest.mark.parametrize("wrong", [size_of_a_hidden_weight, rate_of_another_power])
@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 0.02), ("adamw", 0.02)])
@pytest.mark.parametrize("factory", [Forces, Energy])
def test_the_check_sees_a_wrong_rule(factory, optimizer, lr, wrong, generator, monkeypatch) -> None:
    monkeypatch.setattr(rules, "mean_field", wrong)
    check = check_of(factory, generator, optimizer=optimizer, lr=lr)
    errors = check.exponent_errors
    assert max(abs(slope) / errors[name] for name, slope in check.exponents.items()) > 4, str(check)
    assert not check.passed


def check_of(factory: Any, generator: torch.Generator, **settings: Any) -> CoordinateCheck:
    x = data(factory, generator)
    settings |= (
        {"widths": (64, 128, 256), "seeds": 8} if factory is Convolved else {"widths": (128, 256, 512), "seeds": 24}
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)  # of biases
        targets = torch.randn(factory(8)(x).shape, generator=generator)
        return coordinate_check(factory, x, targets, generator=generator, **settings)


def trained(factory: Any, x: Tensor) -> Tensor:
    """Outputs after a few steps from weights that are drawn alike."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, wider = factory(32).double(), factory(96).double()
    plan = dmft.parameterize(model, x, gamma0=0.5, wider=wider, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(plan.param_groups(0.05))
    for _ in range(4):
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()
    return model(x).detach()


def scaled(at: str) -> Any:
    return lambda width: Energy(width, lambda n: 3 * n**0.5, at)


@pytest.mark.parametrize("at", ["first", "mix", "last"])
def test_a_number_that_depends_on_the_width_is_made_up_for_in_energy_and_forces(at, generator) -> None:
    x = data(Energy, generator).double()
    torch.testing.assert_close(trained(scaled(at), x), trained(scaled("none"), x), rtol=1e-9, atol=1e-11)


def test_the_scale_of_a_derivative_is_needed_for_that(generator, monkeypatch) -> None:
    noted = Steps.differentiated

    def forgotten(self: Steps, path: str, outputs: Any, inputs: Any, given: Any, made: Any) -> None:
        noted(self, path, [torch.zeros_like(one) for one in outputs], inputs, given, made)

    x = data(Energy, generator).double()
    right = trained(scaled("none"), x)
    monkeypatch.setattr(Steps, "differentiated", forgotten)
    assert (trained(scaled("last"), x) - right).abs().max() > 0.1


class ByFeatures(Forces):
    """A step of features down the energy."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.energy[:2](x)
        (slope,) = torch.autograd.grad(self.energy[2](h).sum(), h, create_graph=True)
        return self.energy[2](h - slope)


class Backward(Forces):
    """Forces that are left behind by a call of backward."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        self.energy(x).sum().backward(inputs=[x], create_graph=True)
        assert x.grad is not None
        return x.grad


@pytest.mark.parametrize(("factory", "reason"), [(ByFeatures, "by features"), (Backward, "was not seen")])
def test_other_derivatives_are_refused(factory, reason, generator) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        dmft.parameterize(factory(16), data(factory, generator), wider=factory)


def test_a_backward_pass_around_a_watched_one_makes_no_derivatives(generator) -> None:
    x, seen = data(Forces, generator), []

    def look(gradient: Tensor) -> None:
        with torch.enable_grad():
            seen.append(roles(dmft.parameterize(Forces(16), x, wider=Forces)))

    leaf = torch.ones(1, requires_grad=True)
    start = leaf * 2
    start.register_hook(look)
    start.sum().backward()
    assert seen == [FOUND[Forces]]
