"""A power of the size, with an interval: the slope of log values against log sizes, whose error is the scatter of the seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class PowerLaw:
    """A quantity that goes as size^exponent.

    Attributes:
        exponent: slope of log value against log size, by least squares over the means of the seeds; NaN if a value is not
            positive and finite.
        error: its standard error; NaN with a single seed.
        freedom: degrees of freedom of the error.
        wide: the slope over the widest half of the sizes; where corrections of finite size fade, it is nearer to the limit.
    """

    exponent: float
    error: float
    freedom: int
    wide: float

    def reach(self, level: float) -> float:
        """Half the width of Student's interval that misses the exponent with a probability of ``level``."""
        return student(self.freedom, level) * self.error if self.freedom > 0 else math.nan


def power_law(sizes: Sequence[int], values: Float[Tensor, "size seed"]) -> PowerLaw:
    r"""Fit a power law.

    With x the centred logarithms of the sizes and y those of the values,

    .. math:: e = \frac{\sum_i x_i \bar y_i}{\sum_i x_i^2}, \qquad
        \sigma_e^2 = \frac{1}{S \sum_i x_i^2} \; \frac{\sum_{is} r_{is}^2}{(S - 1)(W - 1)}.

    The residuals r are those of y beside a mean for every size and one for every seed, as one seed has the same data at every
    size; how far the means are from a line is no scatter.

    Args:
        sizes: W widths or depths.
        values: of every size and seed.
    """
    logs = values.double().log()
    x = torch.tensor(sizes, dtype=torch.float64, device="cpu").log()
    if not bool(logs.isfinite().all()):
        return PowerLaw(math.nan, math.nan, 0, math.nan)
    centred = x - x.mean()
    means, (count, seeds) = logs.mean(1), logs.shape
    slope = float((centred * means).sum() / centred.square().sum())
    order = x.argsort()[-max(2, math.ceil(count / 2)) :]
    upper = x[order] - x[order].mean()
    wide = float((upper * means[order]).sum() / upper.square().sum())
    freedom = (seeds - 1) * (count - 1)
    if freedom == 0:
        return PowerLaw(slope, math.nan, 0, wide)
    residuals = logs - means[:, None] - logs.mean(0) + logs.mean()
    variance = float(residuals.square().sum()) / freedom / (seeds * float(centred.square().sum()))
    return PowerLaw(slope, math.sqrt(variance), freedom, wide)


@lru_cache(maxsize=4096)
def student(freedom: int, level: float) -> float:
    """How many standard errors Student's distribution leaves on both sides with a probability of ``level`` in all."""
    from scipy.special import stdtrit  # slow to import

    return float(stdtrit(freedom, 1 - level / 2))
