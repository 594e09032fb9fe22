r"""Where a loss is least in the learning rate, how that moves with a size, and how sure that is.

Near its minimum the log of the loss is a parabola in x = log2 lr. It is fitted to the five rates of the grid around the best
one, each weighted by exp(-d^2 / 2 s^2) with its distance d from the best and s = 1.5 steps of the grid, so that a minimum is
placed between the rates of the grid; rates that diverge are left out. One that is no minimum (the best rate next to
divergence) is taken at the best rate itself. The error is the jackknife's over the seeds: everything is done again
without each of them,

.. math:: \sigma^2 = \frac{n - 1}{n} \sum_s (\theta_{(-s)} - \bar\theta)^2,

which holds for whatever follows from the means over seeds: the minimum, its exponent in the width, the cost of another rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

AROUND = 2
"""Rates of the grid on either side of the best one that are fitted."""
_SPREAD = 1.5
LEVEL = 0.05
"""Probability with which an interval misses."""

Curve = Mapping[int, Sequence[float]]
"""power of the grid -> the losses of the seeds."""


@dataclass(frozen=True)
class Estimate:
    """A number with an interval.

    Attributes:
        value: the number.
        reach: half the width of its interval at 95%; NaN with a single seed.
    """

    value: float
    reach: float

    @property
    def low(self) -> float:
        """The lower end."""
        return self.value - self.reach

    @property
    def high(self) -> float:
        """The upper end."""
        return self.value + self.reach


def estimated(of: Callable[[Sequence[int]], float], seeds: int) -> Estimate:
    """A function of the seeds with its jackknife interval, by Student's t with n - 1 degrees of freedom.

    Args:
        of: positions of seeds -> a number made of their means.
        seeds: n.
    """
    every = list(range(seeds))
    value = of(every)
    if seeds < 2 or not math.isfinite(value):
        return Estimate(value, math.nan)
    left = np.array([of([seed for seed in every if seed != without]) for without in every])
    if not np.isfinite(left).all():
        return Estimate(value, math.nan)
    variance = (seeds - 1) / seeds * float(np.square(left - left.mean()).sum())
    from scipy.special import stdtrit  # slow to import

    return Estimate(value, float(stdtrit(seeds - 1, 1 - LEVEL / 2)) * math.sqrt(variance))


def means(curve: Curve, seeds: Sequence[int]) -> dict[int, float]:
    """The geometric mean over seeds by power; infinite where one diverged. Arithmetic if a loss is not positive."""
    values = [curve[power][seed] for power in curve for seed in seeds]
    if min(values) > 0:
        return {p: math.exp(sum(math.log(curve[p][s]) for s in seeds) / len(seeds)) for p in sorted(curve)}
    return {p: sum(curve[p][s] for s in seeds) / len(seeds) for p in sorted(curve)}


def best_of(curve: Mapping[int, float]) -> int:
    """The power with the least loss; the smallest of several."""
    return min(sorted(curve), key=lambda power: curve[power])


@dataclass(frozen=True)
class Parabola:
    """The loss near its minimum.

    Attributes:
        at: x of the minimum, in powers of the grid.
        least: the loss there.
        bend: second derivative of the (log) loss by x; 0 where the minimum is the best rate itself.
        is_log: whether it is one of the log of the loss.
    """

    at: float
    least: float
    bend: float
    is_log: bool

    def __call__(self, x: float) -> float:
        """The loss at x."""
        by = self.bend / 2 * (x - self.at) ** 2
        return self.least * math.exp(by) if self.is_log else self.least + by


def parabola(curve: Mapping[int, float], best: int) -> Parabola:
    """Fit a parabola around the best rate.

    Args:
        curve: power -> loss.
        best: the power around which it is fitted.
    """
    near = [power for power in curve if abs(power - best) <= AROUND and math.isfinite(curve[power])]
    is_log = all(curve[power] > 0 for power in near)
    if len(near) >= 3:
        x = np.array(near, dtype=np.float64) - best
        y = np.array([math.log(curve[power]) if is_log else curve[power] for power in near])
        weights = np.exp(-np.square(x) / (4 * _SPREAD**2))  # of residuals; squared they are those of the docstring
        design = np.stack([np.ones_like(x), x, np.square(x)], axis=1) * weights[:, None]
        (c, b, a), *_ = np.linalg.lstsq(design, y * weights, rcond=None)
        if a > 0 and min(x) <= -b / (2 * a) <= max(x):  # beyond the last rate that holds nothing is known
            at, least = -b / (2 * a), c - b**2 / (4 * a)
            return Parabola(best + float(at), math.exp(least) if is_log else float(least), 2 * float(a), is_log)
    return Parabola(float(best), curve[best], 0.0, is_log)


OF_GRID = 1.96 * math.sqrt(1 / 12)
"""Half the width of the interval of a rate that is known to half a step of the grid, in steps."""


def loss_at(curve: Mapping[int, float], near: Parabola, x: float) -> float:
    """The loss at any x: by the parabola where it was fitted, else between the two rates of the grid beside it.

    Infinite where one of these diverged; NaN where they were not tried.
    """
    if near.bend and abs(x - near.at) <= _SPREAD:
        return near(x)
    low, high = math.floor(x), math.ceil(x)
    if low not in curve or high not in curve:
        return math.nan
    if low == high:
        return curve[low]
    a, b, part = curve[low], curve[high], x - low
    if not (math.isfinite(a) and math.isfinite(b)):
        return math.inf
    return a ** (1 - part) * b**part if min(a, b) > 0 else (1 - part) * a + part * b


def slope(sizes: Sequence[int], values: Sequence[float]) -> float:
    """The exponent of 2^values in the sizes, by least squares."""
    x = np.log(np.array(sizes, dtype=np.float64))
    x = x - x.mean()
    return float(x @ (np.array(values) * math.log(2)) / (x @ x))
