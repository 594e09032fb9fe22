"""Learning rates along depth, batch size and heads, where it is known how the best one goes."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import torch_dmft as dmft
from tests.referee.sweeps import INPUTS, TARGETS
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.referee.one_run import of_value

WIDTH = 32


class Stream(nn.Module):
    """h + scale * W tanh(h), so many times, in mean-field scaling: W is of size 1/sqrt(N), the readout an average."""

    def __init__(self, blocks: int, scale: float) -> None:
        super().__init__()
        self.scale, self.first = scale, nn.Linear(8, WIDTH, bias=False)
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(blocks))
        self.last = nn.Linear(WIDTH, 1, bias=False)
        for one in self.modules():
            if isinstance(one, nn.Linear):
                nn.init.normal_(one.weight, std=one.in_features**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for block in self.blocks:
            h = h + self.scale * block(torch.tanh(h))
        return self.last(h) / WIDTH**0.5


def stream(power: float, blocks: int, lr: float) -> tuple[nn.Module, Any, Any]:
    model = Stream(blocks, blocks**power)
    return model, torch.optim.SGD(model.parameters(), lr=WIDTH * lr), nn.MSELoss()


@pytest.mark.parametrize(("power", "word"), [(-0.5, "transfers"), (0.0, "does not transfer")])
def test_along_depth_the_best_rate_stays_with_branches_over_the_root_of_l(power: float, word: str) -> None:
    found = dmft.transfer(
        partial(stream, power), (2, 4, 8, 16), lrs=(0.03, 0.1), steps=20, seeds=3, axis="depth",
        data=[(INPUTS, TARGETS)],
    )  # fmt: skip
    assert found.word == word, str(found)
    assert "goes like depth^" in str(found)
    falls = found.ceiling_exponent.high < -0.3  # of the largest stable rate: 1/L without a scale
    assert falls == (power == 0)


def linear(_: int, lr: float, reduction: str) -> tuple[nn.Module, Any, Any]:
    model = nn.Linear(8, 1)
    return model, torch.optim.SGD(model.parameters(), lr=lr), nn.MSELoss(reduction=reduction)


def copies(seed: int, size: int) -> list[tuple[Tensor, Tensor]]:
    """So many rows, the same eight again and again."""
    return [(INPUTS[:8].repeat(size // 8, 1), TARGETS[:8].repeat(size // 8, 1))]


@pytest.mark.parametrize(("reduction", "exponent"), [("mean", 0.0), ("sum", -1.0)])
def test_along_the_batch_size_the_best_rate_of_a_sum_goes_as_its_inverse(reduction: str, exponent: float) -> None:
    """Exactly, as rows are copies of each other. The best rate is the last that holds, known to half a step of the grid."""
    found = dmft.transfer(
        partial(linear, reduction=reduction),
        (8, 32, 128),
        lrs=(0.01, 0.1),
        steps=10,
        seeds=3,
        axis="batch size",
        data=copies,
    )
    assert found.exponent.value == pytest.approx(exponent, abs=1e-2)
    assert found.word == ("transfers" if exponent == 0 else "does not transfer")
    assert "batch size^" in str(found)
    assert found.exponent.reach == pytest.approx(0.2, abs=0.01)
    assert all(found.lr(found.optima[v].value) < found.lr(found.ceilings[v].value) for v in found.values)


class Mixing(nn.Module):
    """One layer of attention of so many heads, of features that are divided among them."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv = heads, nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.first, self.last = nn.Linear(1, WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x[..., None])
        q, k, v = (one.unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in self.qkv(h).chunk(3, -1))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.last(h + mixed).mean(1)


def mixing(power: float, heads: int, lr: float) -> tuple[nn.Module, Any, Any]:
    model = Mixing(heads)
    return model, torch.optim.Adam(model.parameters(), lr=lr * heads**power), nn.MSELoss()


def test_along_heads_a_rate_that_is_off_is_found() -> None:
    """The rate that is asked for is one of Adam's over the number of heads, so that the best one goes as this number."""
    settings = {"lrs": (0.01, 0.1), "steps": 10, "seeds": 2, "axis": "heads", "data": [(INPUTS, TARGETS)]}
    right, wrong = (dmft.transfer(partial(mixing, power), (2, 8), **settings) for power in (0.0, -1.0))
    assert wrong.exponent.value - right.exponent.value == pytest.approx(1.0, abs=0.05)
    assert abs(right.exponent.value) < 0.3, str(right)
    assert "goes like heads^" in str(wrong)


def test_a_check_along_another_axis_is_refused_with_the_command_that_can() -> None:
    with pytest.raises(InvalidInputError, match=r"axis='depth'"):
        dmft.check(lambda blocks: Stream(blocks, 1.0), (2, 4), steps=1)
    with pytest.raises(InvalidInputError, match=r"axis='heads'"):
        dmft.check(Mixing, (2, 4), steps=1)


def test_an_option_of_the_data_is_not_the_value_of_the_axis() -> None:
    """A batch size with a default was given the width."""

    def batches(seed: int, size: int = 32) -> tuple[int, int]:
        return seed, size

    def of_both(seed: int, value: int) -> tuple[int, int]:
        return seed, value

    asked = [cast("Any", of_value(cast("Any", data), 128))(7) for data in (batches, of_both)]
    assert asked == [(7, 32), (7, 128)]
