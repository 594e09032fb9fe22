"""Models of every kind that can be measured, small and in float64, with inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.transformer import FEATURES, TOKENS, Transformer


@dataclass(frozen=True)
class Case:
    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[torch.Generator], Tensor]

    def make(self, generator: torch.Generator, samples: int = 5) -> tuple[nn.Module, Tensor]:
        """The model with random parameters and buffers, and inputs."""
        model = self.build().double()
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point():
                with torch.no_grad():
                    draw = torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * 0.4
                    tensor.copy_(draw.abs() + 0.5 if "running_var" in name else draw)
        return model, self.inputs(generator)[:samples]


def vectors(*shape: int) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: torch.randn(8, *shape, generator=generator, dtype=torch.float64)


def tokens(length: int) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: torch.randint(0, 7, (8, length), generator=generator)


class Residual(nn.Module):
    """In-place ReLU and ``+=`` right behind weights, and one block used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.block, self.last = nn.Linear(4, 12), nn.Linear(12, 12), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x), inplace=True)
        for _ in range(2):
            branch = self.block(x)
            branch += x
            x = torch.tanh_(branch)
        output: Tensor = self.last(x)
        return output


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(6, 6, (3, 2), padding="same", dilation=2, groups=3, padding_mode="circular")
        self.batch, self.group = nn.BatchNorm2d(6), nn.GroupNorm(2, 6)
        self.head = nn.Linear(6, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.batch(self.stem(x)), inplace=True)
        x = x + F.relu(self.group(self.grouped(x)), inplace=True)
        output: Tensor = self.head(x.mean((2, 3)))
        return output


class Tokens(nn.Module):
    """Token and position embeddings (one tensor for all samples), and a layer on every token."""

    def __init__(self, length: int = 6, outputs: int = 2) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(7, 8, padding_idx=0), nn.Embedding(length, 8)
        self.norm, self.mix, self.head = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, outputs)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.position(torch.arange(ids.shape[1]))
        x = x + torch.tanh(self.mix(self.norm(x)))
        output: Tensor = self.head(x.mean(1))
        return output


class SequenceFirst(nn.Module):
    """Samples on the second axis inside."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.mix, self.head = nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.transpose(0, 1))
        x = torch.tanh(self.mix(self.norm(x)))
        output: Tensor = self.head(x.mean(0))
        return output


class Folded(nn.Module):
    """Positions folded into the batch axis."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv, self.head = nn.Linear(3, 6), nn.Conv1d(6, 6, 2), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        samples = len(x)
        x = torch.tanh(self.first(x.flatten(0, 1))).unflatten(0, (samples, 4))
        x = torch.tanh(self.conv(x.transpose(1, 2)))
        output: Tensor = self.head(x.mean(2))
        return output


def mlp(outputs: int = 1, *, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, 12, bias=bias),
        nn.Tanh(),
        nn.Linear(12, 12, bias=bias),
        nn.ReLU(inplace=True),
        nn.Linear(12, outputs, bias=bias),
    )


CASES = [
    Case("mlp", mlp, vectors(4)),
    Case("several outputs", lambda: mlp(3), vectors(4)),
    Case("no bias", lambda: mlp(bias=False), vectors(4)),
    Case("layer norm", lambda: nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 2)), vectors(4)),
    Case(
        "batch norm", lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1)), vectors(4)
    ),
    Case("residual, reused", Residual, vectors(4)),
    Case("convolution", Conv, vectors(3, 7, 6)),
    Case("embedding", Tokens, tokens(6)),
    Case("attention", lambda: Transformer(8, blocks=2), vectors(TOKENS, FEATURES)),
    Case("attention by hand", lambda: Transformer(8, norm=False, by_hand=True), vectors(TOKENS, FEATURES)),
    Case("sequence first", SequenceFirst, vectors(4, 3)),
    Case("folded", Folded, vectors(4, 3)),
]
