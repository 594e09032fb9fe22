"""Set-ups whose learning rates are swept; also run as a program, which a test kills: python -m tests.referee.sweeps LOG."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import torch_dmft as dmft

_GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(48, 8, generator=_GENERATOR)
TARGETS = torch.sin(2 * INPUTS[:, :1]) + INPUTS[:, 1:2]


def data(seed: int) -> list[tuple[Tensor, Tensor]]:
    """Three batches, in an order of the seed's."""
    order = torch.randperm(len(INPUTS), generator=torch.Generator().manual_seed(seed))
    return [(INPUTS[rows], TARGETS[rows]) for rows in order.split(16)]


def mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))


def plain(width: int, lr: float) -> tuple[nn.Module, Any]:
    """PyTorch's own initialisation, and one rate for all."""
    model = mlp(width)
    return model, torch.optim.Adam(model.parameters(), lr=lr)


def plain_at_its_own_rate(width: int) -> tuple[nn.Module, Any]:
    return plain(width, 0.01)


def scaled(width: int, lr: float) -> tuple[nn.Module, Any]:
    """Mean-field parameterization."""
    model = mlp(width)
    plan = dmft.parameterize(model, INPUTS[:4])
    return model, torch.optim.Adam(plan.param_groups(lr, optimizer="adam"))


def limited(width: int, lr: float) -> tuple[nn.Module, Any]:
    """One hidden layer without biases, which has a limit, and SGD."""
    model = nn.Sequential(nn.Linear(8, width, bias=False), nn.Tanh(), nn.Linear(width, 1, bias=False))
    return model, torch.optim.SGD(dmft.parameterize(model, INPUTS[:4]).param_groups(lr))


class Valley(nn.Module):
    """A loss of which everything is known: after a step of SGD at rate r from 0 along x, the loss is a function of r.

    The model's one parameter goes to x = r. Its loss then is 1 + log(1 + (log2(x / best) + noise)^2 / 8), and 3 before that,
    less ``drop``; above 8 times the best rate it is not finite.
    """

    def __init__(self, best: float, drop: float = 0.0) -> None:
        super().__init__()
        self.best, self.drop = best, drop
        self.x = nn.Parameter(torch.zeros(()))
        self.noise = 0.02 * torch.randn(())

    def forward(self, batch: Tensor) -> Tensor:
        x = float(self.x.detach())
        if x == 0:
            value = 3.0
        elif x > 8.01 * self.best:
            value = float("inf")
        else:
            value = 1 + math.log1p(float(torch.tensor(x / self.best).log2() + self.noise) ** 2 / 8)
        return value - self.drop + (x == 0) * (self.x.detach() - self.x)


def valley(width: int, lr: float, power: float = 0.0, drop: float = 0.0) -> tuple[nn.Module, Any, Any]:
    """The best rate is 0.1 (width / 64)^power."""
    model = Valley(0.1 * (width / 64) ** power, drop)
    return model, torch.optim.SGD(model.parameters(), lr=lr), lambda model, batch: model(batch)


def drifting(width: int, lr: float) -> tuple[nn.Module, Any, Any]:
    return valley(width, lr, -0.5)


BATCH = [torch.zeros(1)]
SWEEP: dict[str, Any] = {"widths": (8, 16), "lrs": (0.001, 0.01, 0.1), "steps": 40, "seeds": 2}


def main(log: str) -> None:
    from tests.referee import sweeps  # by its name, which the log has, and not as __main__
    from torch_dmft.referee import transfer

    told = lambda done, total, left, said: print(done, flush=True)  # noqa: E731
    transfer(sweeps.plain, **SWEEP, data=sweeps.data, log=Path(log), processes=2, progress=told)


if __name__ == "__main__":
    main(*sys.argv[1:])
