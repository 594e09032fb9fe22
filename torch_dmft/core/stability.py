r"""The edge of stability: how large a learning rate is beside the one at which gradient descent begins to oscillate.

Small changes of the outputs follow df = -eta K H df with H the curvature of the loss by the outputs, so that plain descent
is stable as long as

.. math:: \frac{\eta\, \lambda_{\max}(K H)}{2} < 1 .

Momentum beta moves the edge to 1 + beta, Nesterov's to (1 + beta) / (1 + 2 beta). Near it the steps are far from gradient
flow, and small differences between two runs grow (Cohen et al. 2021, arXiv:2103.00065).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from torch_dmft.core.kernel import Kernel
from torch_dmft.core.training import Training

NEAR_THE_EDGE = 0.8
"""Of the largest stable learning rate: from here on two runs that differ in nothing but rounding may part."""
_ROUNDS = 60
_ENOUGH = 1e-3


def curvatures(outputs: Tensor, ntk: Kernel, train: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """lambda_max(K H) on the training rows at every recorded time: ``(time,)`` float64; NaN where there is none.

    Args:
        outputs: ``(time, sample, output)``.
        ntk: K at these times.
        train: ``(sample,)`` bool, the rows that the loss is of.
        loss: outputs of these rows, ``(train, output)``, to a scalar.
    """
    rows = train.cpu().nonzero().flatten()
    kernels = ntk.equal_time.detach().cpu()
    kernels = kernels[:, rows][:, :, :, rows] if ntk.has_outputs else kernels[:, rows][:, :, rows]
    size = len(rows) * (outputs.shape[2] if ntk.has_outputs else 1)
    found = [
        _largest(loss, f[rows], kernel.reshape(size, size))
        for f, kernel in zip(outputs.detach().cpu(), kernels, strict=True)
    ]
    return torch.tensor(found, dtype=torch.float64, device="cpu")


def edge(training: Training, steps: Tensor, curvature: Tensor) -> Tensor:
    """Eta lambda_max(K H) / 2 in units of where the edge of the optimizer is: ``(time,)``, 1 at the edge.

    NaN for optimizers that divide gradients by their size, whose edge lies elsewhere.
    """
    if training.optimizer != "SGD" or not training.steps:
        return torch.full_like(curvature, math.nan)
    values = []
    for step, value in zip(steps.tolist(), curvature.tolist(), strict=True):
        at = min(step, training.steps - 1)
        beta, damping = training.at("momentum", at), training.at("dampening", at)
        room = (
            (1 + beta) / (1 + 2 * beta) if training.at("nesterov", at) else (1 + beta) / (1 - damping if beta else 1.0)
        )
        values.append(training.at("lr", at) * value / 2 / room)
    return torch.tensor(values, dtype=torch.float64, device="cpu")


def _largest(loss: Callable[[Tensor], Tensor], outputs: Tensor, ntk: Tensor) -> float:
    """The largest eigenvalue of K H, by power iteration."""
    if not bool(torch.isfinite(ntk).all()):
        return math.nan
    f = outputs.detach().clone().requires_grad_()
    try:
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(loss(f), f, create_graph=True)
    except Exception:
        return math.nan
    if not slope.requires_grad:  # linear in the outputs
        return 0.0
    v = (ntk.diagonal().clamp(min=0).sqrt() + 1e-3 * ntk.sum(1).abs()).reshape(f.shape)
    value = 0.0
    for _ in range(_ROUNDS):
        norm = float(v.norm())
        if norm == 0 or not math.isfinite(norm):
            return 0.0 if norm == 0 else math.nan
        (bent,) = torch.autograd.grad(slope, f, v / norm, retain_graph=True)
        v = (ntk @ bent.flatten()).reshape(f.shape)
        before, value = value, float(v.norm())
        if abs(value - before) <= _ENOUGH * value:
            break
    return value
