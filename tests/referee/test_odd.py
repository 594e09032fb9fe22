"""Odd set-ups, each right and with one rate of Adam for all: none is called by the other's word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torch_dmft as dmft

BASE = 32
Factory = Any


def scaled(model: nn.Module, width: int, hidden: Sequence[str], readouts: Sequence[str], *, is_right: bool) -> Any:
    """Rates of muP for Adam, and starts of its readouts; or one rate."""
    r, groups = width / BASE, []
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter *= r**-0.5 if name in readouts and is_right else 1.0
            factor = 1 / r if is_right and name in (*hidden, *readouts) else 1.0
            groups.append({"params": [parameter], "lr": 0.02 * factor})
    return model, torch.optim.Adam(groups)


def mlp(width: int, *, is_right: bool) -> Any:
    model = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))
    return scaled(model, width, ["2.weight"], ["4.weight"], is_right=is_right)


class Tied(nn.Module):
    """An embedding that reads out as well, over the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding, self.hidden = nn.Embedding(20, width), nn.Linear(width, width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        h = torch.relu(self.hidden(self.embedding(tokens)))
        return F.linear(h / h.shape[-1], self.embedding.weight)


def tied(width: int, *, is_right: bool) -> Any:
    return scaled(Tied(width), width, ["hidden.weight"], [], is_right=is_right)


def depthwise(width: int, *, is_right: bool) -> Any:
    mixes = nn.Conv1d(width, width, 3, groups=width)
    ends = (nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(width, 4))
    model = nn.Sequential(nn.Conv1d(3, width, 3), nn.ReLU(), mixes, nn.ReLU(), *ends)
    return scaled(model, width, [], ["6.weight"], is_right=is_right)


class Bare(nn.Module):
    """Parameters without modules, of which einsum makes products."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(8, width) / 3), nn.Parameter(torch.randn(width, width) / width**0.5)
        self.c = nn.Parameter(torch.randn(width, 3) / width**0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.einsum("bi,ij->bj", torch.tanh(x @ self.a), self.b)
        return torch.einsum("bi,io->bo", torch.tanh(h), self.c)


def bare(width: int, *, is_right: bool) -> Any:
    return scaled(Bare(width), width, ["b"], ["c"], is_right=is_right)


class TwoHeads(nn.Module):
    """A model that returns a dictionary, with a loss for each of two readouts."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.logits, self.value = nn.Linear(width, 3), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.body(x)
        return {"logits": self.logits(h), "value": self.value(h)}


def two_heads(width: int, *, is_right: bool) -> Any:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        found = model(batch[0])
        return F.cross_entropy(found["logits"], batch[1]) + found["value"].square().mean()

    readouts = ["logits.weight", "value.weight"]
    return *scaled(TwoHeads(width), width, ["body.2.weight"], readouts, is_right=is_right), loss


def low_precision(width: int, *, is_right: bool) -> Any:
    """bfloat16 in the forward pass, and a loss that is multiplied as a GradScaler does."""

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return 1024 * F.cross_entropy(model(batch[0]), batch[1])

    return *mlp(width, is_right=is_right), loss


def rows(seed: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(16, 8, generator=generator), torch.randint(3, (16,), generator=generator))]


@pytest.mark.parametrize(
    ("make", "data", "meant"),
    [
        (tied, None, {"hidden.weight"}),
        (depthwise, None, {"6.weight"}),
        (bare, rows, {"b", "c"}),
        (two_heads, rows, {"body.2.weight", "logits.weight", "value.weight"}),
        (low_precision, rows, {"2.weight", "4.weight"}),
    ],
    ids=["tied", "depthwise", "bare parameters", "two heads in a dictionary", "bfloat16 and a scaled loss"],
)
def test_odd_set_ups(make: Factory, data: Any, meant: set[str]) -> None:
    right, wrong = (
        dmft.check(lambda width, is_right=is_right: make(width, is_right=is_right), (32, 64, 128), steps=4, data=data)
        for is_right in (True, False)
    )
    assert right.word != "wrong", str(right)
    assert wrong.word == "wrong", str(wrong)
    assert {one.parameter for one in wrong.faults} <= meant
    assert wrong.faults


def test_what_no_optimizer_holds_is_said() -> None:
    def factory(width: int) -> Any:
        model = mlp(width, is_right=True)[0]
        return model, torch.optim.Adam([*model[0].parameters(), *model[4].parameters()])

    found = dmft.check(factory, (16, 32), steps=1, seeds=2, most_seeds=2)
    assert any("no optimizer holds 2.weight, 2.bias, so" in note for note in found.measured.notes)
