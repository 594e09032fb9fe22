"""Questions to the graph that autograd keeps of a forward pass: what depends on what, and what comes next."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

from torch import Tensor
from torch.autograd.graph import Node

RESHAPES = frozenset(
    re.findall(r"\w+", "View UnsafeView Reshape Transpose T Permute Squeeze Unsqueeze Clone Alias Expand")
)
"""What only arranges numbers anew."""

PICKS = frozenset(
    re.findall(
        r"\w+",
        "Slice Select Narrow Index IndexSelect Gather Roll Flip Unfold Split SplitWithSizes Unbind ConstantPadNd Neg ToCopy "
        "AsStrided Repeat Mean Sum AvgPool1D AvgPool2D AvgPool3D AdaptiveAvgPool2D AdaptiveAvgPool3D UpsampleNearest2D "
        "UpsampleBilinear2D ReflectionPad2D NativeDropout PixelShuffle",
    )
)
"""What is linear in the one tensor that it takes, beside reshaping."""

_NORMS = frozenset(re.findall(r"\w+", "NativeLayerNorm NativeBatchNorm CudnnBatchNorm NativeGroupNorm FusedRmsNorm"))

_CARRIERS = RESHAPES | _NORMS
"""What leaves the features of a layer its features: reshaping and norms."""

_PASSED_OVER = frozenset({"Mm", "Addmm", "Bmm", "Baddbmm", "Mv", "Convolution", "Add"})
"""What is no activation: products and sums with other features."""

_ACTIVATIONS = {
    **{"Relu": "relu", "Gelu": "gelu", "Silu": "silu", "Mish": "mish", "Tanh": "tanh", "Sigmoid": "sigmoid"},
    **{
        "LeakyRelu": "leaky_relu",
        "Erf": "erf",
        "Sin": "sin",
        "Elu": "elu",
        "Softplus": "softplus",
        "Hardtanh": "relu6",
    },
}


def kind(node: Node) -> str:
    """What a node is the derivative of, in torch's words: ``"Relu"``, ``"Addmm"``."""
    name = node.name().rpartition("::")[2]
    return name.partition("Backward")[0]


def is_norm(node: Node) -> bool:
    """Whether a node is that of a norm layer."""
    return kind(node) in _NORMS


def ancestors(
    nodes: Iterable[Node],
    *,
    stop: frozenset[Node] | set[Node] = frozenset(),
    sources: Mapping[Node, Iterable[Node]] | None = None,
) -> set[Node]:
    """All nodes that some nodes depend on, themselves left out.

    Args:
        nodes: where to begin.
        stop: nodes behind which nothing is looked at; they are among the result.
        sources: what nodes depend on beside, as derivatives do on what they are derivatives of.
    """
    more = sources or {}
    seen: set[Node] = set()
    ahead = [before for node in nodes for before in (*(one for one, _ in node.next_functions), *more.get(node, ()))]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node not in stop:
            ahead += [*(before for before, _ in node.next_functions), *more.get(node, ())]
    return seen


def followers(outputs: Tensor) -> Mapping[Node, list[Node]]:
    """For every node that the outputs depend on, those that are made of it."""
    assert outputs.grad_fn is not None
    made_of: dict[Node, list[Node]] = defaultdict(list)
    for node in {outputs.grad_fn, *ancestors([outputs.grad_fn])}:
        for before, _ in node.next_functions:
            if before is not None:
                made_of[before].append(node)
    return made_of


def activation_behind(node: Node, follows: Mapping[Node, list[Node]]) -> str | None:
    """The activation that a layer's output meets first, norms, biases and reshapes aside; None for none or several."""
    ahead, found, seen = [node], set(), set()
    while ahead:
        for after in follows.get(ahead.pop(), ()):
            if after in seen:
                continue
            seen.add(after)
            name = kind(after)
            others = [one for one, _ in after.next_functions if one is not None and kind(one) != "AccumulateGrad"]
            if name in _CARRIERS or (name == "Add" and len(others) == 1):
                ahead.append(after)
            elif name not in _PASSED_OVER:
                found.add(_ACTIVATIONS.get(name))
    return found.pop() if len(found) == 1 else None
