"""What is said of deep residual networks: the best rate stays, and blocks become linear in their weights in one scaling."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

import torch_dmft as dmft

INPUTS = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
TARGETS = torch.randn(8, 1, generator=torch.Generator().manual_seed(1)).sign()
WIDTH, SHALLOW, DEEP = 128, 4, 32


class Block(nn.Module):
    """h + W_2 tanh(W_1 h)."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))

    def forward(self, h: Tensor) -> Tensor:
        changed: Tensor = h + self.down(torch.tanh(self.up(h)))
        return changed


def trained(depth: str | None, blocks: int, lr: float, seed: int, steps: int = 8) -> tuple[nn.Module, nn.Module, float]:
    """A network before and after training, and the loss then."""
    first, last = nn.Linear(6, WIDTH, bias=False), nn.Linear(WIDTH, 1, bias=False)
    model = nn.Sequential(first, *(Block() for _ in range(blocks)), last)
    plan = dmft.parameterize(model, INPUTS, depth=depth, generator=torch.Generator().manual_seed(seed))
    start, optimizer = copy.deepcopy(model), torch.optim.SGD(plan.param_groups(lr))
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(INPUTS), TARGETS).backward()
        optimizer.step()
    return start, model, float(nn.functional.mse_loss(model(INPUTS), TARGETS).detach())


@torch.no_grad()
def bent(start: nn.Module, model: nn.Module) -> float:
    """How far changes of blocks, at what they read now, are from linear in those of their weights: relative, their mean."""
    h, ratios = model[0](INPUTS), []  # type: ignore[index]
    for before, now in zip(list(start.children())[1:-1], list(model.children())[1:-1], strict=True):
        u, u_before = now.up(h), before.up(h)
        was = torch.tanh(u_before)
        change = now.down(torch.tanh(u)) - before.down(was)
        linear = (now.down(was) - before.down(was)) + before.down((1 - was**2) * (u - u_before))
        ratios.append(float((change - linear).norm() / change.norm()))
        h = now(h)
    return sum(ratios) / len(ratios)


@pytest.mark.parametrize(("depth", "power"), [("1/sqrt(L)", -0.5), ("1/L", 0.0)])
def test_blocks_become_linear_in_their_weights_in_one_scaling(depth: str, power: float) -> None:
    shallow, deep = (
        sum(bent(*trained(depth, blocks, 0.1, seed)[:2]) for seed in range(2)) / 2 for blocks in (SHALLOW, DEEP)
    )
    assert math.log(deep / shallow) / math.log(DEEP / SHALLOW) == pytest.approx(power, abs=0.2)
    assert shallow > 0.01


def best_rate(depth: str | None, blocks: int) -> float:
    """Of rates a factor 2 apart, the one with the least loss after training, on average over networks."""
    rates = [2.0**power for power in range(-9, 3)]
    losses = [sum(trained(depth, blocks, lr, seed)[2] for seed in range(2)) for lr in rates]
    best = min(range(len(rates)), key=lambda at: losses[at] if math.isfinite(losses[at]) else math.inf)
    assert 0 < best < len(rates) - 1
    return rates[best]


def test_the_best_rate_stays_with_branches_that_are_scaled_and_falls_with_others() -> None:
    assert 0.5 <= best_rate("1/sqrt(L)", 16) / best_rate("1/sqrt(L)", SHALLOW) <= 2
    assert best_rate(None, 16) / best_rate(None, SHALLOW) <= 0.25
