r"""Standard errors of a mean over few independent replicas.

With R replicas a variance has R - 1 degrees of freedom. What is pooled over many entries is known better than each entry
(``standard_error``, ``kernel_error``). A loss is one number, and late in training the errors of all outputs are one, that of
the rate of the slowest mode; there the tangent kernel helps, whose errors in different modes are different numbers. If its
mean over the time t that has passed is off by :math:`\delta K`, outputs and loss are off by about

.. math:: \delta f = t\, \delta K \Delta, \qquad \delta L = -t\, \Delta^\top \delta K \Delta, \qquad
          \Delta = -\partial L / \partial f .

A loss has the variance that follows from independent outputs, and beside it the one that follows from modes of K whose rates
are off together (``Limit``); the sum of the two was .8 to 2 times the true variance of 160 to 240 replicas of 512 and 1024
neurons (two layers of tanh or ReLU, cross entropy, minibatches, 20 rows).

The bars are such that two of them are a 95% interval: s t_{.975}(nu) / 1.96 / sqrt(R) with nu degrees of freedom.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from torch_dmft.core.kernel import Kernel

_PRIOR_DEGREES = 8
"""Largest weight of the variance pooled over entries against each entry's own, in degrees of freedom."""
_LOSS_DEGREES = 6
"""The same of the variance of a loss that follows from the variances of outputs and tangent kernel."""
_TANGENT_DEGREES = 3
"""The same of the variance of outputs that follows from the tangent kernel."""
_ALONE = 2.5
"""How much larger the variance of a loss is than independent outputs make it, where modes are not known: 1 to 5 times."""
_MODE_DEGREES = 2
"""Weight of the relative variance of all modes against that of each mode."""
_MODES = 128
"""Largest number of rows whose modes are computed at every recorded time."""
_SMALLEST = 1e-6
"""Smallest share of the largest rate that errors of rates are taken relative to."""
_NOTHING = 1e-20
"""The same of squared entries of kernels."""


def standard_error(values: Sequence[Tensor]) -> Tensor:
    """Moderated standard error of the mean of arrays ``(time, ...)``, in the arrays' layout.

    The variance of an entry is estimated from few replicas, so it is moderated by the variance pooled over all entries of
    the same array and time: s^2 = (nu s_entry^2 + nu_0 s_pool^2) / (nu + nu_0), nu = replicas - 1.
    """
    stacked = torch.stack(list(values)).double()
    variance, own, extra = stacked.var(0), len(stacked) - 1, 0
    if variance.ndim > 1:
        extra = min(_PRIOR_DEGREES, own * (variance[0].numel() - 1))
        pooled = variance.flatten(1).mean(1).reshape(-1, *[1] * (variance.ndim - 1))
        variance = (own * variance + extra * pooled) / (own + extra)
    return error_of_mean(variance, own + extra, len(stacked)).to(values[0].dtype)


def kernel_error(values: Sequence[Tensor]) -> Tensor:
    """Moderated standard error of the mean of kernels in one of the layouts of ``core.Kernel``.

    Entries differ in size, and so do their errors. Gram matrices of Gaussian samples have the variances (Wishart)

    .. math:: V_{ab} = s^2 (K_{aa} K_{bb} + K_{ab}^2) .

    What is pooled at each time is s^2, apart for entries of one sample and of two, of one output and of two.
    """
    stacked = torch.stack(list(values)).double()
    own, mean = len(stacked) - 1, Kernel(stacked.mean(0))
    outputs = mean.array.shape[2] if mean.has_outputs else 1
    times, rows = len(mean.array), mean.array.shape[1] * outputs
    size = mean.equal_time.reshape(times, rows, rows).diagonal(dim1=1, dim2=2).abs()
    law = mean.array.reshape(times, rows, -1).square()
    law += size[:, :, None] * (size.reshape(1, 1, -1) if mean.is_two_time else size[:, None])
    law.clamp_(min=_NOTHING * float(law.max()) + torch.finfo(law.dtype).tiny)
    variance = stacked.var(0).reshape(law.shape)
    errors = torch.zeros_like(law)
    for kind in _kinds(rows, outputs, law.device):
        extra = min(_PRIOR_DEGREES, own * (int(kind.triu().sum()) - 1))
        wide = kind.repeat(1, law.shape[2] // rows)
        pooled = (variance[:, wide] / law[:, wide]).mean(1, keepdim=True) * law[:, wide]
        errors[:, wide] = error_of_mean(
            (own * variance[:, wide] + extra * pooled) / (own + extra), own + extra, own + 1
        )
    return errors.reshape(mean.array.shape).to(values[0].dtype)


def _kinds(rows: int, outputs: int, device: torch.device) -> list[Bool[Tensor, "row row"]]:
    """Pairs of rows (sample, output) by whether they are of one sample and of one output; only those kinds that there are."""
    row = torch.arange(rows, device=device)
    sample, output = (part[:, None] == part for part in (row // outputs, row % outputs))
    kinds = (sample & output, sample & ~output, ~sample & output, ~sample & ~output)
    return [kind for kind in kinds if bool(kind.any())]


def error_of_mean(variance: Tensor, degrees: int, count: int) -> Tensor:
    """The bar of a mean of ``count`` numbers with this variance: 1.96 of them are half a 95% interval of Student's t."""
    from scipy.special import ndtri, stdtrit  # slow to import

    return (variance / count).sqrt() * float(stdtrit(degrees, 0.975) / ndtri(0.975))


def _stretch(share: Tensor) -> Tensor:
    """What makes of a share sigma of a positive number, its error, the upper half of the interval of its logarithm.

    (e^{1.96 sigma} - 1) / (1.96 sigma), sigma at most 1: a loss that falls like e^{-2 lambda t} is off by a factor, and one
    that is too small would have too small a bar.
    """
    wide = 1.96 * share.clamp(min=1e-6, max=1.0)
    return wide.expm1() / wide


def _shape(variance: Tensor, law: Tensor) -> Tensor:
    """How variances are shared out over entries ``(time, sample, output)``, as far as they follow a law: mean one.

    (a + b law) / mean variance, least squares at each time, a and b not negative.
    """
    tiny = torch.finfo(variance.dtype).tiny
    mean, follows = (part.mean((1, 2), keepdim=True) for part in (variance, law))
    off = law - follows
    slope = ((variance - mean) * off).sum((1, 2), keepdim=True) / off.square().sum((1, 2), keepdim=True).clamp(min=tiny)
    slope = torch.minimum(slope.clamp(min=0), mean / follows.clamp(min=tiny))
    return 1 + slope * off / mean.clamp(min=tiny)


@dataclass(frozen=True, eq=False)
class Limit:
    """What replicas of one limit tell about its outputs and loss beside these themselves.

    Attributes:
        outputs: ``(replica, time, sample, output)``.
        ntk: of every replica ``(time, row, row)``, the tangent kernel of training rows (times outputs); None if not known. They
            are looked at one by one, as together they are the largest array of all.
        train: which samples are trained on.
        passed: ``(time,)``, the sum of the rates of the steps before.
        loss: outputs ``(sample, output)`` to a number.
    """

    outputs: Float[Tensor, "replica time sample output"]
    ntk: Sequence[Float[Tensor, "time row row"]] | Float[Tensor, "replica time row row"] | None
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
        prior = (slope.square() * f_variance).flatten(1).sum(1)
        prior = _ALONE * prior if tangent is None else prior + tangent[1]
        l_variance = (own * l_own + _LOSS_DEGREES * prior) / (own + _LOSS_DEGREES)
        rounding = torch.finfo(mean.dtype).eps * mean.double().abs().flatten(1).amax(1)
        l_bars = error_of_mean(l_variance, own + _LOSS_DEGREES, count)
        share = torch.where(losses > 0, l_bars / losses.double().clamp(min=torch.finfo(torch.double).tiny), 0.0)
        stretch = torch.where(self.train[:, None], _stretch(share / 2)[:, None, None], 1.0)
        f_bars, l_bars = stretch * error_of_mean(f_variance, f_degrees, count), l_bars * _stretch(share)
        f_bars = (f_bars.square() + rounding[:, None, None].square()).sqrt()
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
        """The variance of outputs, training rows and others pooled apart: late in training the former are known far better.

        Late in training the errors are those of few modes, and rows have their shares in them: of rows with a tenth of the
        others' variance, and with ten times of it, the tangent kernel tells which is which.
        """
        variance, own = every.var(0), len(every) - 1
        pooled = torch.zeros_like(variance)
        for rows in (self.train, ~self.train):
            if bool(rows.any()):
                pooled[:, rows] = variance[:, rows].flatten(1).mean(1)[:, None, None]
        if tangent is not None:
            known = variance[:, self.train]
            mean, follows = (part.mean((1, 2), keepdim=True) for part in (known, tangent))
            mixed = (own * mean + _TANGENT_DEGREES * follows) / (own + _TANGENT_DEGREES)
            pooled[:, self.train] = torch.maximum(mixed, mean) * _shape(known, tangent)
        return (own * variance + _PRIOR_DEGREES * pooled) / (own + _PRIOR_DEGREES), own + _PRIOR_DEGREES

    def _tangent(self, slope: Tensor) -> tuple[Float[Tensor, "time sample output"], Float[Tensor, " time"]] | None:
        r"""The variances of training outputs and loss that follow from that of the tangent kernel.

        With s_i the relative error of the rate of mode i, as replicas show it, and x_i how often the mode has decayed,

        .. math:: \mathrm{Var} f_i = (x_i s_i \Delta_i)^2, \qquad \mathrm{Var} L = \Big( \sum_i x_i s_i \Delta_i^2 \Big)^2 .

        Rates of all modes are off together, as replicas learn features by more or by less.
        """
        if self.ntk is None or self.ntk[0].shape[-1] > _MODES:
            return None
        own, mean = len(self.ntk) - 1, torch.zeros_like(self.ntk[0], dtype=torch.float64)
        for kernel in self.ntk:
            mean += kernel
        rates, modes = torch.linalg.eigh(self._averaged(mean / len(self.ntk)))
        found = torch.stack(
            [torch.einsum("tai,tab,tbi->ti", modes, self._averaged(kernel.double()), modes) for kernel in self.ntk]
        )
        sizes = rates.abs()  # of perturbation theory they may be negative
        sizes = sizes.clamp(min=_SMALLEST * sizes.amax(1, keepdim=True).clamp(min=1e-100))
        share = found.var(0) / sizes.square()
        share = (own * share + _MODE_DEGREES * share.mean(1, keepdim=True)) / (own + _MODE_DEGREES)
        error = slope[:, self.train]
        shape = error.shape
        error = error.reshape(len(error), rates.shape[1], -1)  # outputs apart where the kernel is of samples
        along = torch.einsum("tai,tac->tic", modes, error)
        errors = self._decays(sizes, along) * share.sqrt()
        f = torch.einsum("tai,tic->tac", modes.square(), errors.square()[..., None] * along.square())
        return f.reshape(shape), (along.square().sum(2) * errors).sum(1).square()

    def _decays(self, rates: Float[Tensor, "time mode"], along: Float[Tensor, "time mode output"]) -> Tensor:
        """How often every mode has decayed by a factor of e; one more than all error signals together at most."""
        fallen = torch.linalg.vector_norm(along, dim=(1, 2)).clamp(min=torch.finfo(along.dtype).tiny).log()
        since = rates * self.passed[0] + (fallen[0] - fallen).clamp(min=0)[:, None]
        return torch.minimum(rates * self.passed[:, None], 1 + since)

    def _averaged(self, kernel: Float[Tensor, "time row row"]) -> Float[Tensor, "time row row"]:
        """The tangent kernel averaged over the time that has passed, as far as recorded times tell."""
        passed = self.passed
        between = passed.diff()[:, None, None] * (kernel[1:] + kernel[:-1]) / 2
        summed = torch.cat([passed[0] * kernel[:1], passed[0] * kernel[:1] + between.cumsum(0)])
        return torch.where((passed > 0)[:, None, None], summed / passed.clamp(min=1e-300)[:, None, None], kernel)
