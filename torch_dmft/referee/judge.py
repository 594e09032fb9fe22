r"""Which powers of the width are right at a place, and which are not.

In a set-up that has a limit, what a weight puts out at the start, what it adds by its own change and what the outputs change by
are all O(1) in the width N. Three deviations are legitimate and known. An average over neurons (a readout, a code, the scores
of attention over d) starts as N^-1/2, as every average of N independent numbers does, or at zero. Biases start as small as they
please. And what a weight *carries* may vanish: it does where its initial part is small. What vanishes
at first and is right later is right: what it reads started small.

A weight is judged by what it does beside what it reads (``relative``), if the term itself goes the same way: features of deep
networks whose biases start as N^-1/2 fall with the width, which is right, hides what is wrong and scatters from seed to seed.
Overlaps of a step with unrelated rows, which fade with the width, are taken off; where these hide all else, at widths below the
number of independent rows, nothing is decided but what departs by more than they can.

An exponent *departs* where an interval of Student around it lies beyond the tolerance, and the widest half of the widths agrees
with that, since corrections of finite width fade there. Steps are taken together in two windows, the first half and the second
half of those that were looked at, by the mean of the logarithms. The intervals share out a probability ``level`` of a false
alarm over all the places, quantities and windows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch import Tensor

from torch_dmft.core.power_law import PowerLaw, power_law, student
from torch_dmft.referee.look import Place
from torch_dmft.referee.measure import Measured
from torch_dmft.referee.relative import relative
from torch_dmft.referee.roles import Role, is_added, is_average, role


class Finding(StrEnum):
    """What is found at a place."""

    RIGHT = "right"
    GROWS = "grows"
    VANISHES = "vanishes"
    UNDECIDED = "not decided"
    STILL = "does not move"


@dataclass(frozen=True)
class Rule:
    """What is taken for right.

    Attributes:
        tolerance: largest exponent that counts as none.
        fault: the smallest exponent that "right" excludes, at ``certain``.
        level: probability of any false alarm in a check, shared by ``looks`` and everything that is looked at.
        certain: probability with which "right" overlooks an exponent of ``fault`` at a place.
        looks: how often the same set-up may be judged, with more seeds each time.
    """

    tolerance: float = 0.2
    fault: float = 0.4
    level: float = 0.02
    certain: float = 0.05
    looks: int = 1


@dataclass(frozen=True, eq=False)
class Reading:
    """One quantity at one place, over a window of steps.

    Attributes:
        place: where.
        quantity: "start", "own", "carried" or "change".
        steps: after which it was looked at; (0,) for the start.
        law: its power of the width.
        beside: its power beside what the weight reads; ``law`` where it reads nothing.
        reach: half the width of the interval around ``beside`` that ``finding`` rests on.
        finding: what follows.
        seeds: how many would settle it, where it is not decided; 0 where no number would.
        in_eval: whether the model was in eval mode.
        is_hidden: whether it is not decided as overlaps with unrelated rows leave too few widths to judge by.
    """

    place: Place
    quantity: str
    steps: tuple[int, ...]
    law: PowerLaw
    beside: PowerLaw
    reach: float
    finding: Finding
    seeds: int = 0
    in_eval: bool = False
    is_hidden: bool = False

    @property
    def departs(self) -> bool:
        """Whether it grows or vanishes."""
        return self.finding in (Finding.GROWS, Finding.VANISHES)


_NOISE = 1e-6
"""A term this small beside the output is rounding."""


def readings(measured: Measured, rule: Rule) -> tuple[Reading, ...]:
    """Everything that is looked at, judged; in forward order, and in time at every place."""
    series = list(_series(measured))
    level = rule.level / rule.looks / max(1, len(series))
    found = [_reading(measured, one, rule, level) for one in series]
    too_large = {
        one.place
        for one in found
        if one.quantity == "start"
        and is_average(measured, one.place)
        and (one.beside.exponent - one.reach > rule.tolerance - 0.5 or _is_large(measured, one))
    }
    judged = [_passed_on(_caught_up(one, found, rule), too_large, rule) for one in found]
    return tuple(_summed(measured, one, judged, rule) for one in judged)


def _passed_on(one: Reading, too_large: Set[Place], rule: Rule) -> Reading:
    """A reading that grows where an average over neurons starts larger than N^-1/2: with that known, less is needed."""
    is_growing = one.law.exponent - one.law.reach(rule.certain) > rule.tolerance / 2
    if one.place in too_large and one.quantity in ("carried", "change") and is_growing:
        return replace(one, finding=Finding.GROWS)
    return one


LARGE_START = -0.25
"""Half-way between N^-1/2, which is right for an average over neurons, and 1."""


def _is_large(measured: Measured, start: Reading) -> bool:
    """Whether the entries of a readout say that it starts too large, and what it puts out does not speak against that.

    The few outputs of a readout scatter, its many entries do not: at random they make N^1/2 times their size. Numbers that
    multiply the output are seen in the output alone.
    """
    name, fan_in = start.place[0].split("+")[0], [shape[0] for shape in measured.shapes[start.place]]
    if role(measured, start.place) is not Role.READOUT or not name:
        return False
    sizes = [row[name].size * n**0.5 for row, n in zip(measured.parameters, fan_in, strict=True)]
    of_entries = power_law(measured.widths, torch.tensor(sizes, dtype=torch.float64, device="cpu")[:, None]).exponent
    return of_entries > LARGE_START and start.beside.exponent > LARGE_START


def _caught_up(one: Reading, found: Sequence[Reading], rule: Rule) -> Reading:
    """A reading that vanishes, but is right later: what is read was small at the start, and is no longer."""
    if one.finding is Finding.VANISHES and any(
        other.finding is Finding.RIGHT and other.steps > one.steps and abs(other.law.exponent) <= rule.tolerance
        for other in found
        if (other.place, other.quantity, other.in_eval) == (one.place, one.quantity, one.in_eval)
    ):
        return replace(one, finding=Finding.RIGHT)
    return one


def _summed(measured: Measured, one: Reading, found: Sequence[Reading], rule: Rule) -> Reading:
    """A reading of the outputs or at the readout, with what the parts of a sum say of each other.

    The outputs' change is the readout's own term and what it carries. The second may vanish, where the readout starts small or
    rows overlap, and is the larger part at narrow widths. Then the sum vanishes at first, though its own part does not; and
    later the own part grows, as it alone comes to what the targets ask for.
    """
    readout = next((place for place in reversed(measured.places) if role(measured, place) is Role.READOUT), None)
    if readout is None:
        return one
    own = [each for each in found if (each.place, each.quantity) == (readout, "own")]
    meanwhile = [each for each in found if {*each.steps} & {*one.steps}]
    if role(measured, one.place) is Role.OUTPUTS and one.finding is Finding.VANISHES:
        window = [measured.steps.index(step) for step in one.steps]
        made = _law(measured, measured.sizes[readout, "change"][window].log().mean(0).exp())
        is_the_sum = made is not None and abs(made.exponent - one.law.exponent) <= rule.tolerance / 2
        holds = [each for each in own if each in meanwhile] if is_the_sum else []
    elif one in own and one.finding is Finding.GROWS:
        carried = [each for each in meanwhile if (each.place, each.quantity) == (readout, "carried")]
        outputs = [each for each in meanwhile if role(measured, each.place) is Role.OUTPUTS]
        is_alone = bool(carried) and all(each.law.exponent < -rule.tolerance for each in carried)
        is_alone = is_alone and all(each.law.exponent <= 0 for each in outputs)
        holds = [each for each in own if each.steps < one.steps] if is_alone else []
    else:
        return one
    if holds and all(each.finding is Finding.RIGHT for each in holds):
        return replace(one, finding=Finding.RIGHT)
    if holds and all(each.finding is Finding.RIGHT or each.is_hidden for each in holds):
        return replace(one, finding=Finding.UNDECIDED, is_hidden=True)
    return one


def windows(steps: Sequence[int]) -> tuple[range, ...]:
    """Positions of the first and the second half of the steps."""
    half = (len(steps) + 1) // 2
    return tuple(one for one in (range(half), range(half, len(steps))) if len(one))


@dataclass(frozen=True, eq=False)
class _Series:
    """One quantity at one place, over a window of steps: values ``(width, seed)``, and beside what the weight reads."""

    place: Place
    quantity: str
    steps: tuple[int, ...]
    values: Tensor
    beside: Tensor | None = None
    in_eval: bool = False


def _series(measured: Measured) -> Iterator[_Series]:
    """What is judged."""
    for place in measured.places:
        kind = role(measured, place)
        whole = kind in (Role.SCORES, Role.OUTPUTS)
        start = measured.sizes[place, "start"][0]
        if bool((start > 0).all()):
            yield _Series(place, "start", (0,), start, relative(measured, place, "start", [0]))
        for quantity in ("change",) if whole else ("own", "carried"):
            yield from _in_windows(measured, measured.sizes, place, quantity, in_eval=False)
        if measured.evaluated and kind is Role.OUTPUTS:  # in eval mode what comes out is what counts
            yield from _in_windows(measured, measured.evaluated, place, "change", in_eval=True)


def _in_windows(
    measured: Measured, sizes: Mapping[tuple[Place, str], Tensor], place: Place, quantity: str, *, in_eval: bool
) -> Iterator[_Series]:
    for window in windows(measured.steps):
        moving = [i for i in window if _is_above_noise(sizes, place, quantity, i)]
        if moving:
            steps = tuple(measured.steps[i] for i in moving)
            values = sizes[place, quantity][moving].log().mean(0).exp()
            beside = relative(measured, place, quantity, moving) if quantity == "own" else None
            yield _Series(place, quantity, steps, values, beside, in_eval)


def _is_above_noise(sizes: Mapping[tuple[Place, str], Tensor], place: Place, quantity: str, index: int) -> bool:
    """Whether what is at a place moves by more than rounding, at two widths at least, and wherever it is still finite."""
    values = sizes[place, quantity][index]
    outputs = sizes[place, "start"][index] + sizes[place, "change"][index]
    known = values.isfinite()
    return int(known.all(1).sum()) > 1 and bool((values[known] > _NOISE * outputs[known]).all())


def departs_first(measured: Measured, one: Reading, rule: Rule, excess: float = 0.0) -> int:
    """The first step at which a quantity that departs over a window departs by itself, at ``rule.certain``.

    Args:
        measured: what was seen.
        one: the quantity.
        rule: what is taken for right.
        excess: the part of its exponent that something else explains.
    """
    for step in one.steps:
        at = measured.steps.index(step)
        values = relative(measured, one.place, one.quantity, [at])
        law = _law(measured, measured.sizes[one.place, one.quantity][at] if values is None else values)
        if law is None:
            continue
        rest, rest_later = law.exponent - excess, one.beside.exponent - excess
        if abs(rest) - law.reach(rule.certain) > rule.tolerance and rest * rest_later > 0:
            return step
    return one.steps[0]


def _law(measured: Measured, values: Tensor) -> PowerLaw | None:
    """The power of the widths at which all seeds are finite; None if there are not two of them."""
    known = values.isfinite().all(1)
    widths = [width for width, is_known in zip(measured.widths, known.tolist(), strict=True) if is_known]
    return power_law(widths, values[known]) if len(widths) > 1 else None


def _reading(measured: Measured, one: _Series, rule: Rule, level: float) -> Reading:
    law = _law(measured, one.values)
    if law is None:
        unknown = power_law((1, 2), one.values[:2] * math.nan)
        return Reading(one.place, one.quantity, one.steps, unknown, unknown, math.nan, Finding.UNDECIDED)
    seen = law if one.beside is None else _law(measured, one.beside)
    beside, is_hidden = seen or law, seen is None
    reach = beside.reach(level)
    finding = _found(law, beside, rule, level, is_early=one.steps[0] in (0, measured.steps[0]))
    if is_hidden and finding is not Finding.GROWS and not law.exponent + reach < -rule.tolerance - _OF_OVERLAPS:
        return Reading(one.place, one.quantity, one.steps, law, law, reach, Finding.UNDECIDED, is_hidden=True)
    is_small = beside.exponent < 0 and beside.exponent + beside.reach(rule.certain) <= rule.fault
    if finding in (Finding.VANISHES, Finding.UNDECIDED) and is_small and _may_vanish(measured, one.place, one.quantity):
        finding = Finding.RIGHT
    seeds, given = 0, one.values.shape[1]
    if finding is Finding.UNDECIDED and beside.freedom:
        room = max(rule.fault - abs(beside.exponent), rule.tolerance / 2, abs(beside.exponent) - rule.tolerance)
        ratio = student(beside.freedom, rule.certain) * beside.error / room
        seeds = max(given + 1, math.ceil(given * ratio**2))
    elif finding is Finding.UNDECIDED:
        seeds = max(3, given + 1)
    is_cut = one.beside is not None and bool((one.beside.isnan() & one.values.isfinite()).any())
    is_hidden = finding is Finding.UNDECIDED and is_cut
    return Reading(one.place, one.quantity, one.steps, law, beside, reach, finding, seeds, one.in_eval, is_hidden)


_OF_OVERLAPS = 0.5
"""The largest power of the width by which overlaps with unrelated rows make an own term fall."""


def _found(law: PowerLaw, beside: PowerLaw, rule: Rule, level: float, *, is_early: bool) -> Finding:
    """What is found of a term and of the same beside what is read.

    Early on the second is what the setting makes. Later a term may be what the targets ask for, whatever is read: then it
    departs only if both do, and is right if the first is.
    """
    plain = _finding(law, law.reach(level), rule)
    if beside is law or plain is Finding.GROWS:  # whatever is read, what grows is not right
        return plain
    finding = _finding(beside, beside.reach(level), rule)
    room, least = law.reach(rule.certain), rule.tolerance / 2
    goes_along = {Finding.GROWS: law.exponent - room > least, Finding.VANISHES: law.exponent + room < -least}
    if is_early:
        is_none = finding is Finding.UNDECIDED and abs(beside.exponent) <= rule.tolerance
        return plain if is_none and plain is Finding.RIGHT else finding
    if not goes_along.get(finding, True):
        finding = Finding.UNDECIDED
    return plain if finding is Finding.UNDECIDED and plain is Finding.RIGHT else finding


def _finding(law: PowerLaw, reach: float, rule: Rule) -> Finding:
    if law.exponent - reach > rule.tolerance and law.wide > rule.tolerance:
        return Finding.GROWS
    if law.exponent + reach < -rule.tolerance and law.wide < -rule.tolerance:
        return Finding.VANISHES
    if law.freedom and abs(law.exponent) + law.reach(rule.certain) <= rule.fault:
        return Finding.RIGHT
    return Finding.UNDECIDED


def _may_vanish(measured: Measured, place: Place, quantity: str) -> bool:
    """What may legitimately be small in wide networks."""
    kind = role(measured, place)
    if quantity == "carried" or kind is Role.SCORES:
        return True
    if quantity == "own":
        return makes_scores(measured, place)
    return quantity == "start" and (kind.averages or (kind in (Role.VECTOR, Role.SCALAR) and is_added(place)))


def makes_scores(measured: Measured, place: Place) -> bool:
    """Whether a weight makes queries and keys of scores over d, by steps that follow the gradient.

    At the start scores are N^-1/2, attention is even, and the gradient by it an average of independent numbers: it is N^-1/2,
    too, until values and gradients align.
    """
    name = place[0].split("+")[0]
    if not name or not measured.parameters[0][name].follows_gradient:
        return False
    order = list(measured.places)
    return any(
        role(measured, other) is Role.SCORES and is_average(measured, other) and place[2].startswith(other[2])
        for other in order[order.index(place) :]
    )
