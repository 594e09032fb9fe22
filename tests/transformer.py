"""A small transformer encoder, in the scaling that has an infinite-width limit: heads fixed in number, or in size."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TOKENS, FEATURES, HEADS = 4, 5, 2


class Attention(nn.Module):
    """Multi-head attention with scores divided by ``d ** power``, d the size of a head.

    If the number of heads is fixed, power 1 has a limit and 1/2 has none; heads of a fixed ``size`` grow in number, and the
    power does not matter. ``by_hand`` writes the products out; ``causal`` tokens see themselves and those before.
    """

    def __init__(
        self,
        width: int,
        *,
        power: float = 1.0,
        scale: float = 1.0,
        by_hand: bool = False,
        size: int | None = None,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.power, self.scale, self.by_hand, self.causal = power, scale, by_hand, causal
        self.layout = (HEADS, -1) if size is None else (-1, size)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, self.layout).transpose(1, 2) for layer in (self.q, self.k, self.v))
        scale = self.scale / q.shape[-1] ** self.power
        if self.by_hand:
            mixed = torch.softmax(q @ k.transpose(-2, -1) * scale, -1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, scale=scale, is_causal=self.causal)
        result: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return result


class Block(nn.Module):
    """Pre-norm attention and a tanh layer, each a branch of the residual stream."""

    def __init__(self, width: int, *, norm: bool, branch: float, **attention: object) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) if norm else nn.Identity() for _ in range(2))
        self.attention = Attention(width, **attention)  # type: ignore[arg-type]
        self.up, self.down = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.branch * self.attention(self.norms[0](x))
        return x + self.branch * self.down(torch.tanh(self.up(self.norms[1](x))))


class Transformer(nn.Module):
    """``(sample, token, feature)`` -> embedding -> blocks -> mean over tokens -> readout."""

    def __init__(self, width: int = 16, *, blocks: int = 1, norm: bool = True, **attention: object) -> None:
        super().__init__()
        self.embed = nn.Linear(FEATURES, width, bias=False)
        branch = 1 / math.sqrt(blocks)
        self.blocks = nn.Sequential(*(Block(width, norm=norm, branch=branch, **attention) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.readout = nn.Linear(width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.readout(self.norm(self.blocks(self.embed(x))).mean(1))
        return result


def data(samples: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Sequences and labels that depend on which token comes first: ``(sample, token, feature)``, ``(sample, 1)``."""
    inputs = torch.randn(samples, TOKENS, FEATURES, generator=generator, dtype=dtype)
    targets = torch.sign((inputs[:, 0] * inputs[:, 1]).sum(-1, keepdim=True))
    return inputs, targets
