r"""What a weight does beside what it reads, so that one weight's fault is told from that of the weights before it.

What a matrix puts out at the start is proportional to what it reads, and so is its own term (W_t - W_0) x_t, if steps have a
size of their own as Adam's do. Steps that follow the gradient are proportional to what is read themselves, so that it enters
twice. With n = 1 or 2 of these,

.. math:: \frac{\mathrm{rms}[W_0 x_0]}{\mathrm{rms}[x_0]}, \qquad \frac{\mathrm{rms}[(W_t - W_0) x_t]}{\mathrm{rms}[x_t]^n}

depend on the initial size and the rate alone, and scatter less from seed to seed than the terms do. Numbers that a set-up
multiplies what is read by, as mup's readout does, belong to the weight: x is what stands before them.

A step on many rows also acts on rows that it has nothing to do with, by a sum of N overlaps whose signs are as they fall. Where
the fan-in grows, the mean square of an own term is that of a sum whose terms have one sign, which has the limit, and this,

.. math:: \langle [(W_t - W_0) x_t]^2 \rangle = s^2 + N \langle (W_t - W_0)^2 \rangle \langle x_t^2 \rangle .

The second falls beside the first as (independent rows) / N. It is what the same step would put out of unrelated vectors of the
same size, and is taken off; widths at which hardly anything else is left tell nothing. A step that is orthogonalised, as Muon's
is, is no such sum: it is as large on everything that the rows span.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from torch_dmft.referee.look import Place
from torch_dmft.referee.measure import Measured
from torch_dmft.referee.roles import Role, role


def reads(measured: Measured, place: Place, quantity: str) -> int:
    """How often what a weight reads enters "start" or "own"; 0 where nothing is read, or not in proportion, as by norms."""
    if quantity not in ("start", "own"):
        return 0
    if not (role(measured, place).is_matrix or place[1] in ("mul", "mul_")):
        return 0
    is_twice = quantity == "own" and measured.parameters[0][place[0].split("+")[0]].follows_gradient
    return 2 if is_twice else 1


def relative(
    measured: Measured, place: Place, quantity: str, window: Sequence[int]
) -> Float[Tensor, "width seed"] | None:
    """A term beside what the weight reads, as the mean of logarithms over a window of steps; None where nothing is read.

    Args:
        measured: what was seen.
        place: of a weight.
        quantity: "start" or "own".
        window: positions in ``measured.steps``.
    """
    order = reads(measured, place, quantity)
    read = (measured.sizes[place, "read" if quantity == "start" else "taken"] / measured.sizes[place, "scale"])[window]
    term = (aligned(measured, place) if quantity == "own" else measured.sizes[place, quantity])[window]
    if not order or not bool((read[term.isfinite()] > 0).all()):  # NaN neither
        return None
    return (term / read**order).log().mean(0).exp()


_HIDDEN = 0.8
"""The part of a mean square that overlaps with unrelated rows may have; beyond, what they hide is not known."""


def aligned(measured: Measured, place: Place) -> Float[Tensor, "step width seed"]:
    """The own term of a matrix without its overlaps with unrelated rows; NaN where these hide it.

    Args:
        measured: what was seen.
        place: of a weight; where the fan-in does not grow, the term is what it is.
    """
    own, unrelated = measured.sizes[place, "own"], measured.sizes[place, "unrelated"]
    sums = measured.parameters[0][place[0].split("+")[0]].sums_rows if place[0] else False
    if role(measured, place) not in (Role.HIDDEN, Role.READOUT) or not sums:
        return own
    part = unrelated.square().mean(2, keepdim=True) / own.square().mean(
        2, keepdim=True
    )  # of all seeds, as one scatters
    return own * (1 - part).where(part <= _HIDDEN, math.nan).sqrt().where(own > 0, 1.0)
