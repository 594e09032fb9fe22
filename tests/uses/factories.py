"""Functions width -> model: a part between a layer from data to neurons and one from neurons to outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

P, D = 6, 5


def body(inside: Callable[[nn.Module, Tensor], Tensor], **parameters: Callable[[int], nn.Module | nn.Parameter]) -> Any:
    """A factory of networks data -> N, ``inside``, N -> 2, with more parameters."""

    class Body(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(D, width), nn.Linear(width, 2)
            for name, build in parameters.items():
                setattr(self, name, build(width))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(inside(self, torch.tanh(self.first(x))))

    return Body


def square(width: int) -> nn.Module:
    return nn.Linear(width, width)


def data(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(P, *(shape or (D,)), generator=generator, dtype=torch.float64)
