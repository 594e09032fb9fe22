"""The figures of a comparison; each function returns a ``matplotlib.figure.Figure`` that nothing else holds on to."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from torch_dmft.comparison import Comparison, Deviation, movement, target_alignments
from torch_dmft.core.arguments import checked
from torch_dmft.core.errors import NotRecordedError
from torch_dmft.core.listed import weight_label
from torch_dmft.core.numbers import require_whole
from torch_dmft.core.trajectory import LayerKernels, Trajectory
from torch_dmft.report.choice import sample_order, shown_weights
from torch_dmft.report.style import COLORS, Look, looks, new_figure, place, tidy
from torch_dmft.theory.spectrum import BesideNetworks

_SYMBOLS = {"forward": r"$\Phi$", "backward": "$G$", "ntk": "NTK"}
_Draw = Callable[..., None]
_Field = Literal["preactivation", "gradient", "pregradient"]
_FIELDS = {
    "preactivation": ("Preactivations", "preactivation h"),
    "gradient": ("Gradient fields", r"gradient $g=\gamma_0 N\,\partial f/\partial h$"),
    "pregradient": ("Fields z", r"$z$ of $g=\phi'(h)\,z$"),
}
_NAMES = {"forward": "Forward kernels Φ", "backward": "Backward kernels G", "ntk": "Tangent kernels"}


@checked
def figures(comparison: Comparison) -> dict[str, Figure]:
    """Every figure the comparison has data for, by name."""
    drawn = {
        "loss": losses(comparison),
        "alignment": alignments(comparison),
        "relative_error": relative_errors(comparison),
        "forward_kernels": kernels(comparison, "forward"),
        "backward_kernels": kernels(comparison, "backward"),
    }
    if comparison.targets is not None:
        drawn["target_alignment"] = target_alignment(comparison)
    if has_fields(comparison, "gradient"):
        drawn["preactivations"], drawn["gradients"] = preactivations(comparison), gradient_fields(comparison)
    return drawn


@checked
def losses(comparison: Comparison) -> Figure:
    """The loss of every run over training time, with the predictions' standard errors as bands."""
    figure = new_figure(6.4, 3.8, "Loss on the training rows")
    axes = figure.add_subplot()
    for run, look in zip(comparison.runs, looks(comparison.runs), strict=True):
        _curve(axes, run, run.losses, None if run.stderr is None else run.stderr.losses, look)
    positive = torch.cat([run.losses for run in comparison.runs]) > 0
    axes.set_yscale("log" if positive.all() else "linear")
    axes.set(xlabel=_TIME, ylabel="loss")
    axes.legend(frameon=False, fontsize=8)
    tidy(axes)
    return figure


@checked
def learned(run: Trajectory) -> Figure:
    """What one run learned and where: movement |K(t) - K(0)| / |K(0)| of Phi, G and the NTK of every weight, as recorded."""
    count, times = len(run.layers), len(run.steps)
    figure = new_figure(10.0, 1.5 + 0.21 * max(count, 6), f"What {run.origin} learned: movement of its kernels")
    symbols = {which: symbol for which, symbol in _SYMBOLS.items() if which != "ntk" or run.ntk is not None}
    panels = figure.subplots(1, len(symbols), sharey=True)
    for axes, (which, symbol) in zip(panels, symbols.items(), strict=True):
        rows = np.stack([_array(movement(getattr(layer, which))) for layer in run.layers])
        finite = rows[np.isfinite(rows)]
        image = axes.imshow(rows, aspect="auto", cmap="viridis", vmin=0, vmax=finite.max(initial=0) or 1)
        axes.set_title(symbol, fontsize=9)
        shown = np.unique(np.linspace(0, times - 1, min(times, 6)).round().astype(int))
        axes.set_xticks(shown, [str(int(run.steps[at])) for at in shown], fontsize=8)
        axes.set_xlabel("step", fontsize=9)
        figure.colorbar(image, ax=axes, location="bottom", shrink=0.8).ax.tick_params(labelsize=7)
    panels[0].set_yticks(range(count), [layer.name for layer in run.layers], fontsize=7)
    panels[0].set_ylabel("weight", fontsize=9)
    return figure


@checked
def target_alignment(comparison: Comparison) -> Figure:
    """How the forward kernel of every weight turns towards the task: A(Phi, Y Y^T) over training time."""
    targets = comparison.targets
    if targets is None:
        raise NotRecordedError("Target alignment needs targets.", remedy="give the probe targets")
    count = len(comparison.measured.layers)
    figure, panels = _panels(count, "Alignment of the forward kernels with the targets", height=2.4)
    for position, axes in enumerate(panels):
        for run, look in zip(comparison.runs, looks(comparison.runs), strict=True):
            _curve(axes, run, target_alignments(run.layers[position].forward, targets), None, look)
        axes.set_title(_weight(comparison.measured.layers[position], position), fontsize=9)
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel(_TIME, fontsize=9)
    panels[0].set_ylabel(r"$A(\Phi,\, yy^{T})$")
    _legend_below(figure, panels[0])
    return figure


@checked
def alignments(comparison: Comparison) -> Figure:
    """The alignment of measured and predicted kernels over training time, a line per weight."""
    figure, grid = _deviations(
        comparison, "Alignment of measured and predicted kernels", "alignment", draw=_draw_alignment
    )
    for axes in grid[:, 0]:
        axes.set_ylim(top=1)
    return figure


@checked
def relative_errors(comparison: Comparison) -> Figure:
    """The relative error |X - Y| / |Y| of the kernels over training time, a line per weight; shaded: its noise."""
    figure, grid = _deviations(comparison, "Relative error of the measured kernels", "relative error", draw=_draw_error)
    for axes in grid[:, 0]:
        axes.set_ylim(bottom=0)
    return figure


@checked
def kernels(comparison: Comparison, which: Literal["forward", "backward", "ntk"] = "forward", time: int = -1) -> Figure:
    """The kernels at one common step: measured, predicted by the first prediction, and their difference.

    Args:
        comparison: the comparison.
        which: ``"forward"``, ``"backward"`` or ``"ntk"``. Output axes are averaged over equal outputs.
        time: position along the common steps.

    Returns:
        A row for each of at most eight weights, evenly spaced from the first to the last; those whose kernel is given
        (Phi of the first, G of the last) are left out.

    Raises:
        NotRecordedError: for an NTK that was not recorded.
        InvalidInputError: for a time that the runs do not have in common.
    """
    count = len(comparison.steps)
    require_whole("time", time, at_least=-count, at_most=count - 1)
    if which == "ntk":
        _ = comparison.measured.known_ntk
    measured, predicted = comparison.measured, comparison.predictions[0]
    weights = shown_weights(len(measured.layers), which)
    figure = new_figure(8.4, 0.8 + 2.3 * len(weights), f"{_NAMES[which]} at step {int(comparison.steps[time])}")
    order, label = sample_order(comparison)
    grid = figure.subplots(len(weights), 3, squeeze=False, sharex=True, sharey=True)
    for position, row in zip(weights, grid, strict=True):
        pair = [_matrix(run.layers[position], which, time, order) for run in (measured, predicted)]
        low, high = min(map(np.min, pair)), max(map(np.max, pair))
        for axes, values, origin in zip(row, pair, (measured.origin, predicted.origin), strict=False):
            shown = axes.imshow(values, vmin=low, vmax=high, cmap="viridis", interpolation="nearest")
            axes.set_title(origin, fontsize=9)
        _colorbar(figure, shown, row[1])
        bound = float(np.abs(pair[0] - pair[1]).max()) or 1.0
        shown = row[2].imshow(pair[0] - pair[1], vmin=-bound, vmax=bound, cmap="RdBu_r", interpolation="nearest")
        error = getattr(comparison.deviations[0].layers[position], which).relative_error[time].item()
        row[2].set_title(f"difference (relative error {error:.2g})", fontsize=9)
        _colorbar(figure, shown, row[2])
        row[0].set_ylabel(f"{_weight(measured.layers[position], position)}\n{label}", fontsize=8)
        for axes in row:
            axes.tick_params(labelsize=7)
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    for axes in grid[-1]:
        axes.set_xlabel(label, fontsize=8)
    return figure


@checked
def preactivations(comparison: Comparison) -> Figure:
    """The density of preactivations h over neurons and samples, measured and predicted: ``densities``."""
    return densities(comparison, "preactivation")


@checked
def gradient_fields(comparison: Comparison) -> Figure:
    """The density of gradient fields g over neurons, samples and outputs: ``densities``."""
    return densities(comparison, "gradient")


@checked
def densities(comparison: Comparison, field: _Field) -> Figure:
    """The density of a field h, g or z over neurons and samples, measured and predicted.

    A row for each step at which the measured run and the first prediction kept fields, a column for each of at most eight
    weights before the readout.

    Raises:
        NotRecordedError: if there is no such step.
    """
    steps = _field_steps(comparison, field)
    if not steps:
        raise NotRecordedError(
            f"No {field}s were kept by both runs at one step.",
            got=f"{comparison.measured.origin!r} and {comparison.predictions[0].origin!r}",
            remedy="record both at the same steps, with fields=True"
            + (", in a chain of smooth activations" * (field == "pregradient")),
        )
    all_looks = dict(zip([run.origin for run in comparison.runs], looks(comparison.runs), strict=True))
    hidden = shown_weights(len(comparison.measured.layers), "backward")
    title = f"{_FIELDS[field][0]} over neurons and samples, at {'several times' if len(steps) > 1 else 'one time'}"
    figure = new_figure(1.4 + 2.5 * len(hidden), 1.4 + 1.7 * len(steps), title, constrained=False)
    place(figure, len(steps), len(hidden))
    grid = figure.subplots(len(steps), len(hidden), squeeze=False, sharex="col")
    for column, position in enumerate(hidden):
        drawn = [(run, step, _field(run, position, step, field)) for step in steps for run in comparison.runs]
        known = [values for _, _, values in drawn if values is not None]
        count = int(np.clip(2 * len(known[0]) ** (1 / 3), 12, 64))
        # One axis for all times, so that the eye sees what moved.
        some = [values[:: max(1, len(values) // 20_000)] for values in known]
        low, high = np.quantile(np.concatenate(some), [0.001, 0.999])
        for run, step, values in drawn:
            if values is not None:
                axes, look = grid[steps.index(step)][column], all_looks[run.origin]
                # Equal bins, by their number: edges would have to be searched.
                density, bins = np.histogram(values, bins=count, range=(low, high), density=True)
                if run is comparison.measured:
                    axes.stairs(density, bins, fill=True, color="#c8c8c8", label=run.origin)
                else:
                    axes.plot((bins[1:] + bins[:-1]) / 2, density, look.linestyle, color=look.color, label=run.origin)
        grid[0][column].set_title(f"after {_weight(comparison.measured.layers[position], position)}", fontsize=9)
        grid[-1][column].set_xlabel(_FIELDS[field][1], fontsize=9)
        for axes in grid[:, column]:
            axes.set_ylim(bottom=0)
            axes.locator_params(nbins=3)  # ticks take most of the time of drawing
            tidy(axes)
    for row, step in zip(grid, steps, strict=True):
        row[0].set_ylabel(f"step {step}\ndensity", fontsize=9)
    _legend_below(figure, grid[0][0])
    return figure


@checked
def spectrum(beside: BesideNetworks) -> Figure:
    """Singular values of networks' weight as a histogram, theory's bulk as a curve, its outliers as vertical lines."""
    theory, values = beside.theory, _array(beside.values.flatten())
    figure = new_figure(
        6.4,
        3.8,
        f"Singular values of weight {theory.layer}, width {min(beside.shape)}, step {int(theory.steps[beside.index])}",
    )
    axes = figure.add_subplot()
    outliers = _array(theory.values[beside.index][: int(theory.counts[beside.index])])
    top = 1.05 * max(values.max(), outliers.max(initial=float(theory.edges[beside.index])))
    axes.hist(values, bins=80, range=(0, top), density=True, color="#c8c8c8", label=f"networks ({len(beside.values)})")
    s, rho = theory.bulk(int(theory.steps[beside.index]))
    axes.plot(_array(s), _array(rho), color=COLORS[0], label="theory, bulk")
    for k, value in enumerate(outliers):
        label = f"theory, {len(outliers)} outlier{'s' if len(outliers) > 1 else ''}" if k == 0 else None
        axes.axvline(value, color=COLORS[1], linestyle="--", label=label)
    # One of a few hundred values is invisible in the density of all.
    beyond = values[values > beside.threshold]
    axes.plot(beyond, np.zeros_like(beyond), "k|", markersize=14, label="networks, outliers" if len(beyond) else None)
    axes.set(xlabel="singular value", ylabel="density", xlim=(0, top))
    _legend_below(figure, axes)
    tidy(axes)
    return figure


_TIME = "time (learning rate × step)"


def _curve(axes: Axes, run: Trajectory, values: Tensor, stderr: Tensor | None, look: Look) -> None:
    times, heights = _array(run.times), _array(values)
    style: dict[str, Any] = {"linestyle": look.linestyle, "color": look.color, "marker": look.marker}
    axes.plot(times, heights, markersize=3.5, zorder=3 if look.marker else 2, label=run.origin, **style)
    if stderr is not None:
        spread = 2 * _array(stderr)
        axes.fill_between(times, heights - spread, heights + spread, color=look.color, alpha=0.2, linewidth=0)


def _deviations(comparison: Comparison, title: str, name: str, *, draw: _Draw) -> tuple[Figure, NDArray]:
    """Rows: predictions. Columns: Phi, G, NTK. Lines: weights, dark to light with depth; given kernels are left out."""
    known = [which for which in _SYMBOLS if which != "ntk" or comparison.measured.ntk is not None]
    rows, count = len(comparison.predictions), len(comparison.measured.layers)
    figure = new_figure(9.2, 1.1 + 2.3 * rows, title)
    grid = figure.subplots(rows, len(known), squeeze=False, sharex=True, sharey="row")
    colors = mpl.colormaps["viridis"](np.linspace(0, 0.9, count))
    times = _array(comparison.measured.times)
    for row, prediction, deviations in zip(grid, comparison.predictions, comparison.deviations, strict=True):
        for axes, which in zip(row, known, strict=True):
            for position, layer in enumerate(deviations.layers):
                given = (which, position) in (("forward", 0), ("backward", count - 1))
                if not given:
                    label = _weight(comparison.measured.layers[position], position)
                    draw(axes, times, getattr(layer, which), color=colors[position], label=label)
            axes.set_title(f"{_SYMBOLS[which]}  against {prediction.origin}", fontsize=9)
            tidy(axes)
        row[0].set_ylabel(name, fontsize=9)
    for axes in grid[-1]:
        axes.set_xlabel(_TIME, fontsize=9)
    _legend_below(figure, *reversed(grid[0]))  # the NTK has all weights, or G the first of them
    return figure, grid


def _draw_alignment(axes: Axes, times: NDArray, deviation: Deviation, **line: Any) -> None:
    axes.plot(times, _array(deviation.alignment), linewidth=1.4, **line)


def _draw_error(axes: Axes, times: NDArray, deviation: Deviation, **line: Any) -> None:
    axes.plot(times, _array(deviation.relative_error), linewidth=1.4, **line)
    axes.fill_between(times, 0, _array(deviation.noise), color=line["color"], alpha=0.15, linewidth=0)


def _colorbar(figure: Figure, image: AxesImage, axes: Axes) -> None:
    figure.colorbar(image, ax=axes, fraction=0.046).ax.tick_params(labelsize=7)


def _panels(count: int, title: str, height: float) -> tuple[Figure, list[Axes]]:
    columns = min(count, 4)
    rows = math.ceil(count / columns)
    figure = new_figure(max(5.0, 2.4 * columns), 1.0 + height * rows, title)
    panels = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for spare in panels[count:]:
        spare.remove()
    for axes in panels[:count]:
        tidy(axes)
    return figure, panels[:count]


def _legend_below(figure: Figure, *panels: Axes) -> None:
    """A legend of all lines, of those with one label once."""
    lines = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    labels = list(lines)
    figure.legend(
        list(lines.values()), labels, loc="outside lower center", ncols=min(len(labels), 6), frameon=False, fontsize=8
    )


def _matrix(layer: LayerKernels, which: str, time: int, order: Tensor) -> NDArray:
    return _array(getattr(layer, which).per_sample().equal_time[time][order][:, order])


def _weight(layer: LayerKernels, position: int) -> str:
    return weight_label(position, layer.name)


@checked
def has_fields(comparison: Comparison, field: _Field) -> bool:
    """Whether there is a step at which the measured run and the first prediction kept a field."""
    return bool(_field_steps(comparison, field))


def _field_steps(comparison: Comparison, field: str) -> list[int]:
    """Where the measured run and the first prediction both kept a field after every weight before the readout."""
    hidden = [layer.fields for run in comparison.runs[:2] for layer in run.layers[:-1]]
    kept = [set() if f is None or getattr(f, field) is None else set(f.steps.tolist()) for f in hidden]
    return sorted(set.intersection(*kept)) if kept else []


def _field(run: Trajectory, position: int, step: int, field: str) -> NDArray | None:
    """What is known of a field at a step, over samples, outputs and neurons."""
    fields = run.layers[position].fields
    values = None if fields is None or step not in fields.steps.tolist() else getattr(fields, field)
    if fields is None or values is None:
        return None
    flat = _array(values[fields.steps.tolist().index(step)].flatten())
    return flat[np.isfinite(flat)]


def _array(values: Tensor) -> NDArray:
    return values.detach().to("cpu", torch.float64).numpy()
