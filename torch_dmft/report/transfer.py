"""A sweep of learning rates for people: loss against rate, and the best rate against the axis."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from torch_dmft.referee.optimum import means
from torch_dmft.referee.transferred import Transferred
from torch_dmft.report.style import new_figure, tidy

_HIGHEST = 3.0
"""Times the worst of the least losses up to which losses are shown: those of unstable rates would hide the others."""


def figure(found: Transferred) -> Figure:
    """Left, the loss against the rate, best ones as stars; right, the best and the largest stable rate against the axis."""
    made = new_figure(10.0, 4.0, f"{found.title}: {found.word}")
    losses, rates = made.subplots(1, 2)
    highest, lowest = max(found.least.values()), min(found.least.values())
    highest = highest + (_HIGHEST - 1) * (highest if lowest > 0 else highest - lowest)
    for at, value in enumerate(found.values):
        color = str(round(0.75 - 0.75 * at / (len(found.values) - 1), 3))
        mean = means(found.curves[value], range(found.seeds))
        near = range(found.best[value] - 1, found.best[value] + 2)
        shown = {power: loss for power, loss in mean.items() if loss <= highest or power in near}
        losses.plot(
            [found.lr(power) for power in shown], list(shown.values()), "o-", markersize=3, linewidth=1, color=color,
            label=f"{found.axis} {value}",
        )  # fmt: skip
        losses.plot(found.lr(found.optima[value].value), found.least[value], "*", markersize=11, color=color)
    if found.theory is not None:
        shown = {power: loss for power, loss in found.theory.items() if loss <= highest}
        rate = [found.lr(power) for power in shown]
        losses.plot(rate, list(shown.values()), "-", color="C0", linewidth=2, label="theory (infinite)")
    losses.margins(0.08)
    losses.set(xscale="log", xlabel=_rate(found), ylabel="loss, mean over the last quarter of the steps")
    if lowest > 0:
        losses.set_yscale("log")
        _plain_numbers(losses)
    losses.legend(frameon=False, fontsize=8)

    best = [found.lr(found.optima[value].value) for value in found.values]
    if not any(math.isnan(found.optima[value].reach) for value in found.values):
        low = [found.lr(found.optima[value].value) - found.lr(found.optima[value].low) for value in found.values]
        high = [found.lr(found.optima[value].high) - found.lr(found.optima[value].value) for value in found.values]
        rates.errorbar(found.values, best, [low, high], fmt="k*-", capsize=3, linewidth=1, label="best, 95%")
    else:
        rates.plot(found.values, best, "k*-", linewidth=1, label="best")
    ceilings = [found.lr(found.ceilings[value].value) for value in found.values]
    if any(map(math.isfinite, ceilings)):
        rates.plot(found.values, ceilings, "v--", color="C3", markersize=5, linewidth=1, label="largest stable")
    rates.set(xscale="log", yscale="log", xlabel=found.axis, ylabel=_rate(found))
    rates.set_xticks(list(found.values), [str(value) for value in found.values])
    rates.xaxis.minorticks_off()
    _plain_numbers(rates)
    rates.legend(frameon=False, fontsize=8)
    for axes in (losses, rates):
        tidy(axes)
    return made


def _plain_numbers(axes: Axes) -> None:
    """Ticks of a logarithmic y axis that spans less than a decade are between its powers of 10."""
    axes.yaxis.set_major_formatter("{x:g}")
    low, high = axes.get_ylim()
    if high < 20 * low:
        axes.yaxis.set_minor_formatter("{x:.3g}")
    axes.tick_params(axis="y", which="both", labelsize=8)


def _rate(found: Transferred) -> str:
    return "learning rate" if found.takes_rate else "factor of the learning rates"
