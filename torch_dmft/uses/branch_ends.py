"""Where a residual branch can be multiplied by a number: the parameters that its output is proportional to.

From the sum the branch is followed back through all that is linear, or homogeneous as ReLU is, to the weight and bias of its
last product, the gain and shift of a norm layer, or a layer scale. Of a product of features one factor is enough.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch.autograd.graph import Node

from torch_dmft.core.errors import Place
from torch_dmft.uses.forms import Entrywise, Opaque
from torch_dmft.uses.graph import PICKS, RESHAPES, kind
from torch_dmft.uses.parts import parts
from torch_dmft.uses.residual import Features, ResidualSum
from torch_dmft.uses.watch import Use

_GATHERS = frozenset(
    re.findall(r"\w+", "Add Sub Cat Stack IndexAdd IndexPut Scatter ScatterAdd CopySlices Where MaskedFill")
)
"""What is linear in all tensors that it takes together."""

_FACTORS = frozenset(re.findall(r"\w+", "Mul Bmm Mm Mv"))
"""What is linear in each tensor that it takes."""

_HOMOGENEOUS = frozenset(re.findall(r"\w+", "Relu LeakyRelu Abs MaxPool2DWithIndices MaxPool3DWithIndices"))
"""Functions with f(c x) = c f(x) for c > 0."""

_EXPERTS = frozenset({"_grouped_mm"})
"""Operators without kernels that multiply with a matrix."""


@dataclass(frozen=True, eq=False)
class Branch:
    """What belongs to a residual branch.

    Attributes:
        sum: where it is added to the stream.
        path: path of the module in which it ends.
        nodes: what reaches the output through this branch alone.
        ends: names of the parameters that it ends with.
        way: the nodes from these to the sum.
    """

    sum: ResidualSum
    path: str
    nodes: frozenset[Node]
    ends: frozenset[str]
    way: frozenset[Node]


def branch_of(features: Features, one: ResidualSum, stops: set[Node]) -> Branch | Place:
    """The branch of a residual sum, or why it cannot be multiplied by a number.

    Args:
        features: the graph.
        one: the sum.
        stops: sums of other streams, whose features may flow into this branch.
    """
    nodes = _owned(features, one, stops)
    uses = [use for node in sorted(nodes, key=features.number.__getitem__) for use in features.uses.get(node, ())]
    path = uses[-1].path if uses else ""
    inner = next((node for node in nodes if node in stops and features.below[one.fork] & features.bit(node)), None)
    if inner is not None:
        reason = "a residual branch holds residual branches of its own"
        return Place(path or "(model)", reason, "leave depth= out: what the inner ones may add up to is not known")
    walk = _Walk(features, nodes)
    if one.branch not in nodes:
        reason = "the output of a residual branch is used elsewhere as well"
    elif not walk.follow(one.branch):
        reason = f"a residual branch ends with {walk.obstacle}, which is not proportional to any parameter"
    elif not walk.is_alone(one.node):
        reason = f"what ends a residual branch is used elsewhere as well: {', '.join(sorted(walk.names))}"
    else:
        return Branch(one, path, frozenset(nodes), frozenset(walk.names), frozenset(walk.seen))
    return Place(path or "(model)", reason, _REMEDY)


_REMEDY = (
    "end the branch with a weight, a norm layer with a gain, or a parameter of ones that it is multiplied by; "
    "or leave depth= out"
)


def _owned(features: Features, one: ResidualSum, stops: set[Node]) -> set[Node]:
    """The nodes from which every way to the output leads through the branch."""
    owned: set[Node] = set()
    heap, queued = [-features.number[one.branch]], {one.branch}
    while heap:
        node = features.nodes[-heapq.heappop(heap)]
        if not all(after in owned or (after is one.node and node is one.branch) for after in features.after[node]):
            continue
        is_inside = bool(features.below[one.fork] & features.bit(node))
        if node in stops and not is_inside:
            continue
        owned.add(node)
        for before in features.before[node]:
            if before not in queued:
                queued.add(before)
                heapq.heappush(heap, -features.number[before])
    return owned


class _Walk:
    """The way back from the end of a branch.

    Attributes:
        names: the parameters that were found.
        seen: the nodes on the way.
        obstacle: what it ended at instead.
    """

    def __init__(self, features: Features, nodes: set[Node]) -> None:
        self.features, self.nodes = features, nodes
        self.names: set[str] = set()
        self.seen: set[Node] = set()
        self.obstacle = ""

    def follow(self, node: Node) -> bool:
        """Follow the features of a node back to parameters."""
        pending = [node]
        while pending:
            node = pending.pop()
            if node in self.seen:
                continue
            self.seen.add(node)
            before = self.features.before[node]
            if node not in self.nodes:
                self.obstacle = "features of the stream itself"
                return False
            if node in self.features.uses:
                found = self._at_uses(self.features.uses[node])
                if found is None:
                    self.obstacle = f"the operator {self.features.uses[node][0].operator}"
                    return False
                if found:
                    continue
            elif kind(node) in _FACTORS and len(before) == 2:
                if not self._through_one_of(before):
                    return False
                continue
            elif kind(node) == "Div" and before:
                before = before[:1]
            elif not before or not (
                kind(node) in _GATHERS
                or (len(before) == 1 and kind(node) in RESHAPES | PICKS | _HOMOGENEOUS | _FACTORS)
            ):
                self.obstacle = f"the function {kind(node)}"
                return False
            pending += before
        return True

    def is_alone(self, end: Node) -> bool:
        """Whether what was passed leads to the end of the branch and nowhere else."""
        return all(after in self.seen or after is end for node in self.seen for after in self.features.after[node])

    def _through_one_of(self, factors: Sequence[Node]) -> bool:
        for factor in factors:
            other = _Walk(self.features, self.nodes)
            if other.follow(factor):
                self.names |= other.names
                self.seen |= other.seen
                return True
            self.obstacle = other.obstacle
        return False

    def _at_uses(self, uses: Sequence[Use]) -> bool | None:
        """Whether an operator with parameters is proportional to them; None if it is not even linear in features."""
        ends = False
        for use in uses:
            for names, part in zip(use.weights.values(), parts(use), strict=True):
                if isinstance(part, Opaque) and use.operator not in _EXPERTS:
                    return None
                is_shift = isinstance(part, Entrywise) and part.by is None and part.by_slot is None
                ends = ends or not is_shift
                self.names |= names
        return ends
