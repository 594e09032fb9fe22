r"""What a weight does beside what it reads, so that one weight's fault is told from that of the weights before it.

What a matrix puts out at the start is proportional to what it reads, and so is its own term (W_t - W_0) x_t, if steps have a
size of their own as Adam's do. Steps that follow the gradient are proportional to what is read themselves, so that it enters
twice. With n = 1 or 2 of these,

.. math:: \frac{\mathrm{rms}[W_0 x_0]}{\mathrm{rms}[x_0]}, \qquad \frac{\mathrm{rms}[(W_t - W_0) x_t]}{\mathrm{rms}[x_t]^n}

depend on the initial size and the rate alone, and scatter less from seed to seed than the terms do. Numbers that a set-up
multiplies what is read by, as mup's readout does, belong to the weight: x is what stands before them.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from torch_dmft.referee.look import Place
from torch_dmft.referee.measure import Measured
from torch_dmft.referee.roles import role


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
    term = measured.sizes[place, quantity][window]
    if not order or not bool((read[term.isfinite()] > 0).all()):  # NaN neither
        return None
    return (term / read**order).log().mean(0).exp()
