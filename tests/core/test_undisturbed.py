from __future__ import annotations

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
