r"""The mean-field scaling that a set-up has by itself: gamma0 and the base rate of every parameter, at every width.

Read from what weights put out at the start, so that numbers in the forward pass count, whoever put them there: a matrix that
makes outputs of size s of inputs of size x acts as one of standard deviation m = s / (x sqrt(fan-in)), and moves as one at
the rate lr (m / std)^2 with SGD, lr (m / std) with Adam. Then, as in ``torch_dmft.parameterization.scheme``,

.. math:: \gamma_0 = \frac{1}{m_{readout}\, N}, \qquad \eta_p = \frac{lr_p}{\text{mean-field rate at this } \gamma_0}.

Muon's step has the spectral norm lr times its scale, where a mean-field network moves by sqrt(out / in) in these norms.
In a set-up with a limit none of these depends on the width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch_dmft.architecture import Role as Mean
from torch_dmft.parameterization.scheme import mean_field
from torch_dmft.referee.look import Place
from torch_dmft.referee.measure import Measured, Trained
from torch_dmft.referee.roles import Role, role

_ROLES = {
    Role.INPUT: Mean.INPUT,
    Role.HIDDEN: Mean.HIDDEN,
    Role.READOUT: Mean.READOUT,
    Role.EMBEDDING: Mean.EMBEDDING,
    Role.VECTOR: Mean.VECTOR,
}


@dataclass(frozen=True)
class Effective:
    """What a set-up trains like at one width.

    Attributes:
        gamma0: richness; NaN where the readout starts at zero, as zeros fit every scale.
        rates: base rate eta of every parameter whose role and optimizer are known, by name.
    """

    gamma0: float
    rates: dict[str, float]


def effective(measured: Measured) -> tuple[Effective, ...]:
    """The effective scaling at every width."""
    return tuple(_at(measured, i) for i in range(len(measured.widths)))


def _at(measured: Measured, i: int) -> Effective:
    readout = next((place for place in reversed(measured.places) if role(measured, place) is Role.READOUT), None)
    if readout is None:
        return Effective(math.nan, {})
    width = measured.shapes[readout][i][0]
    size = _acts_as(measured, readout, i)
    gamma0 = 1 / (size * width) if size > 0 else math.nan
    rates: dict[str, float] = {}
    for place in measured.places:
        name, kind = place[0], role(measured, place)
        if name in measured.parameters[i] and name not in rates and kind in _ROLES:
            rate = _rate(measured, place, i, kind, gamma0, width)
            if math.isfinite(rate):
                rates[name] = rate
    return Effective(gamma0, rates)


def _acts_as(measured: Measured, place: Place, i: int) -> float:
    """The standard deviation of the matrix that does what a weight does at the start."""
    start, read = (float(measured.sizes[place, name][0, i].square().mean().sqrt()) for name in ("start", "read"))
    read /= float(measured.sizes[place, "scale"][0, i].mean())  # numbers in front act as a part of the weight
    return start / (read * math.sqrt(measured.shapes[place][i][0])) if read else math.nan


def _rate(measured: Measured, place: Place, i: int, kind: Role, gamma0: float, width: int) -> float:
    trained: Trained = measured.parameters[i][place[0]]
    fan_in, out = measured.shapes[place][i]
    if not trained.rate or not trained.size:
        return math.nan
    size = _acts_as(measured, place, i) if kind.is_matrix else trained.size
    multiplier = size / trained.size
    if "Muon" in trained.optimizer:
        return trained.rate * multiplier * math.sqrt(fan_in / out) if out else math.nan
    gain = size * math.sqrt(fan_in) if kind in (Role.INPUT, Role.HIDDEN) else size
    plain = mean_field(_ROLES[kind], fan_in=max(fan_in, 1), width=width, gamma0=gamma0, gain=gain)
    if trained.follows_gradient:
        return trained.rate * multiplier**2 / plain.lr
    return trained.rate * multiplier / plain.adam_lr if "Adam" in trained.optimizer else math.nan
