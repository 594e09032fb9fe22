r"""Scale: what the numbers of a forward pass and the sizes of weights multiply a tensor by, as powers.

Every tensor that depends on data or parameters has entries of order

.. math:: \prod_n c_n^{p_n} \prod_\theta |\theta|^{a_\theta},

with the factors c_n of the operators before it and the sizes of the parameters that it is homogeneous in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

_Key = TypeVar("_Key", int, str)


@dataclass(frozen=True)
class Scale:
    """The scale of a tensor.

    Attributes:
        numbers: the powers of the factors of steps, by their number.
        weights: the powers of the sizes of parameters, by name.
        last: the parameters that were multiplied with last, one for each factor of a product of features.
    """

    numbers: Mapping[int, float] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    last: tuple[str, ...] = ()

    @classmethod
    def of_step(cls, number: int) -> Scale:
        """Of the factor of a step."""
        return cls({number: 1.0})

    @classmethod
    def of_weight(cls, name: str) -> Scale:
        """Of a parameter."""
        return cls({}, {name: 1.0}, (name,))

    def __bool__(self) -> bool:
        """Whether it depends on anything."""
        return bool(self.numbers or self.weights)

    def times(self, power: float) -> Scale:
        """Of a power of the tensor."""
        if power == 1.0:
            return self
        if not power:
            return Scale()
        numbers = {number: power * one for number, one in self.numbers.items()}
        return Scale(numbers, {name: power * one for name, one in self.weights.items()}, self.last)

    def plus(self, other: Scale) -> Scale:
        """Of a product with another tensor."""
        last = dict.fromkeys((*self.last, *other.last))
        return Scale(_sum(self.numbers, other.numbers), _sum(self.weights, other.weights), tuple(last))

    def minus(self, other: Scale) -> Scale:
        """Of a quotient; what it was made of last comes first."""
        found = self.plus(other.times(-1.0))
        return Scale(found.numbers, found.weights, tuple(dict.fromkeys((*other.last, *self.last))))


def _sum(one: Mapping[_Key, float], other: Mapping[_Key, float]) -> Mapping[_Key, float]:
    if not other:
        return one
    if not one:
        return other
    found = dict(one)
    for key, power in other.items():
        found[key] = found.get(key, 0.0) + power
        if not found[key]:
            del found[key]
    return found
