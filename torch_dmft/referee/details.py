"""The tables behind a verdict: what every parameter is trained with, and how its terms align with what they multiply."""

from __future__ import annotations

import math

from torch import Tensor

from torch_dmft.core.grid import Grid
from torch_dmft.core.power_law import PowerLaw, power_law
from torch_dmft.referee.effective import effective
from torch_dmft.referee.look import Place
from torch_dmft.referee.measure import Measured
from torch_dmft.referee.roles import role


def alignments(measured: Measured, place: Place) -> dict[str, PowerLaw]:
    r"""How a matrix and its step align with what they multiply, as powers of the width at the last step that was looked at.

    ``own``: of rms[(W_t - W_0) x_t] / (rms[W_t - W_0] rms[x_t]); ``carried``: of rms[W_0 (x_t - x_0)] / (rms[W_0]
    rms[x_t - x_0]). Where the fan-in grows with the width, 1 is full alignment (all terms of a sum have one sign) and 1/2 none.
    """
    found = {}
    for name, weight, data in (("own", "step", "taken"), ("carried", "weight", "moved")):
        term, by, of = (measured.sizes[place, quantity] for quantity in (name, weight, data))
        ratio: Tensor = term / (by * of)
        known = [i for i in range(len(measured.steps)) if bool((ratio[i].isfinite() & (ratio[i] > 0)).all())]
        if known:
            found[name] = power_law(measured.widths, ratio[known[-1]])
    return found


def alignment_table(measured: Measured) -> Grid:
    """``alignments`` of every matrix."""
    rows = []
    for place in measured.places:
        kind = role(measured, place)
        if kind.is_matrix:
            laws = alignments(measured, place)
            cells = (_power(laws.get(name)) for name in ("own", "carried"))
            rows.append((place[0], str(kind), *cells))
    title = "Alignment with what is multiplied, as a power of N (where the fan-in grows: 1 full, 0.5 none)"
    return Grid(title, ("weight", "role"), (("", "(W_t - W_0) x_t"), ("", "W_0 (x_t - x_0)")), tuple(rows))


def parameter_table(measured: Measured) -> Grid:
    """Initial size, rate, base rate and the last step of every parameter, at the narrowest and the widest width."""
    order = sorted(range(len(measured.widths)), key=measured.widths.__getitem__)
    ends = (order[0], order[-1])
    scaling = effective(measured)
    rows = []
    for name in measured.parameters[0]:
        cells = []
        for value in (
            lambda i: measured.parameters[i][name].size,  # noqa: B023
            lambda i: measured.parameters[i][name].rate,  # noqa: B023
            lambda i: scaling[i].rates.get(name, math.nan),  # noqa: B023
            lambda i: float(measured.updates[name][:, i].nanmean(1)[-1]),  # noqa: B023
        ):
            cells += [_number(value(i)) for i in ends]
        rows.append((name, measured.parameters[0][name].optimizer, *cells))
    heads = [f"N={measured.widths[i]}" for i in ends]
    groups = ("initial size", "rate", "base rate", "last step / weight")
    numbers = tuple((group, head) for group in groups for head in heads)
    gammas = ", ".join(f"{_number(scaling[i].gamma0)} at N={measured.widths[i]}" for i in ends)
    return Grid(f"Effective gamma0: {gammas}", ("parameter", "optimizer"), numbers, tuple(rows))


def _power(law: PowerLaw | None) -> str:
    if law is None or math.isnan(law.exponent):
        return "–"
    return f"{law.exponent:.2f}" + ("" if math.isnan(law.error) else f" ±{law.reach(0.05):.2f}")


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "–"
