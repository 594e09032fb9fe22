"""Whether the forward pass scales features alike at two widths: factors and sums without weights have to balance.

In one module let the factors be n_i, the lengths of sums over products of features m_j, and those of norms k. The features
are multiplied by prod(n) prod(m) / sqrt(prod(k)), up to averages, which do not count. That is the same at every width where a
mean is written as a sum, a dot product is divided by its length, or a vector of norm one is multiplied by the square root of
its size. Where it grows like the square root of the length of a dot product, as for scores q.k / sqrt(d), one of the two
factors of the product has to fall like 1 / sqrt(d): the weights that make it, or the module's own scale.
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

_ROUGH = 0.2
"""By how much those of tensors of constants may, such as tables of sines or masks."""


@dataclass(frozen=True, eq=False)
class Imbalance:
    """What one module multiplies features by at one width more than at another.

    Attributes:
        path: path of the module.
        excess: the logarithm of that.
        pairs: the steps that differ, at both widths.
    """

    path: str
    excess: float
    pairs: tuple[tuple[Step, Step], ...]

    @property
    def products(self) -> tuple[tuple[Step, Step], ...]:
        """The products of features with features over a length that differs."""
        return tuple((one, other) for one, other in self.pairs if one.operands and one.summed != other.summed)

    @property
    def is_of_scores(self) -> bool:
        """Whether it is that of dot products which are divided by the square root of their length."""
        growth = sum(math.log(other.summed / one.summed) for one, other in self.products)
        return bool(self.products) and abs(self.excess - growth / 2) < _EXACT

    def place(self) -> Place:
        """What to complain of."""
        numbers = [(one.number, other.number) for one, other in self.pairs if one.number != other.number]
        sums = [(one.summed, other.summed) for one, other in self.pairs if one.summed != other.summed]
        lengths = [(one.length, other.length) for one, other in self.pairs if one.length != other.length]
        said = [f"a factor of {one:.4g} ({other:.4g} at the other width)" for one, other in numbers[:2]]
        said += [f"a sum of {one} terms ({other})" for one, other in sums[:2]]
        said += [f"a vector of {one} numbers is brought to length one ({other})" for one, other in lengths[:1]]
        reason = f"features are multiplied by {math.exp(self.excess):.3g} times as much at the other width: {', '.join(said)}"
        remedy = "make factors and sums balance: a sum of n terms divided by n, a dot product over n neurons by n"
        return Place(self.path or "(model)", reason, remedy)


def imbalances(steps: Sequence[Step], others: Sequence[Step]) -> list[Imbalance]:
    """The modules whose factors and sums do not balance, for the steps of one model at two widths in the same order."""
    pairs: dict[str, list[tuple[Step, Step]]] = {}
    for one, other in zip(steps, others, strict=True):
        found = pairs.setdefault(one.path, [])
        if abs(one.scale - other.scale) > (_ROUGH if one.is_tensor else 0.0):
            found.append((one, other))
    excess = {path: sum(other.scale - one.scale for one, other in several) for path, several in pairs.items()}
    return [Imbalance(path, excess[path], tuple(pairs[path])) for path in pairs if abs(excess[path]) > _EXACT]


def own_scale(model: nn.Module, other: nn.Module, found: Imbalance) -> tuple[Attribute, Attribute] | None:
    """The attribute that holds the scale of a module's scores, as it has to be at both widths; None if there is none."""
    (product, wider), *more = found.products
    factors = [(one.number, second.number) for one, second in found.pairs if one.number != second.number]
    if more or len(factors) > 2 or not factors:
        return None
    scale = math.prod(one for one, _ in factors), math.prod(second for _, second in factors)
    modules = model.get_submodule(found.path), other.get_submodule(found.path)
    for name, value in vars(modules[0]).items():
        second = vars(modules[1]).get(name)
        if not (isinstance(value, float) and isinstance(second, float)):
            continue
        for power in (1, -1):
            if math.isclose(value, scale[0] ** power, rel_tol=1e-6) and math.isclose(
                second, scale[1] ** power, rel_tol=1e-6
            ):
                new = value * product.summed ** (-power / 2), second * wider.summed ** (-power / 2)
                return Attribute(found.path, name, new[0]), Attribute(found.path, name, new[1])
    return None
