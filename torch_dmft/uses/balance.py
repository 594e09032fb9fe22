"""Whether the forward pass scales features alike at two widths: its factors and its sums without weights have to balance.

They do where a mean is written as a sum, a dot product is divided by its length, or a vector of length one is multiplied by
the square root of its size. Where the scale grows like the square root of the length of a dot product, as that of the scores
q.k / sqrt(d) of attention, one of the two factors of the product has to fall like 1 / sqrt(d): the weights that make it, or
the module's own scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from torch_dmft.architecture import Attribute
from torch_dmft.core.errors import Place
from torch_dmft.uses.steps import Step

_EXACT = 1e-4
"""By how much logarithms of scales may differ."""


@dataclass(frozen=True, eq=False)
class Imbalance:
    """A place at which features have another scale at the other width.

    Attributes:
        path: path of the module.
        excess: the logarithm of the other scale over this one.
        pairs: the steps that differ and cause it, at both widths.
        is_of_outputs: whether it shows itself in the outputs alone.
    """

    path: str
    excess: float
    pairs: tuple[tuple[Step, Step], ...]
    is_of_outputs: bool = False

    @property
    def products(self) -> tuple[tuple[Step, Step], ...]:
        """The products of features with features over a length that differs."""
        return tuple((one, other) for one, other in self.pairs if one.operands and one.summed != other.summed)

    @property
    def is_of_scores(self) -> bool:
        """Whether it is that of a dot product that is divided by the square root of its length."""
        if len(self.products) != 1:
            return False
        ((one, other),) = self.products
        return abs(self.excess - math.log(other.summed / one.summed) / 2) < _EXACT

    @property
    def factors(self) -> tuple[float, float] | None:
        """What is multiplied by at either width, where that is all there is; None if it is not."""
        one, other = (math.prod(step.number for step in steps) for steps in zip(*self.pairs, strict=True))
        is_all = one > 0 < other and abs(math.log(other / one) - self.excess) < _EXACT
        return (one, other) if is_all else None

    def place(self) -> Place:
        """What to complain of."""
        said = [
            f"{what.format(getattr(one, name))} ({getattr(other, name):.4g} at the other width)"
            for name, what in _CAUSES.items()
            for one, other in self.pairs
            if getattr(one, name) != getattr(other, name)
        ]
        where = next((one.path for one, _ in self.pairs), self.path)
        reason = f"features are {math.exp(self.excess):.3g} times as large at the other width: {', '.join(said[:3])}"
        remedy = "make factors and sums balance: a sum of n terms divided by n, a dot product over n neurons by n"
        return Place(where or "(model)", reason, remedy)


_CAUSES = {"number": "a factor of {:.4g}", "summed": "a sum of {} terms", "length": "the length of {} numbers"}


def imbalances(steps: Sequence[Step], others: Sequence[Step]) -> list[Imbalance]:
    """Where scales differ that must not, for the steps of one model at two widths in the same order; each cause once."""
    found: dict[frozenset[int], Imbalance] = {}
    for step, other in zip(steps, others, strict=True):
        if not step.must_agree:
            continue
        for one, second in zip(step.scales, other.scales, strict=True):
            excess = second.log - one.log
            causes = frozenset(n for n in one.causes | second.causes if steps[n].log != others[n].log)
            if abs(excess) > _EXACT and not any(known <= causes for known in found):
                pairs = tuple((steps[n], others[n]) for n in sorted(causes))
                found[causes] = Imbalance(step.path, excess, pairs, step.operator == "output")
    return list(found.values())


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
