"""Threads that meet inside of a network.

They meet at events; where one has to be inside of a call or waiting, its stack is looked at.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_dmft.core import threads

FOREVER = 30.0
"""Seconds after which a test that hangs fails."""


class Meets(nn.Module):
    """Passes its input on; in the thread that measures it lets another one act meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.act: Callable[[], object] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.act is not None:
            self.act()
        return x

    def once(self, act: Callable[[], object]) -> None:
        """Act in the next pass; the attribute alone would be put back behind a measurement."""
        acts = iter([act])
        self.act = lambda: next(acts, int)()


class AlwaysDrops(nn.Module):
    """Dropout in both modes."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, training=True) + torch.randn_like(x) + torch.rand(x.shape)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 8), Meets(), nn.Tanh(), nn.Linear(8, 2))


def with_norm() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), Meets(), nn.ReLU(), nn.Linear(8, 2))


def with_dropout() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 8), nn.Dropout(), Meets(), nn.ReLU(), nn.Linear(8, 2))


def convolution() -> nn.Sequential:
    convolution = nn.Conv1d(1, 4, 2)
    return nn.Sequential(
        nn.Unflatten(1, (1, 3)), convolution, nn.BatchNorm1d(4), Meets(), nn.Flatten(), nn.Linear(8, 2)
    )


MODELS = [mlp, with_norm, with_dropout, convolution]


def meeting(model: nn.Module) -> Meets:
    return next(module for module in model.modules() if isinstance(module, Meets))


def inside(thread: int, *where: Callable[..., Any]) -> None:
    """Wait until a thread is inside of one of these functions."""
    codes = {one.__code__ for one in where}
    ends = time.monotonic() + FOREVER
    while time.monotonic() < ends:
        time.sleep(0)
        frame = sys._current_frames().get(thread)
        while frame is not None and isinstance(frame.f_code, CodeType):  # as torch.compile tears frames down
            if any(frame.f_code is code for code in codes):
                return
            frame = frame.f_back
    raise AssertionError("it never came there")


def calling(thread: int, model: nn.Module) -> None:
    """Wait until a thread is inside of a call of a module."""
    ends = time.monotonic() + FOREVER
    while not any(one is model for one in threads.calls_of_threads()[thread]):
        assert time.monotonic() < ends
