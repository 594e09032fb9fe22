"""Models of two arguments and of tokens, and the NTK by brute force."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

P, WIDTH = 6, 8


@dataclasses.dataclass
class Output:
    """Not a tensor, tuple or mapping."""

    scores: Tensor


class Two(nn.Module):
    """Takes two arguments, the second with a default; returns what it is told to."""

    def __init__(self, shape: Callable[[Tensor], Any] = lambda f: f) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(3, WIDTH), nn.Linear(2, WIDTH), nn.Linear(WIDTH, 2)
        self.shape = shape

    def forward(self, a: Tensor, b: Tensor | None = None, *, scale: float = 1.0) -> Any:
        h = self.left(a) if b is None else self.left(a) + self.right(b)
        return self.shape(self.head(torch.tanh(scale * h)))


class Tokens(nn.Module):
    """Outputs per token, ``(sample, token, class)``."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(7, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, classes)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(self.embed(ids).cumsum(1))))


def double(model: nn.Module) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in model.double().parameters():
            nn.init.normal_(parameter, std=0.4)
    return model


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def ids() -> Tensor:
    return torch.randint(0, 7, (P, 4), generator=torch.Generator().manual_seed(0))


def brute_force(model: nn.Module, f: Callable[[int], Tensor], samples: int = P) -> Tensor:
    """The NTK, every sample and output by itself."""
    jacobian = []
    for mu in range(samples):
        for number in f(mu).flatten():
            found = torch.autograd.grad(
                number, list(model.parameters()), retain_graph=True, materialize_grads=True, allow_unused=True
            )
            jacobian.append(torch.cat([one.flatten() for one in found]))
    return torch.stack(jacobian) @ torch.stack(jacobian).T


def same(kernel: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(kernel.reshape(expected.shape), expected, rtol=1e-10, atol=1e-12)
