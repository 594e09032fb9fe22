"""Squared error, for which training with a constant tangent kernel has a closed form.

With Delta = c (y - f) on the training rows and K = V diag(lambda) V^T among them, every eigendirection is on its own. Let
e be the error y - f along it, c v the velocity and c a the sum of all velocities so far. A step of gradient descent is linear,

    v <- beta v + e,    a <- a + v,    e <- e - eta c lambda v,

so t steps are the t-th power of a 3 x 3 matrix; without momentum e(t) = (1 - eta c lambda)^t e(0). Gradient flow has
e(t) = exp(-c lambda t) e(0) and eta c a(t) = (1 - e^(-c lambda t)) / lambda e(0). All outputs follow: f(t) = eta c K V a(t).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torch_dmft.theory.problem import Problem


def error_scale(problem: Problem) -> float | None:
    """The c of Delta = c (y - f), or None if the error signal is not of this form for errors up to three times |y|."""
    if not problem.targets.is_floating_point():
        return None
    targets, train = problem.target_values, problem.train_samples
    away = torch.linspace(-1, 1, targets.numel(), dtype=targets.dtype, device=targets.device).reshape(targets.shape)
    outputs = torch.zeros(problem.samples, problem.outputs, dtype=targets.dtype, device=targets.device)
    full_batch, scale = problem if problem.batches is None else problem.trained(batches=None), None
    round_off = 1e3 * torch.finfo(targets.dtype).eps
    for distance in (1.0, -3.0 * max(1.0, float(targets.norm()))):
        outputs[:train] = targets + distance * away
        delta = full_batch.error(outputs, 0)[:train]
        if scale is None:
            scale = float(-(delta * away).sum() / away.square().sum())
        expected = -scale * distance * away
        if not torch.allclose(delta, expected, rtol=round_off, atol=round_off * abs(scale * distance)):
            return None
    return scale


def lazy_outputs(
    problem: Problem, ntk: Float[Tensor, "sample sample"], record: Int[Tensor, " time"], scale: float, *, flow: bool
) -> Float[Tensor, "time sample output"]:
    """The outputs at the recorded steps under a constant tangent kernel.

    Args:
        problem: full-batch training without weight decay.
        ntk: K, float64.
        record: the steps.
        scale: c, see ``error_scale``.
        flow: whether to follow gradient flow at the times eta * step, without momentum, instead of discrete steps.
    """
    train = problem.train_samples
    values, vectors = torch.linalg.eigh(ntk[:train, :train])
    start = vectors.mT @ problem.target_values.to(ntk)
    rates = problem.lr * scale * values
    sums = torch.stack(
        [_flowed(rates, step) if flow else _stepped(rates, step, problem.momentum) for step in record.tolist()]
    )
    return problem.lr * scale * ntk[:, :train] @ (vectors @ (sums[:, :, None] * start))


def _stepped(rates: Tensor, step: int, momentum: float) -> Tensor:
    """a(t) / (c e(0)) after ``step`` steps of gradient descent, for every eta c lambda."""
    one, none = torch.ones_like(rates), torch.zeros_like(rates)
    rows = [
        [1 - rates, -momentum * rates, none],
        [one, momentum * one, none],
        [one, momentum * one, one],
    ]
    matrix = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
    return torch.linalg.matrix_power(matrix, step)[:, 2, 0]


def _flowed(rates: Tensor, step: int) -> Tensor:
    """a(t) / (c e(0)) under gradient flow, for every eta c lambda; t where it vanishes."""
    exponent = rates * step
    still = exponent.abs() < 1e-12
    return step * torch.where(still, 1.0, -torch.expm1(-exponent) / torch.where(still, 1.0, exponent))
