"""The unit form written out: every parameter N(0, 1), multipliers in the forward pass, one learning rate."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from torch_dmft.parameterization import Plan


class UnitMLP(nn.Module):
    """h1 = g W0 x/sqrt(D) + b1, h2 = g W1 tanh(h1)/sqrt(N) + b2, f = w tanh(h2)/(gamma0 N), as theory writes it."""

    def __init__(self, plan: Plan, gain: float, gamma0: float) -> None:
        super().__init__()
        chain = plan.model
        self.inputs, self.width, self.gain, self.gamma0 = chain[0].in_features, chain[2].in_features, gain, gamma0
        copies = {
            "w0": chain[0].weight * math.sqrt(self.inputs) / gain,
            "b1": chain[0].bias,
            "w1": chain[2].weight * math.sqrt(self.width) / gain,
            "b2": chain[2].bias,
            "w2": chain[4].weight * gamma0 * self.width,
        }
        for name, tensor in copies.items():
            self.register_parameter(name, nn.Parameter(tensor.detach().clone()))

    def forward(self, x: Tensor) -> Tensor:
        h = self.gain * x @ self.w0.T / math.sqrt(self.inputs) + self.b1
        h = self.gain * torch.tanh(h) @ self.w1.T / math.sqrt(self.width) + self.b2
        return torch.tanh(h) @ self.w2.T / (self.gamma0 * self.width)


def mlp(width: int, outputs: int = 1) -> nn.Sequential:
    """The same network as an ordinary module."""
    return nn.Sequential(
        nn.Linear(5, width),
        nn.Tanh(),
        nn.Linear(width, width),
        nn.Tanh(),
        nn.Linear(width, outputs, bias=False),
    ).double()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, steps: int) -> Tensor:
    """The outputs after every step, ``(step, sample, output)``."""
    outputs = []
    for _ in range(steps):
        optimizer.zero_grad()
        f = model(x)
        nn.functional.mse_loss(f, y).backward()
        optimizer.step()
        outputs.append(f.detach())
    return torch.stack(outputs)
