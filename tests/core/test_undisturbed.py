from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from torch_dmft.core.undisturbed import undisturbed


class Restless(nn.Module):
    """Changes a buffer in place, replaces another, and draws random numbers, whatever the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(2))
        self.inner = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x.detach()
        torch.rand(3)
        return self.inner(x)

    def train(self, mode: bool = True) -> Restless:
        raise AssertionError("modes are set without calling train()")


@pytest.mark.parametrize("fail", [False, True])
def test_every_trace_is_undone(fail: bool) -> None:
    model = Restless()
    model.inner.training = False
    last, random_state = model.last, torch.random.get_rng_state()
    with torch.no_grad(), torch.autocast("cpu"):
        try:
            with undisturbed(model):
                assert not model.training
                assert torch.is_grad_enabled()
                assert not torch.is_autocast_enabled("cpu")
                model(torch.ones(2))
                if fail:
                    raise RuntimeError
        except RuntimeError:
            pass
        assert not torch.is_grad_enabled()
        assert torch.is_autocast_enabled("cpu")
    assert model.training
    assert not model.inner.training
    assert float(model.calls) == 0
    assert model.last is last
    assert torch.equal(torch.random.get_rng_state(), random_state)


def test_inference_mode_is_left_inside() -> None:
    model = nn.Linear(2, 1)
    with torch.inference_mode(), undisturbed(model):
        model(torch.ones(1, 2)).sum().backward()
    assert model.weight.grad is not None


class Counter:
    def __init__(self) -> None:
        self.calls = 0


class Eccentric(nn.Module):
    """Keeps things that are neither parameters nor buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.history, self.cache = 0, [1, 2], {"last": torch.zeros(2)}
        self.plain, self.counter = torch.zeros(2), Counter()
        self.generators = (torch.Generator().manual_seed(1), random.Random(1), np.random.default_rng(1))
        self.legacy = np.random.RandomState(1)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.history.append(self.calls)
        self.cache["last"].add_(1)
        self.cache["new"] = x
        self.plain += 1
        self.counter.calls += 1
        self.fresh = x
        return x * self.drawn()[0]

    def drawn(self) -> list[float]:
        mine, of_python, of_numpy = self.generators
        return [float(torch.rand(1, generator=mine)), of_python.random(), of_numpy.random(), self.legacy.random()]


def test_attributes_containers_and_generators_are_undone() -> None:
    model, twin = Eccentric(), Eccentric()
    with undisturbed(model):
        model(torch.ones(2))
        model(torch.ones(2))
    assert (model.calls, model.history, model.counter.calls) == (0, [1, 2], 0)
    assert list(model.cache) == ["last"]
    assert not model.cache["last"].any()
    assert not model.plain.any()
    assert not hasattr(model, "fresh")
    assert twin.drawn() == model.drawn()
