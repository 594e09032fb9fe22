"""Pictures as arrays of bytes, the form that stays small in a log."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

_PANEL, _GAP = 128, 4


def strip(measured: NDArray, predictions: Sequence[NDArray]) -> NDArray[np.uint8]:
    """Kernels side by side: measured, each prediction, then measured minus the first prediction.

    Args:
        measured: ``(sample, sample)``.
        predictions: of the same shape, at least one.

    Returns:
        ``(height, width, 3)`` bytes. Kernels share one colour scale (viridis, dark is low); the difference has its own,
        symmetric about white (red: measured is larger).
    """
    kernels = [measured, *predictions]
    low, high = min(map(np.min, kernels)), max(map(np.max, kernels))
    difference = measured - predictions[0]
    bound = np.abs(difference).max() or 1.0
    panels = [_colored(kernel, "viridis", low, high) for kernel in kernels]
    panels.append(_colored(difference, "RdBu_r", -bound, bound))
    gap = np.full((len(panels[0]), _GAP, 3), 255, dtype=np.uint8)
    return np.concatenate([part for panel in panels for part in (panel, gap)][:-1], axis=1)


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """A figure as ``(height, width, 3)`` bytes."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _colored(values: NDArray, colormap: str, low: float, high: float) -> NDArray[np.uint8]:
    scaled = (values - low) / ((high - low) or 1.0)
    image = mpl.colormaps[colormap](scaled, bytes=True)[..., :3]
    repeat = max(1, -(-_PANEL // len(values)))
    return image.repeat(repeat, axis=0).repeat(repeat, axis=1)
