"""Code as a value: equal for functions that are written alike, and not for others."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_dmft.core.code import code_of

NUMBER = 2.0


def helped(x: Tensor) -> Tensor:
    """Reads a number of its file."""
    return NUMBER * x


def scaled(by: float) -> Callable[[Tensor], Tensor]:
    """Encloses a number."""
    return lambda x: by * helped(x)


def enclosing(number: Tensor) -> Callable[[Tensor], Tensor]:
    """Encloses a tensor."""
    return lambda x: number * x


class Scaled(nn.Module):
    """Has a number that is no parameter, and a method."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by, self.inner = by, nn.Sequential(nn.Dropout(by))

    def forward(self, x: Tensor) -> Tensor:
        """Multiply."""
        return self.by * self.inner(x)


class Other(Scaled):
    """Does something else."""

    def forward(self, x: Tensor) -> Tensor:
        """Add."""
        return self.by + self.inner(x)


class Multiplies:
    """A callable object."""

    def __init__(self, by: float) -> None:
        self.by = by

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply."""
        return self.by * x


def default(x: Tensor, by: float = 1.0) -> Tensor:
    """Has a default."""
    return by * x


def plain(value: Any) -> str:
    """As text, tensors by their numbers."""
    return repr(code_of(value))


MAKE: dict[str, Callable[[float], Any]] = {
    "closure": scaled,
    "module": Scaled,
    "module of modules": lambda by: nn.Sequential(nn.Linear(2, 2), Scaled(by)),
    "dropout": nn.Dropout,
    "object": Multiplies,
    "partial": lambda by: partial(default, by=by),
    "method": lambda by: Scaled(by).forward,
    "tensor": lambda by: enclosing(torch.tensor(by)),
}


@pytest.mark.parametrize("which", MAKE)
def test_numbers_are_part_of_it(which: str) -> None:
    make = MAKE[which]
    assert plain(make(0.5)) == plain(make(0.5))
    assert plain(make(0.5)) != plain(make(0.25))


def test_what_is_done_is_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plain(Scaled(0.5)) != plain(Other(0.5))
    assert plain(lambda x: x[:, 0]) != plain(lambda x: x[:, 1])
    assert plain(lambda x: x.mean(1)) != plain(lambda x: x.sum(1))
    before, module = plain(scaled(1.0)), plain(Scaled(0.5))
    monkeypatch.setattr("tests.core.test_code.NUMBER", 3.0)
    assert plain(scaled(1.0)) != before
    assert plain(Scaled(0.5)) == module


def test_the_mode_and_the_weights_are_not() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
    before = plain(model)
    with torch.no_grad():
        model[0].weight.zero_()
    assert plain(model.eval()) == before
