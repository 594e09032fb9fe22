r"""Who is to blame: the parameter at which a set-up departs first, and what would mend it.

A fault spreads: behind it in the forward pass all features are wrong, and before it, with SGD, all gradients. So the search
goes from what nothing else can have caused to what may be a consequence:

1. what a weight puts out at the start, in forward order: its *initial size*;
2. an average over neurons that starts O(1) where N^-1/2 is right, if anything departs later (its gradient to the layers before
   it is then too large by N^1/2): the initial size of a *readout*, or the *scale of scores* that are not divided by d;
3. the *own* terms, at the first step at which any departs, in forward order: the *rate*, or *eps* where gradients are not large
   beside it. Own terms that SGD makes are cleared of what (2) adds to the gradient;
4. *decay*, of which a step must undo the same part of a weight at every width.

Own terms are linear in the rate and starts in the initial size, so a departure as N^e is mended by a factor (N/N_0)^-e.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from torch_dmft.core.power_law import power_law
from torch_dmft.referee.judge import (
    LARGE_START,
    Finding,
    Reading,
    Rule,
    departs_first,
    makes_scores,
)
from torch_dmft.referee.look import Place
from torch_dmft.referee.measure import Measured, Trained
from torch_dmft.referee.roles import Role, is_average, role

INITIAL, RATE, EPS, DECAY, SCALE = "initial size", "rate", "eps", "decay", "scale of the scores"
"""What may be wrong with a parameter; of scores, which have none, their scale."""


@dataclass(frozen=True)
class Fault:
    """A setting that does not follow the width as it has to.

    Attributes:
        parameter: its name; "" for scores.
        path: the module that uses it.
        role: what it is for.
        setting: what is wrong: "initial size", "rate", "eps", "decay" or "scale of the scores".
        exponent: how what it makes goes with the width.
        reach: half the width of the interval around it.
        step: after which it was first seen; 0 for the start.
        values: the setting as it is at every width; empty for scores.
        mends: the power of the width that it has to be multiplied by.
    """

    parameter: str
    path: str
    role: Role
    setting: str
    exponent: float
    reach: float
    step: int
    values: tuple[float, ...]
    mends: float

    @property
    def name(self) -> str:
        """What it is called in a sentence."""
        return self.parameter or self.path or "(model)"


def faults(measured: Measured, found: Sequence[Reading], rule: Rule) -> tuple[Fault, ...]:
    """What is to blame, in forward order; nothing where nothing departs."""
    departed = [one for one in found if one.departs and not one.in_eval]
    order = {place: i for i, place in enumerate(measured.places)}
    starts = [one for one in departed if one.quantity == "start"]
    later = [one for one in departed if one.quantity != "start"]
    blamed: list[tuple[int, Fault]] = []
    if starts:
        first = min(starts, key=lambda one: order[one.place])
        blamed.append((order[first.place], _initial(measured, first, _power(first, rule))))
    suspects = _suspects(measured, found, later) if later and not starts else []
    blamed += [
        (order[one.place], _initial(measured, one, max(_TOO_LARGE, one.beside.exponent + 0.5))) for one in suspects
    ]
    own = [one for one in found if one.quantity == "own" and not one.in_eval]
    excess = {one: _excess(measured, one, suspects, order) for one in own}
    departing = [one for one in own if _is_own_doing(measured, one, excess[one], rule)]
    # What departs only because of what is read is a consequence, if anything else departs.
    cleared = [one for one in departing if _is_beside(one, excess[one], rule)] or departing
    if cleared and not starts:
        since = {one: departs_first(measured, one, rule, excess[one]) for one in cleared}
        earliest = min(since.values())
        if not suspects or earliest == measured.steps[0]:  # later ones may be consequences
            blamed += [
                (order[one.place], _of_rate(measured, one, earliest, _power(one, rule) - excess[one]))
                for one in cleared
                if since[one] == earliest and not _reads_with(one, suspects)
            ]
    decays = [] if starts else _decays(measured, rule, {fault.parameter for _, fault in blamed})
    blamed += [(next(i for place, i in order.items() if one.parameter in place[0].split("+")), one) for one in decays]
    unique: dict[tuple[str, str, str], tuple[int, Fault]] = {}
    for at, fault in sorted(blamed, key=lambda one: one[0]):
        unique.setdefault((fault.parameter, fault.path if not fault.parameter else "", fault.setting), (at, fault))
    return tuple(fault for _, fault in unique.values())


def _suspects(measured: Measured, found: Sequence[Reading], later: Sequence[Reading]) -> list[Reading]:
    """Averages over neurons that start too large, where something grows that this explains."""
    order = {place: i for i, place in enumerate(measured.places)}
    growing = [one for one in later if one.finding is Finding.GROWS]
    shown = []
    for one in found:
        if one.quantity != "start" or not is_average(measured, one.place):
            continue
        if not one.beside.exponent > LARGE_START:
            continue
        passed_on = [
            each
            for each in growing
            if (each.place == one.place and each.quantity != "own")
            or (order[each.place] < order[one.place] and _follows_gradient(measured, each))
        ]
        if passed_on:
            shown.append(one)
    return shown


def _follows_gradient(measured: Measured, one: Reading) -> bool:
    trained = _trained(measured, one.place)
    return one.quantity == "own" and bool(trained) and trained[0].follows_gradient


def _excess(measured: Measured, one: Reading, suspects: Sequence[Reading], order: dict[Place, int]) -> float:
    """The power of the width that an own term has from suspects, which make the gradient too large, if steps follow that."""
    if not _follows_gradient(measured, one):
        return 0.0
    total = 0.0
    for suspect in suspects:
        is_before = order[one.place] < order[suspect.place]
        if role(measured, suspect.place) is Role.SCORES:  # which queries and keys of the same module make
            is_before = is_before and one.place[2].startswith(suspect.place[2])
        total += _TOO_LARGE if is_before else 0.0
    return total


def _reads_with(one: Reading, suspects: Sequence[Reading]) -> bool:
    """Whether this is the bias of a suspect, whose gradient is the error that a large output makes."""
    return any(one.place[2] == each.place[2] and one.place[0] != each.place[0] and each.place[0] for each in suspects)


_TOO_LARGE = 0.5
"""The power of the width by which a suspect starts too large: O(1) in place of N^-1/2."""


def _is_own_doing(measured: Measured, one: Reading, excess: float, rule: Rule) -> bool:
    """Whether an own term departs by itself, beside what suspects add to its gradient."""
    if not excess:
        return one.departs
    if one.beside.exponent < excess and makes_scores(measured, one.place):  # it may start slowly, and does
        return False
    return abs(one.beside.exponent - excess) - one.beside.reach(rule.level) > rule.tolerance


def _is_beside(one: Reading, excess: float, rule: Rule) -> bool:
    """Whether an own term departs beside what its weight reads."""
    return abs(one.beside.exponent - excess) - one.beside.reach(rule.certain) > rule.tolerance


def _power(one: Reading, rule: Rule) -> float:
    """The power of a term beside what is read, if it departs there, too."""
    return one.beside.exponent if _is_beside(one, 0.0, rule) else one.law.exponent


def _initial(measured: Measured, one: Reading, exponent: float) -> Fault:
    kind = role(measured, one.place)
    trained = _trained(measured, one.place)
    setting = SCALE if kind is Role.SCORES else INITIAL
    values = tuple(each.size for each in trained)
    return Fault(
        _parameter(one), one.place[2], kind, setting, exponent, one.reach, 0, values, mends=_rounded(-exponent)
    )


_LARGE_EPS = 0.1
"""In units of the gradient: an eps from which on Adam's steps are no longer of the size of the rate."""


def _of_rate(measured: Measured, one: Reading, step: int, exponent: float) -> Fault:
    """The rate of a parameter, or its eps, where this is large beside the gradients."""
    trained = _trained(measured, one.place)
    kind = role(measured, one.place)
    ratios = [each.eps / each.gradient for each in trained if each.gradient > 0]
    if "Adam" in trained[0].optimizer and ratios and max(ratios) > _LARGE_EPS and one.finding is Finding.VANISHES:
        ratio = power_law(measured.widths, torch.tensor(ratios, dtype=torch.float64, device="cpu")[:, None])
        values = tuple(each.eps for each in trained)
        mends = _rounded(-ratio.exponent)
        return Fault(_parameter(one), one.place[2], kind, EPS, exponent, one.reach, step, values, mends)
    values = tuple(each.rate for each in trained)
    return Fault(_parameter(one), one.place[2], kind, RATE, exponent, one.reach, step, values, _rounded(-exponent))


def _decays(measured: Measured, rule: Rule, blamed: set[str]) -> list[Fault]:
    """Weights of which decay undoes another part at every width; those with a wrong rate of their own are left out."""
    found = []
    names = {name: place for place in reversed(measured.places) for name in place[0].split("+") if name}
    for name, place in names.items():
        trained = [row[name] for row in measured.parameters]
        parts = [_decayed(one) for one in trained]
        if name in blamed or not all(part > 0 and math.isfinite(part) for part in parts):
            continue
        law = power_law(measured.widths, torch.tensor(parts, dtype=torch.float64, device="cpu")[:, None])
        tolerance = rule.tolerance if trained[0].is_decoupled or trained[0].follows_gradient else 2 * rule.tolerance
        if abs(law.exponent) > tolerance:
            values = tuple(one.decay for one in trained)
            found.append(
                Fault(
                    name, place[2], role(measured, place), DECAY, law.exponent, 0.0, 0, values, _rounded(-law.exponent)
                )
            )
    return found


def _decayed(one: Trained) -> float:
    """Which part of a weight decay undoes in a step; through Adam's gradient, its size beside that."""
    if not one.decay:
        return 0.0
    if one.is_decoupled or one.follows_gradient:
        return one.rate * one.decay
    return one.decay * one.size / one.gradient if one.gradient > 0 else math.nan


def _parameter(one: Reading) -> str:
    return one.place[0].split("+")[0]


def _trained(measured: Measured, place: Place) -> list[Trained]:
    name = place[0].split("+")[0]
    return [row[name] for row in measured.parameters if name]


def _rounded(exponent: float) -> float:
    """The power of the width that is meant: the next multiple of 1/2, if it is near."""
    near = round(2 * exponent) / 2
    return near if near and abs(near - exponent) < _NEAR else round(exponent, 2)


_NEAR = 0.2
