"""Pictures as arrays of bytes, the form that stays small in a log."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_PANEL, _GAP, _LINE, _FONT = 144, 6, 16, 12


def strip(measured: NDArray, predictions: Sequence[NDArray], titles: Sequence[str], caption: str) -> NDArray[np.uint8]:
    """Kernels side by side: measured, each prediction, then measured minus the first prediction.

    Args:
        measured: ``(sample, sample)``.
        predictions: of the same shape, at least one.
        titles: what to call the measured kernel and each prediction.
        caption: the line above.

    Returns:
        ``(height, width, 3)`` bytes. Kernels share one colour scale (viridis, dark is low); the difference has its own,
        symmetric about white (red: measured is larger). Both scales are written below; what is not finite is grey.
    """
    kernels = [measured, *predictions]
    low, high = _limits(kernels)
    difference = measured - predictions[0]
    bound = max(map(abs, _limits([difference]))) or 1.0
    panels = [_colored(kernel, "viridis", low, high) for kernel in kernels]
    panels.append(_colored(difference, "RdBu_r", -bound, bound))
    below = [f"{low:.3g} to {high:.3g}"] * len(kernels) + [f"{-bound:.2g} to {bound:.2g}"]
    side = len(panels[0])
    image = Image.new("RGB", (len(panels) * (side + _GAP) - _GAP, side + 3 * _LINE), "white")
    draw = ImageDraw.Draw(image)
    _write(draw, caption, 0, 0, image.width)
    for number, (panel, title, scale) in enumerate(zip(panels, [*titles, "difference"], below, strict=True)):
        left = number * (side + _GAP)
        _write(draw, title, left, _LINE, side)
        image.paste(Image.fromarray(panel), (left, 2 * _LINE))
        _write(draw, scale, left, 2 * _LINE + side, side)
    return np.asarray(image)


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """A figure as ``(height, width, 3)`` bytes."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _write(draw: ImageDraw.ImageDraw, text: str, left: int, top: int, width: int) -> None:
    """A line of text, in the largest size that fits."""
    size = next((size for size in range(_FONT, 5, -1) if _font(size).getlength(text) <= width), 5)
    draw.text((left, top), text, fill="black", font=_font(size))


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _limits(kernels: Sequence[NDArray]) -> tuple[float, float]:
    """The smallest and the largest finite entry, 0 and 0 if there is none."""
    finite = np.concatenate([kernel[np.isfinite(kernel)] for kernel in kernels])
    return (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)


def _colored(values: NDArray, colormap: str, low: float, high: float) -> NDArray[np.uint8]:
    scaled = np.ma.masked_invalid((values - low) / ((high - low) or 1.0))
    image = mpl.colormaps[colormap].with_extremes(bad="0.7")(scaled, bytes=True)[..., :3]
    repeat = max(1, -(-_PANEL // len(values)))
    return image.repeat(repeat, axis=0).repeat(repeat, axis=1)
