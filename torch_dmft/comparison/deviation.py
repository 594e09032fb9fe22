"""Deviation: how far a measured kernel is from a predicted one, step by step, with the error bar of the prediction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from torch_dmft.comparison.metrics import cosines, nonzero, quotients
from torch_dmft.core.kernel import Kernel


@dataclass(frozen=True)
class Deviation:
    """How far a measured kernel X is from its prediction Y at each common step.

    The error bars come from the standard errors s of the entries of Y (and of X, where the measured side is an average
    that has them). With n_Y = |s_Y| / |Y|, n_X = |s_X| / |X| and e = (X - Y) / |X - Y|, first-order propagation and
    Cauchy-Schwarz give

        stderr of r = |X - Y| / |Y|:   sqrt( (n_Y |e + r Y/|Y| |)^2 + (|s_X| / |Y|)^2 )
        stderr of A = cos(X, Y):       sqrt(1 - A^2) n + n^2 / 2,      n^2 = n_Y^2 + n_X^2

    They are upper bounds that hold however the entries' errors are correlated, which nobody records. The second term
    of A is the loss of alignment that noise alone causes between equal kernels. Without any standard errors the bars
    are NaN: unknown, not zero; if only one side has them, the other is taken as exact.

    Attributes:
        alignment: ``(time,)``, A.
        alignment_stderr: ``(time,)``.
        relative_error: ``(time,)``, r.
        relative_error_stderr: ``(time,)``.
        noise: ``(time,)``, n_Y: the relative error that the prediction's noise alone causes. A relative error below
            about twice this number is no evidence of a difference.
    """

    alignment: Tensor
    alignment_stderr: Tensor
    relative_error: Tensor
    relative_error_stderr: Tensor
    noise: Tensor


def deviation(
    measured: Kernel, predicted: Kernel, measured_stderr: Kernel | None = None, predicted_stderr: Kernel | None = None
) -> Deviation:
    """Compare two kernels at equal times, step by step.

    Args:
        measured: X, any layout of ``Kernel``; its equal-time part is used.
        predicted: Y, with the same equal-time shape.
        measured_stderr: the standard error of every entry of X, if known.
        predicted_stderr: the standard error of every entry of Y, if known.

    Returns:
        One number per time in each field; zero norms follow the rule of ``torch_dmft.comparison.metrics``.
    """
    x, y = _rows(measured), _rows(predicted)
    x_norm, y_norm = x.norm(dim=1), y.norm(dim=1)
    distance = (x - y).norm(dim=1)
    relative_error, alignment = quotients(distance, y_norm), cosines(x, y)

    spread_x = _spread(measured_stderr, x_norm)
    spread_y = _spread(predicted_stderr, y_norm)
    if measured_stderr is None and predicted_stderr is None:
        spread_y = torch.full_like(y_norm, torch.nan)
    noise_y = quotients(spread_y, y_norm)
    noise = (noise_y**2 + quotients(spread_x, x_norm) ** 2).sqrt()
    gradient = (x - y) / nonzero(distance)[:, None] + (relative_error / nonzero(y_norm))[:, None] * y
    slope = gradient.norm(dim=1).masked_fill(distance == 0, 1.0)
    return Deviation(
        alignment=alignment,
        alignment_stderr=(1 - alignment**2).sqrt() * noise + noise**2 / 2,
        relative_error=relative_error,
        relative_error_stderr=((noise_y * slope) ** 2 + quotients(spread_x, y_norm) ** 2).sqrt(),
        noise=noise_y if predicted_stderr is not None else torch.full_like(y_norm, torch.nan),
    )


def _rows(kernel: Kernel) -> Float[Tensor, "time entry"]:
    return kernel.equal_time.detach().to("cpu", torch.float64).flatten(1)


def _spread(stderr: Kernel | None, norms: Tensor) -> Tensor:
    return torch.zeros_like(norms) if stderr is None else _rows(stderr).norm(dim=1)
