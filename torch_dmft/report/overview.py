"""One picture of a whole comparison: loss, error of the predictions, last features, densities."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from torch_dmft.comparison import Comparison
from torch_dmft.report.choice import sample_order
from torch_dmft.report.style import looks, new_figure, tidy


def overview(comparison: Comparison) -> Figure:
    """The comparison at a glance, in one row.

    Loss of every run; relative error of each prediction, averaged over all kernels that are not given; the features' kernel
    Phi^L of the network and of the first prediction at the last common step; and the density of the last hidden layer's
    preactivations, if fields were kept.
    """
    measured, theory = comparison.measured, comparison.predictions[0]
    kept = all(len(run.layers) > 1 and run.layers[-2].fields is not None for run in (measured, theory))
    figure = new_figure(13.5 if kept else 10.6, 3.1, f"{measured.origin} and its predictions")
    widths = [1.2, 1.2, 1.0, 1.0, 1.2] if kept else [1.2, 1.2, 1.0, 1.0]
    panels = figure.subplots(1, len(widths), width_ratios=widths)
    styles = dict(zip([run.origin for run in comparison.runs], looks(comparison.runs), strict=True))

    for run in comparison.runs:
        look = styles[run.origin]
        style = {"color": look.color, "linestyle": look.linestyle, "marker": look.marker, "markersize": 3}
        panels[0].plot(run.times, run.losses, label=run.origin, **style)
    positive = all(bool((run.losses > 0).all()) for run in comparison.runs)
    panels[0].set_yscale("log" if positive else "linear")
    panels[0].set(xlabel=_TIME, ylabel="training loss")
    panels[0].legend(frameon=False, fontsize=7.5)

    for prediction, deviations in zip(comparison.predictions, comparison.deviations, strict=True):
        look = styles[prediction.origin]
        line = {"color": look.color, "linestyle": look.linestyle, "label": prediction.origin}
        panels[1].plot(measured.times, deviations.mean_error, **line)
    panels[1].set(xlabel=_TIME, ylabel="relative error of Φ and G", ylim=(0, None))
    panels[1].legend(frameon=False, fontsize=7.5)

    order, samples = sample_order(comparison)
    last = (run.layers[-1].forward.per_sample().equal_time[-1].cpu() for run in (measured, theory))
    matrices = [kernel[order][:, order].double().numpy() for kernel in last]
    low, high = min(map(np.min, matrices)), max(map(np.max, matrices))
    for axes, matrix, run in zip(panels[2:4], matrices, (measured, theory), strict=True):
        image = axes.imshow(matrix, vmin=low, vmax=high, cmap="viridis", interpolation="nearest")
        axes.set_title(f"last Φ,\n{run.origin}", fontsize=8)
        axes.set_xlabel(samples, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    figure.colorbar(image, ax=list(panels[2:4]), shrink=0.7).ax.tick_params(labelsize=7)

    if kept:
        _densities(panels[4], comparison, styles[theory.origin].color)
    for axes in (*panels[:2], *panels[4:]):
        tidy(axes)
    return figure


_TIME = "time (learning rate × step)"


def _densities(axes: Axes, comparison: Comparison, color: str) -> None:
    """Preactivations of the last hidden layer: the network as bars, the theory as lines, before and after training."""
    fields = [run.layers[-2].fields for run in (comparison.measured, comparison.predictions[0])]
    values = [kept.preactivation.flatten(1).cpu().double().numpy() for kept in fields if kept is not None]
    low, high = np.quantile(values[0], [0.001, 0.999])
    bins = np.linspace(low, high, 48)
    for end, name, shade, line in ((0, "start", "0.85", ":"), (-1, "end", "0.65", "-")):
        axes.hist(values[0][end], bins.tolist(), density=True, color=shade, alpha=0.8, label=f"network, {name}")
        density, _ = np.histogram(values[1][end], bins, density=True)
        axes.plot((bins[1:] + bins[:-1]) / 2, density, line, color=color, label=f"theory, {name}")
    axes.set(xlabel="last preactivation h", ylabel="density", ylim=(0, 1.45 * axes.get_ylim()[1]))
    axes.legend(frameon=False, fontsize=7, ncols=2)
