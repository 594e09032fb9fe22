r"""The yardstick of a deviation: what finite width alone does to a kernel.

Phi^l is an average over the features that the weight before it makes, of an average over those before, and so on; G^{l+1} over
the features that weight l makes and all behind it. So one random network deviates from the limit by a few 1 / sqrt(N), with N
the narrowest of these widths: neurons, or channels of a convolution. How many numbers a flattened image hands to the readout
does not matter. While a network learns, every kernel also gets a share of what the narrowest layer of all does.
"""

from __future__ import annotations

from collections.abc import Sequence


def narrowest(widths: Sequence[int | None], kernel: str = "ntk", position: int = 0) -> int | None:
    """The narrowest width that a kernel is an average over; None if there is none.

    Args:
        widths: of all weights.
        kernel: ``"forward"``, ``"backward"`` or ``"ntk"``, of which the widths of all weights count.
        position: l.
    """
    counted = {"forward": widths[:position], "backward": widths[position:]}.get(kernel, widths)
    return min((width for width in counted if width is not None), default=None)
