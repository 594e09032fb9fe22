"""What a rule says about one call of a torch function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from torch_dmft.architecture.axes import Label
from torch_dmft.architecture.trace import Call, Trace

Dims = tuple[Label, ...]


@dataclass(frozen=True)
class Outcome:
    """What a function makes of its arguments.

    Attributes:
        dims: labels of each result, in order; one entry if they are alike.
        letter: see ``Trace.letters``; empty for functions that change nothing.
        weights: see ``Value.weights``.
        claimed: the parameters used as their layer's rule says.
        source: path of the weight that was applied, if one was.
        constant: whether the result depends on the arguments' shapes only.
    """

    dims: list[Dims]
    letter: Literal["", "L", "a", "r", "x"] = "x"
    weights: frozenset[str] = frozenset()
    claimed: tuple[Tensor, ...] = ()
    source: str | None = None
    constant: bool = False


Rule = Callable[[Trace, Call], Outcome | None]
Rules = dict[str, Rule]


def rule(rules: Rules, names: str) -> Callable[[Rule], Rule]:
    """Put the decorated function down as the rule of the torch functions with these plain names (one string)."""

    def register(function: Rule) -> Rule:
        rules.update(dict.fromkeys(names.split(), function))
        return function

    return register
