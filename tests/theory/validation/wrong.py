"""Wrong theories, for tests that must notice: the engine without responses, and without the equal-time one B(t, t)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import Function

from torch_dmft.core.trajectory import Trajectory
from torch_dmft.theory.engine.layers import InfiniteLinear
from torch_dmft.theory.engine.passes import AutogradPass, Passes
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.sharing import Sharing
from torch_dmft.theory.solvers import InfiniteWidth
from torch_dmft.theory.solvers.infinite_width import train_replicas


@dataclass(frozen=True)
class WithoutResponses(InfiniteWidth):
    """Networks with random feedback: A = B = 0, but outputs are those of the forward pass."""

    def run_shared(
        self, problem: Problem, record: Tensor, *, two_time: bool, progress: bool, sharing: Sharing
    ) -> Trajectory:
        shown = {"two_time": two_time, "progress": progress}
        return train_replicas(self, problem, record, **shown, origin="wrong", sharing=sharing, responses=False)


class _WithoutEqualTime(Function):
    """h -> h, taking from the gradient of the layer's input what W^T owes to W having made h in this very pass.

    With Var W_ij = g^2 / S, Stein's lemma gives W^T (phi'(h) z) a part (g^2 / S) sum_i phi''(h_i) z_i along the input.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, h: Tensor, variance: float) -> Tensor:
        ctx.variance = variance
        ctx.save_for_backward(x, h)
        return h.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, h = ctx.saved_tensors
        curvature = -2 * torch.tanh(h) * grads[0]  # phi'' z from phi' z, for tanh
        return -ctx.variance * curvature.sum(-1, keepdim=True) * x, grads[0], None


def drop_equal_time_response(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the test ends, infinite layers of tanh networks (without weight decay) have B(t, t) = 0."""
    right = InfiniteLinear.forward

    def forward(layer: InfiniteLinear, x: Tensor) -> Tensor:
        return _WithoutEqualTime.apply(x, right(layer, x), layer.gain**2 / layer.in_features)  # type: ignore[no-any-return,no-untyped-call]

    def differentiated(passes: Passes, inputs: Tensor, *, measured: bool) -> AutogradPass:
        return AutogradPass(passes, inputs, measured=measured)

    monkeypatch.setattr(InfiniteLinear, "forward", forward)
    monkeypatch.setattr(Passes, "__call__", differentiated)  # the written-out pass of a chain calls no forward
