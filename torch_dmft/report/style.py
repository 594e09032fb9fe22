"""How runs look in every figure: colours that colour-blind readers tell apart, and a line style beside the colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from torch_dmft.core.trajectory import Trajectory

_MEASURED = "#000000"
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""Okabe and Ito's, without the black of the measured run."""

_DASHES: tuple[str, ...] = ("-", "--", "-.", ":")


@dataclass(frozen=True)
class Look:
    """The colour and line of one run."""

    color: str
    linestyle: str
    marker: str


def looks(runs: Sequence[Trajectory]) -> list[Look]:
    """One look per run: the measured one, which comes first, as points; predictions as lines."""
    predicted = [Look(COLORS[i % len(COLORS)], _DASHES[i % len(_DASHES)], "") for i in range(len(runs) - 1)]
    return [Look(_MEASURED, "", "o"), *predicted]


def new_figure(width: float, height: float, title: str, *, constrained: bool = True) -> Figure:
    """A figure of this size in inches that belongs to no window and no global list.

    Args:
        width: in inches.
        height: in inches.
        title: the line above.
        constrained: whether matplotlib makes room for labels, which takes longer than drawing; else ``place`` does.
    """
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained" if constrained else None)
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11, fontweight="bold", x=0.01, horizontalalignment="left")
    return figure


def place(figure: Figure, rows: int, columns: int) -> None:
    """Place a grid of axes with room for labels and tick labels of the usual size, a title above and a legend below."""
    width, height = figure.get_size_inches()
    left, right, top, bottom, beside, above = 0.75, 0.1, 0.65, 0.8, 0.4, 0.3
    panel = (width - left - right - beside * (columns - 1)) / columns
    tall = (height - top - bottom - above * (rows - 1)) / rows
    figure.subplots_adjust(
        left=left / width,
        right=1 - right / width,
        bottom=bottom / height,
        top=1 - top / height,
        wspace=beside / panel,
        hspace=above / tall,
    )


def tidy(axes: Axes) -> None:
    """Leave out the ink that says nothing."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
