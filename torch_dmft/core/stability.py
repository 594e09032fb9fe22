r"""The edge of stability: how large a learning rate is beside the one at which gradient descent begins to oscillate.

Small changes of the outputs follow df = -eta K H df with H the curvature of the loss by the outputs, so that plain descent
is stable as long as

.. math:: \frac{\eta\, \lambda_{\max}(K H)}{2} < 1 .

Momentum beta moves the edge to 1 + beta, Nesterov's to (1 + beta) / (1 + 2 beta). Near it the steps are far from gradient
flow, and small differences between two runs grow (Cohen et al. 2021, arXiv:2103.00065).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import suppress

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, jvp, vmap

from torch_dmft.core.kernel import Kernel
from torch_dmft.core.threads import own_turn
from torch_dmft.core.training import Training

_Bend = Callable[[Tensor], Tensor]

NEAR_THE_EDGE = 0.8
"""Share of the largest stable learning rate beyond which two runs that differ only in rounding may diverge from each other."""
_ROUNDS = 60
_ENOUGH = 1e-3
_FEW = 256
"""Number of times at which derivatives are taken one by one to see whether they are the same at all."""


def curvatures(outputs: Tensor, ntk: Kernel, train: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """lambda_max(K H) on the training rows at every recorded time: ``(time,)`` float64; NaN where it is not defined.

    Args:
        outputs: ``(time, sample, output)``.
        ntk: K at these times.
        train: ``(sample,)`` bool, the rows that the loss is of.
        loss: outputs of these rows, ``(train, output)``, to a scalar.
    """
    rows = train.cpu().nonzero().flatten()
    f, kernels = outputs.detach().cpu(), ntk.equal_time.detach().cpu()
    kernels = kernels[:, rows][:, :, :, rows] if ntk.has_outputs else kernels[:, rows][:, :, rows]
    size = len(rows) * (f.shape[2] if ntk.has_outputs else 1)
    f, kernels = f[:, rows], kernels.reshape(len(f), size, size).to(f.dtype)
    finite = torch.isfinite(kernels).flatten(1).all(1) & torch.isfinite(f).flatten(1).all(1)
    largest = torch.full((len(f),), math.nan, dtype=torch.float64, device="cpu")
    with own_turn(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if bool(finite.any()):
            largest[finite] = _largest(_bending(loss, f[finite]), kernels[finite]).double()
    return largest


def edge(training: Training, steps: Tensor, curvature: Tensor) -> Tensor:
    """Eta lambda_max(K H) / 2 divided by its value at the edge of stability of the optimizer: ``(time,)``.

    NaN for optimizers that divide gradients by their size, and for other rules than the gradient, whose edge lies elsewhere;
    and in steps at which parameters have rates or momenta of their own, which K, per unit of one base rate, does not know.
    """
    if training.optimizers != "SGD" or training.rule != "gradient" or not training.steps:
        return torch.full_like(curvature, math.nan)
    values = []
    for step, value in zip(steps.tolist(), curvature.tolist(), strict=True):
        at = min(step, training.steps - 1)
        if _is_apart(training, at):
            values.append(math.nan)
            continue
        beta, damping = training.at("momentum", at), training.at("dampening", at)
        room = (
            (1 + beta) / (1 + 2 * beta) if training.at("nesterov", at) else (1 + beta) / (1 - damping if beta else 1.0)
        )
        values.append(training.at("lr", at) * value / 2 / room)
    return torch.tensor(values, dtype=torch.float64, device="cpu")


_MOVES = ("lr", "momentum", "dampening", "nesterov")
"""What decides how far a step goes; decay does not."""
_ALIKE = 0.01
"""Relative difference of rates that count as one."""


def _is_apart(training: Training, step: int) -> bool:
    """Whether a parameter that is trained moves by other numbers than the rest in a step."""
    own = [name for name in training.exceptions if name not in training.frozen]
    return any(
        not math.isclose(training.at(what, step, name), training.at(what, step), rel_tol=_ALIKE)
        for name in own
        for what in _MOVES
    )


def _bending(loss: Callable[[Tensor], Tensor], outputs: Float[Tensor, "time row output"]) -> _Bend | None:
    """A function from changes v of the outputs to H v, at all times at once; None for a loss without a second derivative."""

    def bend(v: Tensor) -> Tensor:
        return vmap(lambda f, change: jvp(grad(loss), (f,), (change,))[1])(outputs, v)

    def one_by_one(v: Tensor) -> Tensor:
        bent = []
        for f, change in zip(outputs, v, strict=True):
            f = f.clone().requires_grad_()
            with torch.enable_grad():
                (slope,) = torch.autograd.grad(loss(f), f, create_graph=True)
            bent.append(torch.autograd.grad(slope, f, change)[0] if slope.requires_grad else torch.zeros_like(f))
        return torch.stack(bent)

    with suppress(Exception):
        loss(outputs[0])  # what a loss keeps of its first call must not be tensors of a transform, which end with it
    probe = torch.linspace(0.5, 1.5, outputs.numel(), dtype=outputs.dtype, device="cpu").reshape(outputs.shape)

    def number(way: _Bend) -> Tensor | None:
        bent = way(probe)
        factor = bent.flatten()[0] / probe.flatten()[0]
        return factor if torch.allclose(bent, factor * probe, rtol=1e-5, atol=0.0) else None

    def multiplied(factor: Tensor) -> _Bend:
        return lambda v: factor * v

    def reshaped(way: _Bend) -> _Bend:
        return lambda v: way(v.reshape(outputs.shape)).flatten(1)

    # Of a squared error H is a number, which a few derivatives tell before torch.func takes a second to load its transforms.
    if len(outputs) <= _FEW:
        with suppress(Exception):
            factor = number(one_by_one)
            if factor is not None:
                return multiplied(factor)
    for way in (bend, one_by_one):  # losses that branch on values cannot be batched
        with suppress(Exception):
            factor = number(way)
            return reshaped(way) if factor is None else multiplied(factor)
    return None


def _largest(bend: _Bend | None, kernels: Float[Tensor, "time n n"]) -> Float[Tensor, " time"]:
    """The largest eigenvalues of K H, by power iteration at all times at once."""
    if bend is None:
        return kernels.new_full((len(kernels),), math.nan)
    v = kernels.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt() + 1e-3 * kernels.sum(2).abs()
    tiny = torch.finfo(v.dtype).tiny
    value = v.new_zeros(len(v))
    for _ in range(_ROUNDS):
        v = v / v.norm(dim=1, keepdim=True).clamp(min=tiny)
        v = (kernels @ bend(v)[:, :, None])[:, :, 0]
        before, value = value, v.norm(dim=1)
        if bool(((value - before).abs() <= _ENOUGH * value).all()):
            break
    return value
