"""Tied weights: the module behind which a readout gets its 1/(gamma0 N), as its weight makes features as well.

An embedding that also reads out has entries of the size of features, and the readout needs another factor. It can stand behind
the module that multiplies with the weight if all that this returns is proportional to the product, a bias aside.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.autograd.graph import Node

from torch_dmft.core.errors import Place
from torch_dmft.core.listed import listed
from torch_dmft.uses.graph import PICKS, RESHAPES, kind
from torch_dmft.uses.watch import Pass


@dataclass(frozen=True)
class Tie:
    """A weight that makes features and reads out.

    Attributes:
        name: the parameter.
        path: path of the module that reads out.
        bias: the parameter that is added in it, if there is one.
    """

    name: str
    path: str
    bias: str | None


def tie_of(
    name: str, paths: Iterable[str], products: Iterable[Node | None], taken: Pass, parameters: Mapping[str, Tensor]
) -> Tie | Place:
    """Where the readout of a tied weight can be multiplied, or why nowhere.

    Args:
        name: the weight.
        paths: of the modules in which it reads out.
        products: where in the graph it does.
        taken: the pass, with what modules returned.
        parameters: those of the model by name.
    """
    several = sorted(set(paths))
    if len(several) > 1:
        return _place(name, f"reads out in several modules ({listed(several)})")
    path = several[0]
    edges = taken.returned.get(path, ())
    if not edges or any(edge is None for edge in edges):
        return _place(name, f"reads out in {path or 'the model itself'}, which returns something else than one tensor")
    names = {id(parameter): other for other, parameter in parameters.items()}
    seen, added, other = _made_of([edge.node for edge in edges if edge is not None], {*products} - {None})
    biases = {names[id(one)] for one in added if id(one) in names}
    outside = [
        use
        for use in taken.uses
        if any(bias in several_ for bias in biases for several_ in use.weights.values())
        and (use.edge is None or use.edge.node not in seen)
    ]
    if other is not None:
        reason = (
            f"reads out in {path or 'the model itself'}, which does more with the product than to return it ({other})"
        )
        return _place(name, reason)
    if len(biases) > 1 or outside:
        return _place(name, f"reads out in {path or 'the model itself'} with {listed(sorted(biases))}, used elsewhere")
    return Tie(name, path, next(iter(biases), None))


def _made_of(returned: Sequence[Node], products: set[Node | None]) -> tuple[set[Node], list[Tensor], str | None]:
    """What lies between products and what a module returned: nodes, parameters that are added, and what is not linear."""
    seen: set[Node] = set()
    added: list[Tensor] = []
    ahead: list[Node | None] = [*returned]
    while ahead:
        node = ahead.pop()
        if node in seen:
            continue
        if node is None:
            return seen, added, "a constant is added"
        seen.add(node)
        before = [one for one, _ in node.next_functions]
        name = kind(node)
        if node in products:
            ahead += before[:1] if name in _WITH_BIAS and before[0] is not None else []
        elif name == "AccumulateGrad":
            added.append(node.variable)  # type: ignore[attr-defined]
        elif name == "Add" or name in _ALONE:
            ahead += before if name == "Add" else before[:1]
        elif name in _FACTORS and before.count(None) == len(before) - 1 and before[0] is not None:
            ahead += before[:1]
        else:
            return seen, added, name
    return seen, added, None


_WITH_BIAS = frozenset({"Addmm", "Baddbmm"})
"""Products to which their first argument is added."""

_ALONE = RESHAPES | PICKS
_FACTORS = frozenset({"Mul", "Div"})


def _place(name: str, reason: str) -> Place:
    remedy = (
        "read out by a module that returns nothing but the product (an nn.Linear with this weight), or untie them "
        "(tie_word_embeddings=False in transformers); measuring works"
    )
    return Place(name, f"one weight makes features and {reason}, so that no factor can stand behind it", remedy)
