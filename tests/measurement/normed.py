"""Models with BatchNorm, and what they are given."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Images(nn.Module):
    """Two BatchNorms, behind each other and with an activation in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn1 = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.mix, self.bn2 = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.stem(x)), inplace=True)
        return self.head(torch.tanh(self.bn2(self.mix(x))).mean((2, 3)))


def vectors() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2))
