r"""Which powers of the width are right at a place, and which are not.

In a set-up that has a limit, what a weight puts out at the start, what it adds by its own change and what the outputs change by
are all O(1) in the width N. Three deviations are legitimate and known. An average over neurons (a readout, a code, the scores
of attention over d) starts as N^-1/2, as every average of N independent numbers does, or at zero. Biases start as small as they
please. And what a weight *carries* may vanish: it does where its initial part is small. What vanishes
at first and is right later is right: what it reads started small.

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
from torch_dmft.referee.look import OUTPUTS, SCORES, Place
from torch_dmft.referee.measure import Measured


class Role(StrEnum):
    """What a parameter is for, by which axes grow with the width."""

    INPUT = "input"
    EMBEDDING = "embedding"
    HIDDEN = "hidden"
    READOUT = "readout"
    INNER = "inner"
    VECTOR = "vector"
    SCALAR = "scalar"
    SCORES = "scores"
    OUTPUTS = "outputs"

    @property
    def is_matrix(self) -> bool:
        """Whether it multiplies vectors."""
        return self in _MATRICES

    @property
    def averages(self) -> bool:
        """Whether it sums over neurons, and may start as N^-1/2."""
        return self in (Role.READOUT, Role.SCORES, Role.OUTPUTS)


_MATRICES = frozenset({Role.INPUT, Role.EMBEDDING, Role.HIDDEN, Role.READOUT, Role.INNER})


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
        level: probability of any false alarm in a check.
        certain: probability with which "right" overlooks an exponent of ``fault`` at a place.
    """

    tolerance: float = 0.2
    fault: float = 0.4
    level: float = 0.02
    certain: float = 0.05


@dataclass(frozen=True, eq=False)
class Reading:
    """One quantity at one place, over a window of steps.

    Attributes:
        place: where.
        quantity: "start", "own", "carried" or "change".
        steps: after which it was looked at; (0,) for the start.
        law: its power of the width.
        reach: half the width of the interval that ``finding`` rests on.
        finding: what follows.
        seeds: how many would settle it, where it is not decided; 0 where no number would.
        in_eval: whether the model was in eval mode.
    """

    place: Place
    quantity: str
    steps: tuple[int, ...]
    law: PowerLaw
    reach: float
    finding: Finding
    seeds: int = 0
    in_eval: bool = False

    @property
    def departs(self) -> bool:
        """Whether it grows or vanishes."""
        return self.finding in (Finding.GROWS, Finding.VANISHES)


def role(measured: Measured, place: Place) -> Role:
    """The role of what is at a place, from two widths."""
    names, operator, _ = place
    if operator == OUTPUTS:
        return Role.OUTPUTS
    if operator.startswith(SCORES) and not names:
        return Role.SCORES
    (narrow_in, narrow), (wide_in, wide) = (measured.shapes[place][i] for i in _ends(measured))
    if narrow:
        if operator == "embedding":
            return Role.EMBEDDING if wide != narrow else Role.INNER
        if wide_in != narrow_in:
            return Role.HIDDEN if wide != narrow else Role.READOUT
        return Role.INPUT if wide != narrow else Role.INNER
    name = names.split("+")[0]
    shapes = [measured.parameters[i][name].shape for i in _ends(measured)]
    return Role.VECTOR if shapes[0] != shapes[1] else Role.SCALAR


def _ends(measured: Measured) -> tuple[int, int]:
    order = sorted(range(len(measured.widths)), key=measured.widths.__getitem__)
    return order[0], order[-1]


_NOISE = 1e-6
"""A term this small beside the output is rounding."""


def readings(measured: Measured, rule: Rule) -> tuple[Reading, ...]:
    """Everything that is looked at, judged; in forward order, and in time at every place."""
    series = list(_series(measured))
    level = rule.level / max(1, len(series))
    found = [
        _reading(measured, place, quantity, steps, values, rule, level, in_eval=in_eval)
        for place, quantity, steps, values, in_eval in series
    ]
    too_large = {
        one.place
        for one in found
        if one.quantity == "start"
        and is_average(measured, one.place)
        and (one.law.exponent - one.reach > rule.tolerance - 0.5 or _is_large(measured, one))
    }
    return tuple(_passed_on(_caught_up(one, found), too_large, rule) for one in found)


def _passed_on(one: Reading, too_large: Set[Place], rule: Rule) -> Reading:
    """A reading that grows where an average over neurons starts larger than N^-1/2: with that known, less is needed."""
    is_growing = one.law.exponent - one.law.reach(rule.certain) > rule.tolerance / 2
    if one.place in too_large and one.quantity in ("carried", "change") and is_growing:
        return replace(one, finding=Finding.GROWS)
    return one


def is_average(measured: Measured, place: Place) -> bool:
    """Whether what is at a place sums over ever more neurons, as a readout does, and scores over d where heads widen.

    A readout that is an embedding as well is none: what it reads holds the row of the token itself.
    """
    kind = role(measured, place)
    if kind is Role.READOUT:
        return not any(other[0] == place[0] and role(measured, other) is not Role.READOUT for other in measured.places)
    terms = [shape[0] for shape in measured.shapes[place]]
    return kind is Role.SCORES and max(terms) > min(terms) > 0


def read_at_start(measured: Measured, place: Place) -> float:
    """The power of the width of what a readout reads at the start, which its own output has beside its initial size.

    0 for scores, which have no size of their own to tell apart.
    """
    taken = measured.sizes[place, "taken"][0]
    if role(measured, place) is not Role.READOUT or not bool(((taken > 0) & taken.isfinite()).all()):
        return 0.0
    return power_law(measured.widths, taken).exponent


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
    return of_entries > LARGE_START and start.law.exponent - read_at_start(measured, start.place) > LARGE_START


def _caught_up(one: Reading, found: Sequence[Reading]) -> Reading:
    """A reading that vanishes, but is right later: what is read was small at the start, and is no longer."""
    if one.finding is Finding.VANISHES and any(
        other.finding is Finding.RIGHT and other.steps > one.steps
        for other in found
        if (other.place, other.quantity, other.in_eval) == (one.place, one.quantity, one.in_eval)
    ):
        return replace(one, finding=Finding.RIGHT)
    return one


def windows(steps: Sequence[int]) -> tuple[range, ...]:
    """Positions of the first and the second half of the steps."""
    half = (len(steps) + 1) // 2
    return tuple(one for one in (range(half), range(half, len(steps))) if len(one))


def _series(measured: Measured) -> Iterator[tuple[Place, str, tuple[int, ...], Tensor, bool]]:
    """Place, quantity, steps and values ``(width, seed)``, of what is judged."""
    for place in measured.places:
        kind = role(measured, place)
        whole = kind in (Role.SCORES, Role.OUTPUTS)
        start = measured.sizes[place, "start"][0]
        if bool((start > 0).all()):
            yield place, "start", (0,), start, False
        for quantity in ("change",) if whole else ("own", "carried"):
            yield from _in_windows(measured, measured.sizes, place, quantity, in_eval=False)
        if measured.evaluated and kind is Role.OUTPUTS:  # in eval mode what comes out is what counts
            yield from _in_windows(measured, measured.evaluated, place, "change", in_eval=True)


def _in_windows(
    measured: Measured, sizes: Mapping[tuple[Place, str], Tensor], place: Place, quantity: str, *, in_eval: bool
) -> Iterator[tuple[Place, str, tuple[int, ...], Tensor, bool]]:
    for window in windows(measured.steps):
        moving = [i for i in window if _is_above_noise(sizes, place, quantity, i)]
        if moving:
            steps = tuple(measured.steps[i] for i in moving)
            yield place, quantity, steps, sizes[place, quantity][moving].log().mean(0).exp(), in_eval


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
        values = measured.sizes[one.place, one.quantity][measured.steps.index(step)]
        known = values.isfinite().all(1)
        law = power_law(
            [w for w, is_known in zip(measured.widths, known.tolist(), strict=True) if is_known], values[known]
        )
        rest, rest_later = law.exponent - excess, one.law.exponent - excess
        if abs(rest) - law.reach(rule.certain) > rule.tolerance and rest * rest_later > 0:
            return step
    return one.steps[0]


def _reading(
    measured: Measured,
    place: Place,
    quantity: str,
    steps: tuple[int, ...],
    values: Tensor,
    rule: Rule,
    level: float,
    *,
    in_eval: bool,
) -> Reading:
    known = values.isfinite().all(1)
    widths = [width for width, is_known in zip(measured.widths, known.tolist(), strict=True) if is_known]
    if len(widths) < 2:
        return Reading(place, quantity, steps, power_law((1, 2), values[:2] * math.nan), math.nan, Finding.UNDECIDED)
    law = power_law(widths, values[known])
    kind = role(measured, place)
    reach = law.reach(level)
    finding = _finding(law, reach, rule)
    is_small = finding in (Finding.VANISHES, Finding.UNDECIDED) and law.exponent + law.reach(rule.certain) <= rule.fault
    if is_small and law.exponent < 0 and _may_vanish(measured, place, quantity, kind, steps, law, rule):
        finding = Finding.RIGHT
    seeds = 0
    if finding is Finding.UNDECIDED and law.freedom:
        room = max(rule.fault - abs(law.exponent), rule.tolerance / 2, abs(law.exponent) - rule.tolerance)
        ratio = student(law.freedom, rule.certain) * law.error / room
        seeds = max(values.shape[1] + 1, math.ceil(values.shape[1] * ratio**2))
    elif finding is Finding.UNDECIDED:
        seeds = max(3, values.shape[1] + 1)
    return Reading(place, quantity, steps, law, reach, finding, seeds, in_eval)


def _finding(law: PowerLaw, reach: float, rule: Rule) -> Finding:
    if law.exponent - reach > rule.tolerance and law.wide > rule.tolerance:
        return Finding.GROWS
    if law.exponent + reach < -rule.tolerance and law.wide < -rule.tolerance:
        return Finding.VANISHES
    if law.freedom and abs(law.exponent) + law.reach(rule.certain) <= rule.fault:
        return Finding.RIGHT
    return Finding.UNDECIDED


def _may_vanish(
    measured: Measured, place: Place, quantity: str, kind: Role, steps: tuple[int, ...], law: PowerLaw, rule: Rule
) -> bool:
    """What may legitimately be small in wide networks."""
    if quantity == "carried" or kind is Role.SCORES:
        return True
    if quantity == "own":
        return _makes_scores(measured, place) or _reads_small(measured, place, steps, law, rule)
    if quantity != "start":
        return False
    if kind.averages or (kind in (Role.VECTOR, Role.SCALAR) and _is_added(place)):
        return True
    taken = measured.sizes[place, "taken"][0]
    return bool((taken > 0).all()) and power_law(measured.widths, taken).exponent < -_INHERITED


def _reads_small(measured: Measured, place: Place, steps: tuple[int, ...], law: PowerLaw, rule: Rule) -> bool:
    """Whether a weight adds less in wide networks because of what it reads, as features that biases of N^-1/2 make."""
    if not place[0]:
        return False
    power = what_reading_makes(measured, place, steps)
    return power < -rule.tolerance / 2 * _order(measured, place) and law.exponent - power > -rule.tolerance


def what_reading_makes(measured: Measured, place: Place, steps: Sequence[int]) -> float:
    """The power of the width that an own term has from what its weight reads: 0 where this is not known.

    A step that follows the gradient is proportional to what is read, and what it adds to the square. Biases read nothing.
    """
    if role(measured, place) in (Role.VECTOR, Role.SCALAR) and _is_added(place):
        return 0.0
    window = [measured.steps.index(step) for step in steps]
    taken = measured.sizes[place, "taken"][window].log().mean(0).exp()
    known = (taken.isfinite() & (taken > 0)).all(1)
    if int(known.sum()) < 2:
        return 0.0
    widths = [width for width, is_known in zip(measured.widths, known.tolist(), strict=True) if is_known]
    return _order(measured, place) * power_law(widths, taken[known]).exponent


def _order(measured: Measured, place: Place) -> int:
    """How often what is read enters an own term: 2 where steps follow the gradient, else 1."""
    return 2 if measured.parameters[0][place[0].split("+")[0]].follows_gradient else 1


def _makes_scores(measured: Measured, place: Place) -> bool:
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


_INHERITED = 0.25
"""What reads features that vanish, as a code's at the start do, may vanish with them."""


def _is_added(place: Place) -> bool:
    """Whether a parameter is added to features, and does not multiply them."""
    names, operator, _ = place
    return (
        operator in ("add", "add_", "sub", "sub_")
        or names.rpartition(".")[2].endswith("bias")
        or operator
        in (
            "addmm",
            "baddbmm",
            "convolution",
        )
    )
