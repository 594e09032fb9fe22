"""Residual networks with their branches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

D, N, SAMPLES = 5, 24, 7
ALPHA = {"1/sqrt(L)": 0.5, "1/L": 1.0}


class Block(nn.Module):
    """Norm, weight, activation, weight: x -> multiplier b(x)."""

    multiplier = 1.0

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, h: Tensor) -> Tensor:
        return self.multiplier * self.down(torch.tanh(self.up(self.norm(h))))


class NormedBlock(nn.Module):
    """A branch that ends with a norm layer, as those of ResNets do."""

    multiplier = 1.0

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.norm = nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, h: Tensor) -> Tensor:
        return self.multiplier * self.norm(self.up(torch.tanh(h)))


class Residual(nn.Module):
    """Data, L blocks on a stream, a norm and a readout."""

    def __init__(self, blocks: int, width: int = N, block: type[nn.Module] = Block, *, post: bool = False) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(D, width), nn.Linear(width, 2)
        self.blocks = nn.ModuleList(block(width) for _ in range(blocks))
        self.posts = nn.ModuleList(nn.LayerNorm(width) if post else nn.Identity() for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block, post in zip(self.blocks, self.posts, strict=True):
            h = post(h + block(h))
        return self.head(h)


def gpt2(width: int, blocks: int = 3) -> nn.Module:
    sizes = {"n_embd": width, "n_layer": blocks, "n_head": width // 8, "vocab_size": 50, "n_positions": 16}
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    import transformers

    return transformers.GPT2ForSequenceClassification(transformers.GPT2Config(**sizes, **ids, num_labels=3))
