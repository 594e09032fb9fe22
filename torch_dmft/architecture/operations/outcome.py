"""The outcome of one call of a torch function, and the registry of the functions that derive it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from torch_dmft.architecture.axes import Label
from torch_dmft.architecture.call import Call
from torch_dmft.architecture.trace import Sum, Trace

Dims = tuple[Label, ...]


@dataclass(slots=True)  # not frozen, like calls
class Outcome:
    """What is known of the results of a function.

    Attributes:
        dims: labels of each result, in order; one entry if they are alike.
        letter: see ``Trace.letters``; empty for functions that change nothing.
        weights: see ``Value.weights``.
        claimed: the parameters used as their layer's type says.
        source: path of the weight that was applied, if one was.
        constant: whether the result depends on the arguments' shapes only.
        factor: the constant by which the only argument with features is multiplied; None if anything else happens to it.
        sum: the sum over a width that the result is, with the factors of all arguments; None if it is none.
        absorbed: arguments whose factors are accounted for already.
    """

    dims: list[Dims]
    letter: Literal["", "L", "a", "r", "x"] = "x"
    weights: frozenset[str] = frozenset()
    claimed: tuple[Tensor, ...] = ()
    source: str | None = None
    constant: bool = False
    factor: float | None = None
    sum: Sum | None = None
    absorbed: tuple[Tensor, ...] = ()


Follower = Callable[[Trace, Call], Outcome | None]
Followers = dict[str, Follower]


def follows(followers: Followers, names: str) -> Callable[[Follower], Follower]:
    """Register the decorated function as the one that follows the torch functions with these plain names (one string)."""

    def register(function: Follower) -> Follower:
        followers.update(dict.fromkeys(names.split(), function))
        return function

    return register
