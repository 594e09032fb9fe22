"""Whether the forward pass scales features alike at two widths: its factors and its sums without weights have to balance.

They do where a mean is written as a sum, a dot product is divided by its length, or a vector of length one is multiplied by
the square root of its size. Where the scale grows like the square root of the length of a dot product, as that of the scores
q.k / sqrt(d) of attention, one of the two factors of the product has to fall like 1 / sqrt(d): the weights that make it, or
the module's own scale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from torch_dmft.architecture import Attribute
from torch_dmft.core.errors import Place
from torch_dmft.uses.scale import Scale
from torch_dmft.uses.steps import Step

EXACT = 1e-4
"""By how much logarithms of scales may differ."""


@dataclass(frozen=True, eq=False)
class Condition:
    """What the scales at a step have to be: those of two widths equal, once parameters hold the number that is missing.

    Attributes:
        path: path of the module.
        own: the logarithm of the scale at this width, by the numbers alone that are others at the other width.
        other: the same at the other width.
        weights: the powers of the parameters.
        causes: the numbers of the steps that differ.
        candidates: parameters that can make up for it, the nearest ones first.
        is_opaque: whether it is as well if parameters leave the scale as it is, whatever that may be.
        is_of_outputs: whether it is about the outputs.
    """

    path: str
    own: float
    other: float
    weights: Mapping[str, float]
    causes: frozenset[int]
    candidates: tuple[str, ...]
    is_opaque: bool = False
    is_of_outputs: bool = False

    def rest(self, folds: Mapping[str, tuple[float, float]]) -> tuple[float, float]:
        """What is missing at both widths, with the logarithms of what parameters are multiplied by."""
        held = [(power, folds[name]) for name, power in self.weights.items() if name in folds]
        return self.own + sum(p * fold[0] for p, fold in held), self.other + sum(p * fold[1] for p, fold in held)

    def is_met(self, folds: Mapping[str, tuple[float, float]]) -> bool:
        """Whether it holds."""
        own, other = self.rest(folds)
        if abs(other - own) < EXACT:
            return True
        return self.is_opaque and abs(other - own - (self.other - self.own)) < EXACT


def conditions(steps: Sequence[Step], others: Sequence[Step]) -> list[Condition]:
    """All conditions, for the steps of one model at two widths in the same order."""
    logs = [(one.log, other.log) for one, other in zip(steps, others, strict=True)]
    found = []

    def note(step: Step, scales: tuple[Scale, Scale], candidates: tuple[str, ...], *, is_opaque: bool = False) -> None:
        if not (scales[0] or scales[1]):
            return
        differ = [[n for n in scale.numbers if logs[n][0] != logs[n][1]] for scale in scales]
        own, other = (math.fsum(scales[at].numbers[n] * logs[n][at] for n in differ[at]) for at in (0, 1))
        causes = frozenset(differ[0]).union(differ[1])
        is_last = step.operator == "output"
        condition = Condition(step.path, own, other, scales[0].weights, causes, candidates, is_opaque, is_last)
        found.append(_without_constants(condition, steps, others))

    for step, wider in zip(steps, others, strict=True):
        for one, two in zip(step.scales, wider.scales, strict=True) if step.must_agree else ():
            note(step, (one, two), one.last)
        for (one, added), (two, wide) in zip(step.equal, wider.equal, strict=True):
            # What was added last is nearer than what it is added to: a branch than its stream, a bias than its weight.
            note(step, (added.minus(one), wide.minus(two)), tuple(dict.fromkeys((*added.last, *one.last))))
        for one, two in zip(step.opaque, wider.opaque, strict=True):
            note(step, (one, two), (), is_opaque=True)
    return found


def _without_constants(condition: Condition, steps: Sequence[Step], others: Sequence[Step]) -> Condition:
    """The condition that scores c q.k / sqrt(d) lack 1/sqrt(d), whatever the constant c, which is the model's own."""
    imbalance = Imbalance.of(condition, steps, others)
    if not imbalance.is_of_scores:
        return condition
    ((one, other),) = imbalance.products
    sign = math.copysign(0.5, imbalance.excess * math.log(other.summed / one.summed))
    return replace(condition, own=sign * math.log(one.summed), other=sign * math.log(other.summed))


@dataclass(frozen=True, eq=False)
class Imbalance:
    """A place at which features have another scale at the other width.

    Attributes:
        path: path of the module.
        excess: the logarithm of the other scale over this one.
        pairs: the steps that differ and cause it, at both widths.
        causes: their numbers.
    """

    path: str
    excess: float
    pairs: tuple[tuple[Step, Step], ...]
    causes: frozenset[int]

    @classmethod
    def of(cls, condition: Condition, steps: Sequence[Step], others: Sequence[Step]) -> Imbalance:
        """Where a condition is not met."""
        pairs = tuple((steps[n], others[n]) for n in sorted(condition.causes))
        return cls(condition.path, condition.other - condition.own, pairs, condition.causes)

    @property
    def products(self) -> tuple[tuple[Step, Step], ...]:
        """The products of features with features over a length that differs."""
        return tuple((one, other) for one, other in self.pairs if one.operator != "sum" and one.summed != other.summed)

    @property
    def is_of_scores(self) -> bool:
        """Whether it is that of a dot product that is divided by the square root of its length."""
        if len(self.products) != 1:
            return False
        ((one, other),) = self.products
        # Of a sum with other features the scores may be on either side.
        return abs(abs(self.excess) - abs(math.log(other.summed / one.summed)) / 2) < EXACT

    @property
    def reason(self) -> str:
        """The numbers that differ."""
        said = [
            f"{what.format(getattr(one, name))} ({getattr(other, name):.4g} at the other width)"
            for name, what in _CAUSES.items()
            for one, other in self.pairs
            if getattr(one, name) != getattr(other, name)
        ]
        return ", ".join(said[:3])

    def place(self) -> Place:
        """What to complain of."""
        where = next((one.path for one, _ in self.pairs), self.path)
        reason = f"features are {math.exp(self.excess):.3g} times as large at the other width: {self.reason}"
        remedy = "make factors and sums balance: a sum of n terms divided by n, a dot product over n neurons by n"
        return Place(where or "(model)", reason, remedy)


_CAUSES = {"number": "a factor of {:.4g}", "summed": "a sum of {} terms", "length": "the length of {} numbers"}


def own_scale(model: nn.Module, other: nn.Module, found: Imbalance) -> tuple[Attribute, Attribute] | None:
    """The attribute that holds the scale of a module's scores, as it has to be at both widths; None if there is none."""
    ((product, wider),) = found.products
    factors = [(one.number, second.number) for one, second in found.pairs if one.number != second.number]
    scale = math.prod(one for one, _ in factors), math.prod(second for _, second in factors)
    modules = model.get_submodule(product.path), other.get_submodule(product.path)
    for name, value in vars(modules[0]).items():
        second = vars(modules[1]).get(name)
        if not (isinstance(value, float) and isinstance(second, float)) or value == second:
            continue
        for power in (1, -1):
            if math.isclose(value, scale[0] ** power, rel_tol=1e-6) and math.isclose(
                second, scale[1] ** power, rel_tol=1e-6
            ):
                new = value * product.summed ** (-power / 2), second * wider.summed ** (-power / 2)
                return Attribute(product.path, name, new[0]), Attribute(product.path, name, new[1])
    return None
