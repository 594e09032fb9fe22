"""The gradients of weights as products of what a pass knows are those of a backward pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import torch_dmft as dmft
from torch_dmft import parameterize
from torch_dmft.measurement import subject_of
from torch_dmft.theory.engine import weight_gradients
from torch_dmft.theory.engine.passes import AutogradPass, Passes

SAMPLES, N = 3, 32


def _conv(*parts: nn.Module, channels: int = N, outputs: int = 1) -> nn.Module:
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, outputs))


class _Twice(nn.Module):
    """A convolution that is used twice, in a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, N, 3), nn.Conv2d(N, N, 3, padding=1, bias=False)
        self.readout = nn.Linear(N, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for _ in range(2):
            x = x + self.second(torch.tanh(x))
        return self.readout(x.mean((2, 3)))


class _Tokens(nn.Module):
    """A linear layer at every place."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, N), nn.Linear(N, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(x.flatten(1, 2))).mean(1))


NETWORKS = {
    "few positions": lambda: _conv(nn.Conv2d(2, N, 3, padding=1, stride=2), nn.ReLU(), nn.Conv2d(N, N, 2), nn.Tanh()),
    "many positions": lambda: _conv(nn.Conv2d(2, N, 3, padding=1), nn.Tanh(), nn.Conv2d(N, N, 3, padding=1), nn.Tanh()),
    "geometry": lambda: _conv(
        nn.Conv2d(2, N, 3, padding=1, padding_mode="reflect"),
        nn.Tanh(),
        nn.Conv2d(N, N, (3, 2), stride=(2, 1), dilation=(1, 2), padding="valid", bias=False),
        nn.Tanh(),
        outputs=3,
    ),
    "same padding": lambda: _conv(nn.Conv2d(2, N, 2, padding="same"), nn.Tanh(), nn.Conv2d(N, N, 4, padding="same")),
    "used twice": _Twice,
    "tokens": _Tokens,
}


def _inputs() -> Tensor:
    return torch.randn(SAMPLES, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _both(model: nn.Module, *, measured: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients by products and by autograd."""
    inputs = _inputs()
    plan = parameterize(model.to(inputs), inputs, generator=torch.Generator().manual_seed(1))
    passes = Passes(subject_of(plan, inputs))
    first = AutogradPass(passes, inputs, measured=True)  # finds out where samples are
    first.measure()
    assert passes.are_products
    found = []
    for by_products in (True, False):
        passes.may_be_products = by_products
        one = AutogradPass(passes, inputs, measured=measured)
        if measured:
            one.measure()
        error = torch.cos(one.outputs + torch.arange(one.outputs.numel()).reshape(one.outputs.shape))
        error[-1] = 0  # a test row
        one.backward(error)
        found.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    return found[0], found[1]


@pytest.mark.parametrize("measured", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_equals_autograd(name, measured, monkeypatch):
    used = []
    real = weight_gradients.set_gradients
    monkeypatch.setattr("torch_dmft.theory.engine.passes.set_gradients", lambda *a: (used.append(1), real(*a))[1])
    products, autograd = _both(NETWORKS[name](), measured=measured)
    assert len(used) == (measured or name != "tokens")
    assert all(gradient.abs().max() > 0 for gradient in autograd.values())
    for parameter, gradient in products.items():
        torch.testing.assert_close(gradient, autograd[parameter], rtol=1e-10, atol=1e-12)


def test_other_parameters_are_left_to_autograd():
    inputs = _inputs()

    def may(model: nn.Module) -> bool:
        return Passes(subject_of(parameterize(model.to(inputs), inputs), inputs)).may_be_products

    assert may(_conv(nn.Conv2d(2, N, 3), nn.Tanh()))
    assert not may(_conv(nn.Conv2d(2, N, 3), nn.GroupNorm(1, N), nn.Tanh()))
    doubled = _conv(nn.Conv2d(2, N, 3), nn.Tanh())
    plan = parameterize(doubled.to(inputs), inputs)
    doubled[0].register_forward_hook(lambda module, args, output: 2 * output)
    assert not Passes(subject_of(plan, inputs)).may_be_products
    frozen = _conv(nn.Conv2d(2, N, 3), nn.GroupNorm(1, N), nn.Tanh())
    for parameter in frozen[1].parameters():
        parameter.requires_grad_(False)
    assert may(frozen)


@pytest.mark.parametrize("batches", [None, [torch.tensor([0, 2]), torch.tensor([1, 2]), torch.tensor([0, 1])]])
def test_training_is_the_same(batches, monkeypatch):
    inputs = _inputs()
    model = _conv(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 4, 3, padding=1), nn.Tanh(), channels=4)
    plan = parameterize(model.to(inputs), inputs, generator=torch.Generator().manual_seed(1))
    targets = torch.tensor([[1.0], [-1.0], [1.0]], dtype=torch.float64)
    probe = dmft.Probe(inputs, targets)
    problem = dmft.Problem.like(plan, probe, lr=0.1, steps=3, batches=batches)
    used, real, runs = [], weight_gradients.set_gradients, []
    monkeypatch.setattr("torch_dmft.theory.engine.passes.set_gradients", lambda *a: (used.append(1), real(*a))[1])
    for by_products in (True, False):
        if not by_products:
            monkeypatch.setattr("torch_dmft.theory.engine.passes.are_products", lambda subject: False)
        runs.append(dmft.solve(problem, dmft.solvers.FiniteWidth(32, 4)))
    assert len(used) == 4 * (2 if batches is None else 3)  # in full batches the first step finds out where samples are
    torch.testing.assert_close(runs[0].outputs, runs[1].outputs, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(runs[0].ntk.array, runs[1].ntk.array, rtol=1e-10, atol=1e-12)
    assert (runs[0].outputs[-1] - runs[0].outputs[0]).abs().max() > 0.05
