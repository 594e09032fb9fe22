"""The gap to theory against width, as a table and a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from torch_dmft.comparison.width import Gap, slope
from torch_dmft.core.grid import Grid
from torch_dmft.core.page import Page
from torch_dmft.report.style import COLORS, new_figure, tidy

_KINDS = {"forward": "Φ", "backward": "G", "ntk": "NTK"}
_MARKERS = ("o", "s", "^")
_TICKS = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)


def gap_table(gaps: Sequence[Gap]) -> Page:
    """One row per width, and the exponent of each kernel's gap in the last row."""
    known = _known(gaps)
    rows = [(str(gap.width), *(f"{getattr(gap, kind):.3g}" for kind in known)) for gap in gaps]
    if len(gaps) > 1:
        rows.append(("exponent", *(f"{slope(gaps, kind):.2f}" for kind in known)))
    title = "One network's mean relative error against theory, by width"
    return Page((Grid(title, ("width",), tuple(("", name) for name in known.values()), tuple(rows), (len(gaps) - 1,)),))


def _known(gaps: Sequence[Gap]) -> dict[str, str]:
    """The kinds of kernels that all networks recorded."""
    return {kind: name for kind, name in _KINDS.items() if not any(math.isnan(getattr(gap, kind)) for gap in gaps)}


def gap_figure(gaps: Sequence[Gap]) -> Figure:
    """Relative error of single networks against their width, beside the expected width^(-1/2)."""
    figure = new_figure(5.2, 3.8, "Gap between single networks and theory")
    axes = figure.add_subplot()
    widths = np.array([gap.width for gap in gaps], dtype=float)
    for (kind, symbol), color, marker in zip(_known(gaps).items(), COLORS, _MARKERS, strict=False):
        heights = [getattr(gap, kind) for gap in gaps]
        exponent = f", exponent {slope(gaps, kind):.2f}" if len(gaps) > 1 else ""
        axes.loglog(widths, heights, marker=marker, color=color, label=f"{symbol}{exponent}")
    reference = gaps[0].forward * np.sqrt(widths[0] / widths)
    axes.loglog(widths, reference, "--", color="0.6", label="width$^{-1/2}$")
    axes.set(xlabel="width N", ylabel="relative error, mean over weights and steps")
    axes.yaxis.label.set_fontsize(8)
    axes.set_xticks(widths, [f"{int(width)}" for width in widths])
    axes.yaxis.set_major_locator(LogLocator(subs=_TICKS))  # widths seldom span a decade of errors
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=8)
    tidy(axes)
    return figure
