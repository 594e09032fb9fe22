"""What training moves at some widths only, and what is said where it moves nothing: no power of the width tells either."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch_dmft.referee.measure import Measured, Trained

NOTHING_MOVES = (
    "No parameter moves, so that nothing was judged: rates are 0 in all steps, or no gradient gets through. A scheduler is not "
    "stepped here: give rates that do not start at 0."
)


def halted(measured: Measured) -> dict[str, tuple[int, ...]]:
    """Parameters that move at some widths, and are held still by their own setting at others: these widths, by name.

    A width counts where nothing of the parameter changes, to the bit, at any seed and step, though it has a gradient, or where
    it has no rate. What only has no gradient there, as an expert that no row is sent to, is no fault.
    """
    found = {}
    for name, updates in measured.updates.items():
        seen = [updates[:, i] for i in range(len(measured.widths))]
        moves = [bool((one > 0).any()) for one in seen]
        still = [
            width
            for width, one, moved, row in zip(measured.widths, seen, moves, measured.parameters, strict=True)
            if not moved and bool(one.isfinite().any()) and _is_held(row[name])
        ]
        if any(moves) and still:
            found[name] = tuple(still)
    return found


def _is_held(one: Trained) -> bool:
    return one.rate == 0 or (math.isfinite(one.gradient) and one.gradient > 0)


def halt_sentence(name: str, still: Sequence[int], measured: Measured) -> str:
    """A parameter that moves at some widths only, in words."""
    order = sorted(range(len(measured.widths)), key=measured.widths.__getitem__)
    rates = ", ".join(f"{measured.parameters[i][name].rate:.3g}" for i in order)
    widths = ", ".join(str(measured.widths[i]) for i in order)
    return (
        f"{name} moves at some widths, and not at N = {', '.join(map(str, sorted(still)))}. Its rate is {rates} at N = "
        f"{widths}, 0 where it is frozen or no optimizer holds it."
    )
