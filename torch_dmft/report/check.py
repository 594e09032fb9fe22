"""A check of anybody's set-up for people: figures, TensorBoard logs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.tensorboard.summary import text

from torch_dmft.core.arguments import checked
from torch_dmft.core.power_law import power_law
from torch_dmft.referee import Verdict
from torch_dmft.referee.look import Place
from torch_dmft.referee.roles import Role, role
from torch_dmft.report.events import EventLog, run_directory
from torch_dmft.report.images import pixels
from torch_dmft.report.style import COLORS, new_figure, tidy

_QUANTITIES = {
    "start": r"$W_0 x_0$",
    "own": r"$(W_t - W_0)\, x_t$",
    "carried": r"$W_0 (x_t - x_0)$",
    "change": "change",
}


def figures(verdict: Verdict) -> dict[str, Figure]:
    """Every figure of a check, by name: sizes against the width, and exponents against the step."""
    return {"sizes": sizes(verdict), "exponents": exponents(verdict)}


def name(verdict: Verdict, place: Place) -> str:
    """What a place is called: its parameter, the module of scores, or "outputs"."""
    kind = role(verdict.measured, place)
    return place[0] or (f"{place[2] or '(model)'} {place[1]}" if kind is Role.SCORES else str(kind))


def sizes(verdict: Verdict) -> Figure:
    """The size of every term at the last step against the width, both logarithmic, with standard errors of the seeds."""
    measured = verdict.measured
    places = [place for place in measured.places if _is_shown(verdict, place)]
    figure = new_figure(12.0, 4.2, verdict.title)
    for axes, (quantity, label) in zip(figure.subplots(1, len(_QUANTITIES)), _QUANTITIES.items(), strict=True):
        for at, place in enumerate(places):
            values = measured.sizes[place, quantity][-1]
            if bool((values > 0).any()):
                mean = values.nanmean(1)
                error = (values - mean[:, None]).square().nanmean(1).sqrt() / math.sqrt(max(1, measured.seeds - 1))
                shown = mean.where(mean > 0, math.nan)
                axes.errorbar(
                    measured.widths, shown, error, color=COLORS[at % len(COLORS)], marker="o", markersize=3, linewidth=1,
                    label=name(verdict, place),
                )  # fmt: skip
        axes.set(xscale="log", xlabel="width N")
        if axes.has_data():
            axes.set_yscale("log")
        axes.set_title(label, fontsize=9)
        axes.set_xticks(measured.widths, [str(width) for width in measured.widths], minor=False)
        axes.minorticks_off()
        tidy(axes)
    handles = {handle.get_label(): handle for axes in figure.axes for handle in axes.get_legend_handles_labels()[0]}
    if handles:
        figure.legend(handles=list(handles.values()), loc="outside lower center", ncols=4, frameon=False, fontsize=7)
    return figure


def exponents(verdict: Verdict) -> Figure:
    """The exponent in width of every own term (of outputs and scores the change) after every step that was looked at."""
    measured = verdict.measured
    rows = {
        name(verdict, place): own_exponents(verdict, place) for place in measured.places if _is_shown(verdict, place)
    }
    figure = new_figure(
        1.8 + 0.9 * len(measured.steps), 1.6 + 0.26 * len(rows), "Exponent in N of what every weight adds"
    )
    axes = figure.add_subplot()
    shown = np.array(list(rows.values()), dtype=float).reshape(len(rows), len(measured.steps))
    image = axes.imshow(shown, aspect="auto", cmap="RdBu_r", vmin=-1, vmax=1)
    for i, j in np.argwhere(np.isfinite(shown)):
        axes.text(j, i, f"{shown[i, j]:+.2f}", ha="center", va="center", fontsize=6, color=_ink(shown[i, j]))
    axes.set_xticks(range(len(measured.steps)), [str(step) for step in measured.steps], fontsize=8)
    axes.set_yticks(range(len(rows)), list(rows), fontsize=7)
    axes.set_xlabel("step")
    figure.colorbar(image, ax=axes).ax.tick_params(labelsize=7)
    return figure


def _ink(exponent: float) -> str:
    """A colour that is read on that of an exponent."""
    return "white" if abs(exponent) > 0.65 else "black"


def own_exponents(verdict: Verdict, place: Place) -> list[float]:
    """The exponent of a place's own term, or of its change, after every step."""
    measured = verdict.measured
    values: Tensor = measured.sizes[place, "change" if not place[0] else "own"]
    return [power_law(measured.widths, one).exponent for one in values]


def _is_shown(verdict: Verdict, place: Place) -> bool:
    kind = role(verdict.measured, place)
    return (
        kind.is_matrix
        or kind in (Role.SCORES, Role.OUTPUTS)
        or any(one.departs for one in verdict.readings if one.place == place)
    )


@checked
def write_check(verdict: Verdict, logdir: str | Path) -> None:
    """Write a check as TensorBoard logs: a run for every width, and the run ``check`` with exponents, figures and the report.

    Args:
        verdict: what ``check`` returned.
        logdir: directory of the logs.
    """
    measured = verdict.measured
    for i, width in enumerate(measured.widths):
        with EventLog(run_directory(logdir, f"N={width}")) as log:
            for t, step in enumerate(measured.steps):
                values = {
                    f"{quantity}/{name(verdict, place)}": float(measured.sizes[place, quantity][t, i].nanmean())
                    for place in measured.places
                    for quantity in _QUANTITIES
                }
                values |= {f"update/{one}": float(sizes[t, i].nanmean()) for one, sizes in measured.updates.items()}
                values["loss"] = float(measured.losses[t, i].nanmean())
                log.scalars({tag: value for tag, value in values.items() if math.isfinite(value)}, step)
    with EventLog(run_directory(logdir, "check")) as log:
        log.add(text("check", verdict.to_markdown()))
        for t, step in enumerate(measured.steps):
            powers = {f"exponent/{name(verdict, place)}": own_exponents(verdict, place)[t] for place in measured.places}
            log.scalars({tag: value for tag, value in powers.items() if math.isfinite(value)}, step)
        for title, figure in figures(verdict).items():
            log.image(f"figures/{title}", pixels(figure), measured.steps[-1])
