"""Functions width -> model, and a run of what they build."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torch_dmft as dmft

P, STEPS = 4, 5
GENERATOR = torch.Generator().manual_seed(5)
OPTIMIZERS: dict[str, Any] = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
Factory = Callable[[int], nn.Module]


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR)


TOKENS = torch.randint(0, 11, (P, 5), generator=GENERATOR)
IMAGES, ROWS, SEQUENCES = drawn(P, 3, 4, 4), drawn(P, 6), drawn(P, 4, 3)


def mlp(width: int, *, bias: bool = False, activation: type[nn.Module] = nn.Tanh) -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, width, bias=bias),
        activation(),
        nn.Linear(width, width, bias=bias),
        nn.Tanh(),
        nn.Linear(width, 1, bias=bias),
    )


def cnn(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, bias=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 1, bias=False),
    )


class Transformer(nn.Module):
    """Embeddings of tokens and positions, attention and an MLP on a residual stream, norms."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(11, width), nn.Parameter(torch.randn(5, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.attention = nn.MultiheadAttention(width, width // 8, batch_first=True)
        self.inner, self.outer = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.head, self.dropout = nn.Linear(width, 1), dropout

    def forward(self, ids: Tensor) -> Tensor:
        h = self.tokens(ids) + self.positions
        z = self.norms[0](h)
        h = h + self.attention(z, z, z, need_weights=False)[0]
        h = h + F.dropout(self.outer(F.gelu(self.inner(self.norms[1](h)))), self.dropout, self.training)
        return self.head(self.norms[2](h).mean(1))


class Grouped(nn.Module):
    """Grouped convolutions with GroupNorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, width, 3), nn.Conv2d(width, width, 2, groups=4)
        self.norm, self.head = nn.GroupNorm(4, width), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.second(F.relu(self.first(x))))).mean((2, 3)))


class Recurrent(nn.Module):
    """An LSTM."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, width, batch_first=True), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


MODELS: dict[str, tuple[Factory, Tensor]] = {
    "transformer": (Transformer, TOKENS),
    "GroupNorm": (Grouped, IMAGES),
    "LSTM": (Recurrent, SEQUENCES),
}
TARGETS = drawn(P, 1)


def trained(
    factory: Factory,
    inputs: Any,
    *,
    width: int = 16,
    seed: int = 1,
    optimizer: str = "sgd",
    lr: float = 0.1,
    steps: int = STEPS,
    outputs: Any = None,
    before: Callable[[nn.Module], None] | None = None,
    batch_norm: str = "probe",
    **wrapping: Any,
) -> dmft.Recorder:
    """A network trained as a user would."""
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(seed)
        model = factory(width)
        if before is not None:
            before(model)
        plan = dmft.parameterize(model, inputs, outputs=outputs, **wrapping)
    stepping = OPTIMIZERS[optimizer](plan.param_groups(lr, optimizer=optimizer))
    recorder = dmft.Recorder(
        plan, dmft.Probe(inputs, TARGETS), schedule=[0, steps], outputs=outputs, batch_norm=batch_norm
    )
    with recorder.attach(stepping):
        for _ in range(steps):
            stepping.zero_grad()
            F.mse_loss(recorder.subject.run(inputs), TARGETS).backward()
            stepping.step()
    return recorder
