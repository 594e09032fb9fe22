r"""Standard errors of a mean over few independent replicas.

With R replicas a variance has R - 1 degrees of freedom, and late in training the errors of all outputs are one: that of the
rate of the slowest mode. Two things help. What is pooled over many entries is known better than each entry. And the tangent
kernel, whose errors in different modes are different numbers, tells how large errors of outputs are: if its mean over time is
off by a share :math:`\epsilon_i` in mode i, that mode is off as if another time had passed,

.. math:: \delta f = \sum_i u_i\, t \lambda_i \epsilon_i\, u_i^\top \Delta, \qquad
          \delta L = -\sum_i t \lambda_i \epsilon_i (u_i^\top \Delta)^2, \qquad K = \sum_i \lambda_i u_i u_i^\top .

The bars are such that two of them are a 95% interval: s t_{.975}(nu) / 1.96 / sqrt(R) with nu degrees of freedom.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_PRIOR_DEGREES = 8
"""Weight of the variance pooled over entries against each entry's own, in degrees of freedom."""
_LOSS_DEGREES = 2
"""The same of the variance that independent outputs would give a loss: their errors are correlated, so it counts for less."""
_TANGENT_DEGREES = 3
"""The same of the variance that follows from the errors of the tangent kernel."""
_TANGENT_FACTOR = 2.5
"""How much larger the variance of the loss is than independent modes make it: that of 160 replicas was 1.8 to 3.5 times as
large until the loss had fallen to 1e-5, and 5 times at 1e-9, where the slowest mode is left (two tanh layers, 20 rows)."""
_MODE_DEGREES = 2
"""Weight of the relative variance of all modes against that of each mode."""
_MODES = 128
"""Largest number of rows whose modes are computed at every recorded time."""


def standard_error(values: Sequence[Tensor]) -> Tensor:
    """Moderated standard error of the mean of arrays ``(time, ...)``, in the arrays' layout.

    The variance of an entry is estimated from few replicas, so it is moderated by the variance pooled over all entries of
    the same array and time: s^2 = (nu s_entry^2 + nu_0 s_pool^2) / (nu + nu_0), nu = replicas - 1.
    """
    stacked = torch.stack(list(values)).double()
    variance, degrees = moderated(stacked)
    return error_of_mean(variance, degrees, len(stacked)).to(values[0].dtype)


def moderated(values: Float[Tensor, "replica time ..."]) -> tuple[Tensor, int]:
    """The variance of every entry over replicas and its degrees of freedom."""
    variance, degrees = values.var(0), len(values) - 1
    if variance.ndim == 1:
        return variance, degrees
    pooled = variance.flatten(1).mean(1).reshape(-1, *[1] * (variance.ndim - 1))
    return (degrees * variance + _PRIOR_DEGREES * pooled) / (degrees + _PRIOR_DEGREES), degrees + _PRIOR_DEGREES


def error_of_mean(variance: Tensor, degrees: int, count: int) -> Tensor:
    """The bar of a mean of ``count`` numbers with this variance: 1.96 of them are half a 95% interval of Student's t."""
    from scipy.special import ndtri, stdtrit  # slow to import

    return (variance / count).sqrt() * float(stdtrit(degrees, 0.975) / ndtri(0.975))


@dataclass(frozen=True, eq=False)
class Limit:
    """What replicas of one limit tell about its outputs and loss beside these themselves.

    Attributes:
        outputs: ``(replica, time, sample, output)``.
        ntk: ``(replica, time, row, row)``, the tangent kernel of training rows (times outputs); None if not known.
        train: which samples are trained on.
        passed: ``(time,)``, the sum of the rates of the steps before.
        loss: outputs ``(sample, output)`` to a number.
    """

    outputs: Float[Tensor, "replica time sample output"]
    ntk: Float[Tensor, "replica time row row"] | None
    train: Bool[Tensor, " sample"]
    passed: Float[Tensor, " time"]
    loss: Callable[[Tensor], Tensor]

    def bars(self) -> tuple[Float[Tensor, "time sample output"], Float[Tensor, " time"], Float[Tensor, " time"]]:
        """Standard errors of the mean outputs, the loss of the mean outputs, and its standard error.

        Noise alone would raise a mean of losses, so the loss is that of the mean. To first order a replica's loss is off by
        dL/df . (f - mean f). Both bars contain what rounding the outputs does.
        """
        count = len(self.outputs)
        own = count - 1
        mean = self.outputs.mean(0)
        losses, slope = self._losses(mean)
        every = self.outputs.double()
        tangent = self._tangent(slope)
        f_variance, f_degrees = self._outputs_variance(every, None if tangent is None else tangent[0])
        l_own = ((every - every.mean(0)) * slope).flatten(2).sum(2).var(0)
        prior, weight = (slope.square() * f_variance).flatten(1).sum(1), _LOSS_DEGREES
        if tangent is not None:  # early in training other errors are larger than those of rates
            prior, weight = torch.maximum(prior, tangent[1]), _TANGENT_DEGREES
        l_variance = (own * l_own + weight * prior) / (own + weight)
        rounding = torch.finfo(mean.dtype).eps * mean.double().abs().flatten(1).amax(1)
        f_bars = error_of_mean(f_variance, f_degrees, count)
        f_bars = (f_bars.square() + rounding[:, None, None].square()).sqrt()
        l_bars = error_of_mean(l_variance, own + weight, count)
        moved = torch.stack([self._losses(mean.double() + s * rounding[:, None, None])[0] for s in (-1, 1)])
        l_rounding = (moved - self._losses(mean.double())[0]).abs().amax(0)
        return f_bars, losses, (l_bars.square() + l_rounding.to(l_bars).square()).sqrt()

    def _losses(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """The loss at every time and its slope by the outputs."""
        outputs = outputs.detach().clone().requires_grad_()
        with torch.enable_grad():
            losses = torch.stack([self.loss(at) for at in outputs]).to(outputs.device)
            (slope,) = torch.autograd.grad(losses.sum(), outputs)
        return losses.detach(), slope.double()

    def _outputs_variance(self, every: Tensor, tangent: Tensor | None) -> tuple[Tensor, int]:
        """The variance of outputs, training rows and others pooled apart: late in training the former are known far better."""
        variance, own = every.var(0), len(every) - 1
        pooled = torch.zeros_like(variance)
        for rows in (self.train, ~self.train):
            if bool(rows.any()):
                pooled[:, rows] = variance[:, rows].flatten(1).mean(1)[:, None, None]
        if tangent is not None:
            mixed = (own * pooled + _TANGENT_DEGREES * tangent.mean((1, 2))[:, None, None]) / (own + _TANGENT_DEGREES)
            pooled = torch.where(self.train[:, None], torch.maximum(mixed, pooled), pooled)
        return (own * variance + _PRIOR_DEGREES * pooled) / (own + _PRIOR_DEGREES), own + _PRIOR_DEGREES

    def _tangent(self, slope: Tensor) -> tuple[Float[Tensor, "time sample output"], Float[Tensor, " time"]] | None:
        """The variances of training outputs and loss that follow from that of the tangent kernel."""
        if self.ntk is None or self.ntk.shape[-1] > _MODES:
            return None
        own, kernel = len(self.ntk) - 1, self._averaged(self.ntk.double())
        rates, modes = torch.linalg.eigh(kernel.mean(0))
        found = torch.einsum("tai,rtab,tbi->rti", modes, kernel, modes)
        sizes = rates.abs()  # of perturbation theory they may be negative
        share = found.var(0) / sizes.clamp(min=1e-6 * sizes.amax(1, keepdim=True).clamp(min=1e-100)).square()
        share = (own * share + _MODE_DEGREES * share.mean(1, keepdim=True)) / (own + _MODE_DEGREES)
        error = slope[:, self.train]
        shape = error.shape
        error = error.reshape(len(error), rates.shape[1], -1)  # outputs apart where the kernel is of samples
        along = torch.einsum("tai,tac->tic", modes, error)
        moved = (self.passed[:, None] * rates)[..., None] * along
        f = _TANGENT_FACTOR * torch.einsum("tai,tic->tac", modes.square(), moved.square() * share[..., None])
        loss = _TANGENT_FACTOR * ((moved * along).sum(2).square() * share).sum(1)
        return f.reshape(shape), loss

    def _averaged(self, kernel: Float[Tensor, "replica time row row"]) -> Float[Tensor, "replica time row row"]:
        """The tangent kernel averaged over the time that has passed, as far as recorded times tell."""
        passed = self.passed
        between = passed.diff()[None, :, None, None] * (kernel[:, 1:] + kernel[:, :-1]) / 2
        summed = torch.cat([passed[0] * kernel[:, :1], passed[0] * kernel[:, :1] + between.cumsum(1)], dim=1)
        return torch.where((passed > 0)[:, None, None], summed / passed.clamp(min=1e-300)[:, None, None], kernel)
