"""Residual sums h + b(h) in the graph that autograd keeps of a forward pass.

A sum is *residual* if one of its terms, the stream, is an ancestor of the other, the branch, with a product with a weight on
the way. The stream's own terms count too, so that h + a(h) + m(h) has two branches however it is written. A projected skip,
s(h) + b(h) with s linear and b not, is residual where other sums of the same stream are. Formulas of a function such as
x + 0.04 x^3 have no weight on the way, and gates such as f c + i g no stream.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch.autograd.graph import Node

from torch_dmft.uses.forms import Entrywise
from torch_dmft.uses.graph import PICKS, RESHAPES, followers, is_norm, kind
from torch_dmft.uses.parts import parts
from torch_dmft.uses.watch import Pass, Use


class Features:
    """The nodes of a graph that depend on data, with their ancestors and descendants as sets of bits.

    Attributes:
        nodes: ancestors first.
        number: the place of each among them.
        before: the features that each is made of, in the order of the arguments.
        after: the features that are made of each.
        uses: the uses of parameters whose output each is.
        above: bits of a node and its ancestors.
        below: bits of a node and its descendants.
        weighing: bits of the nodes that multiply with a matrix.
    """

    def __init__(self, taken: Pass) -> None:
        self.uses: dict[Node, list[Use]] = defaultdict(list)
        for use in taken.uses:
            if use.edge is not None and use.meets_data:
                self.uses[use.edge.node].append(use)
        self.nodes: list[Node] = []
        self.before: dict[Node, list[Node]] = {}
        assert taken.outputs.grad_fn is not None
        for node in _ancestors_first(taken.outputs.grad_fn):
            made_of = [before for before, _ in node.next_functions if before is not None and before in self.before]
            if made_of or node in self.uses:
                self.nodes.append(node)
                self.before[node] = made_of
        self.number = {node: number for number, node in enumerate(self.nodes)}
        everything = followers(taken.outputs)
        self.after = {node: [one for one in everything.get(node, ()) if one in self.number] for node in self.nodes}
        self.above: dict[Node, int] = {}
        for node in self.nodes:
            self.above[node] = self.bit(node)
            for one in self.before[node]:
                self.above[node] |= self.above[one]
        self.below: dict[Node, int] = {}
        for node in reversed(self.nodes):
            self.below[node] = self.bit(node)
            for one in self.after[node]:
                self.below[node] |= self.below[one]
        self.weighing = sum(self.bit(node) for node in self.nodes if self.multiplies(node))

    def bit(self, node: Node) -> int:
        """The bit of a node."""
        return 1 << self.number[node]

    def between(self, start: Node, end: Node) -> int:
        """Bits of the nodes on the ways from one to another, the first left out."""
        return self.below[start] & self.above[end] & ~self.bit(start)

    def in_bits(self, bits: int) -> Iterator[Node]:
        """The nodes of some bits, ancestors first."""
        while bits:
            lowest = bits & -bits
            yield self.nodes[lowest.bit_length() - 1]
            bits ^= lowest

    def multiplies(self, node: Node) -> bool:
        """Whether a node multiplies features with a matrix of parameters."""
        return any(not isinstance(part, Entrywise) for use in self.uses.get(node, ()) for part in parts(use))

    def names(self, node: Node) -> set[str]:
        """The parameters that meet features in a node."""
        return {name for use in self.uses.get(node, ()) for names in use.weights.values() for name in names}


@dataclass(frozen=True, eq=False)
class ResidualSum:
    """A sum h + b(h).

    Attributes:
        node: the sum.
        stream: its term h.
        branch: its term b(h).
        fork: what of the stream the branch begins at.
        is_projected: whether the stream is projected on its way from there.
    """

    node: Node
    stream: Node
    branch: Node
    fork: Node
    is_projected: bool


def residual_sums(features: Features) -> list[list[ResidualSum]]:
    """The residual sums of every stream, in order."""
    found: dict[Node, ResidualSum] = {}
    for node in features.nodes:
        terms = list(dict.fromkeys(features.before[node]))
        if kind(node) == "Add" and len(terms) == 2:
            one = _plain(features, node, *terms) or _projected(features, node, *terms)
            if one is not None:
                found[node] = one
    streams: dict[Node, set[Node]] = {}
    for node, one in found.items():
        stream = {node}
        for earlier in _reached(features, [one.stream], found):
            stream |= streams[earlier]
        for member in stream:
            streams[member] = stream
    together = {id(stream): sorted(stream, key=features.number.__getitem__) for stream in streams.values()}
    every = [[found[node] for node in stream] for stream in together.values()]
    return [stream for stream in every if not all(one.is_projected for one in stream)]


def _plain(features: Features, node: Node, left: Node, right: Node) -> ResidualSum | None:
    ways = [(left, right), (right, left)]
    for stream, branch in ways:
        if features.between(stream, branch) & features.weighing:
            return ResidualSum(node, stream, branch, stream, is_projected=False)
    for stream, branch in ways:
        forks = [term for term in _terms(features, stream) if features.between(term, branch) & features.weighing]
        if forks:
            return ResidualSum(node, stream, branch, max(forks, key=features.number.__getitem__), is_projected=False)
    return None


def _terms(features: Features, node: Node) -> set[Node]:
    """The terms of a sum of sums, and the sums."""
    ahead, seen = [node], {node}
    while ahead:
        one = ahead.pop()
        if kind(one) == "Add" or kind(one) in RESHAPES:
            news = [term for term in features.before[one] if term not in seen]
            seen.update(news)
            ahead += news
    return seen if len(seen) > 1 else set()


def _projected(features: Features, node: Node, left: Node, right: Node) -> ResidualSum | None:
    ways = [(left, right), (right, left)]
    forks = [_linear_way(features, skip, other) for skip, other in ways]
    linear = [fork is not None for fork in forks]
    if sum(linear) != 1:
        return None
    (skip, other), fork = next((way, fork) for way, fork in zip(ways, forks, strict=True) if fork is not None)
    way = features.between(fork, other)
    if not way & features.weighing or all(_is_linear(features, one) for one in features.in_bits(way)):
        return None
    return ResidualSum(node, skip, other, fork, is_projected=True)


def _linear_way(features: Features, skip: Node, other: Node) -> Node | None:
    """Where a way of linear layers, norms and reshapes begins that another term depends on as well."""
    node = skip
    while not features.between(node, other):
        if node is other or not _is_linear(features, node) or len(features.before[node]) != 1:
            return None
        (node,) = features.before[node]
    return None if node is skip else node


def _is_linear(features: Features, node: Node) -> bool:
    return features.multiplies(node) or is_norm(node) or kind(node) in RESHAPES or kind(node) in PICKS


def _reached(features: Features, starts: Iterable[Node], sums: Iterable[Node]) -> set[Node]:
    """The sums that come first on all ways back from some nodes, these included."""
    ahead, seen, reached = list(starts), set(starts), set()
    stop = set(sums)
    while ahead:
        node = ahead.pop()
        if node in stop:
            reached.add(node)
            continue
        news = [one for one in features.before[node] if one not in seen]
        seen.update(news)
        ahead += news
    return reached


def _ancestors_first(last: Node) -> Iterator[Node]:
    """All nodes that one depends on, and it, in an order in which ancestors come first."""
    done: set[Node] = set()
    stack: list[tuple[Node, bool]] = [(last, False)]
    while stack:
        node, is_left = stack.pop()
        if is_left:
            yield node
        elif node not in done:
            done.add(node)
            stack.append((node, True))
            stack += [(one, False) for one, _ in node.next_functions if one is not None and one not in done]
