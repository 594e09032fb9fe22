"""A record is right after the model's operators changed: nothing of an earlier record is taken for granted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import torch_dmft as dmft


class Changes(nn.Module):
    """Another sequence of operators from one moment on: a stride, an order, one use of a weight more."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = (
            nn.Conv2d(2, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Linear(8, 1),
        )
        self.is_late = False

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        if self.is_late:
            h = torch.tanh(nn.functional.conv2d(self.second(h).mul(0.5), self.second.weight, stride=2)) + 1
        else:
            h = self.second(h).relu_()
        return self.last(h.mean((2, 3)))


@pytest.mark.parametrize("late", [False, True], ids=["from the first sequence", "from the second sequence"])
def test_a_record_after_another_sequence_of_operators(late: bool) -> None:
    torch.manual_seed(0)
    model, inputs = Changes().double(), torch.randn(4, 2, 6, 6, dtype=torch.float64)
    recorder = dmft.Recorder(model, dmft.Probe(inputs))
    model.is_late = late
    before = recorder.record()
    model.is_late, recorder.step = not late, 1
    after = recorder.record()
    fresh = dmft.Recorder(model, dmft.Probe(inputs)).record()
    for name, one, other in (
        ("the NTK", after.ntk, fresh.ntk),
        *((layer.name, layer.ntk, same.ntk) for layer, same in zip(after.layers, fresh.layers, strict=True)),
        *((layer.name, layer.forward, same.forward) for layer, same in zip(after.layers, fresh.layers, strict=True)),
    ):
        torch.testing.assert_close(one.array, other.array, rtol=1e-10, atol=1e-12, msg=name)
    expected = dmft.empirical_ntk(model, inputs, method="jacobian")
    torch.testing.assert_close(after.ntk.array[0], expected.cpu(), rtol=1e-9, atol=1e-12)
    assert not torch.allclose(before.ntk.array, after.ntk.array)
