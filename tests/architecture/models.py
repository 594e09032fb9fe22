"""Models of every structure that ``describe`` is to understand, and their example inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def cnn(width: int = 8) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1, padding_mode="circular"),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, stride=2, groups=2),
        nn.GroupNorm(2, 2 * width),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(2 * width, 10),
    )


class ResidualMLP(nn.Module):
    """A pre-activation residual stream with in-place sums."""

    def __init__(self, width: int = 16, blocks: int = 2) -> None:
        super().__init__()
        self.stem = nn.Linear(5, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(blocks))
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            branch = block(F.gelu(norm(h)))
            branch += h
            h = branch
        return self.head(h)


class BasicBlock(nn.Module):
    """A ResNet block with a projected skip."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.skip = nn.Conv2d(channels, out, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.skip(x)
        return self.relu(out)


def resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        BasicBlock(8, 16),
        BasicBlock(16, 16),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    )


class Tokens(nn.Module):
    """Token and position embeddings, a block used twice, and a mean over positions."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.token = nn.Embedding(20, width)
        self.position = nn.Embedding(6, width)
        self.norm = nn.RMSNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.head = nn.Linear(width, 20, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.token(tokens) + self.position(torch.arange(tokens.shape[1]))
        for _ in range(2):
            h = h + self.down(torch.tanh(self.up(self.norm(h)))) / 2**0.5
        return F.log_softmax(self.head(h.mean(dim=1)), dim=-1)


class Gated(nn.Module):
    """Two arguments, chunks, products, concatenation with the data, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.both = nn.Linear(8, 16)
        self.classes = nn.Linear(8 + 3, 2)
        self.value = nn.Linear(8 + 3, 1)

    def forward(self, x: Tensor, context: Tensor) -> dict[str, Tensor]:
        h = self.stem(x).relu_()
        value, gate = self.both(h).chunk(2, dim=-1)
        h = torch.cat([h + value * torch.sigmoid(gate), context], -1)
        return {"classes": self.classes(h), "value": self.value(h).squeeze(-1)}
