"""Functions that sum products over an axis: of tokens, or of a width, as the scores of attention do."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from torch_dmft.architecture.axes import SAMPLE, Label
from torch_dmft.architecture.call import Call
from torch_dmft.architecture.operations.outcome import Followers, Outcome, follows
from torch_dmft.architecture.trace import CONSTANT, Sum, Trace

FOLLOWERS: Followers = {}

_BATCH = "ABCDEFGH"
"""Letters of the axes in front, as many as there are, aligned at their end."""


@follows(FOLLOWERS, "matmul mm bmm")
def _matmul(trace: Trace, call: Call) -> Outcome | None:
    left, right = call.argument(0, "input"), call.argument(1, "other", call.kwargs.get("mat2"))
    if left.ndim < 2 or right.ndim < 2:
        return None
    operands = [(left, _ahead(left.ndim - 2) + "ij"), (right, _ahead(right.ndim - 2) + "jk")]
    return _contract(trace, call, operands, _ahead(call.results[0].ndim - 2) + "ik")


@follows(FOLLOWERS, "einsum")
def _einsum(trace: Trace, call: Call) -> Outcome | None:
    equation = call.argument(0, "equation")
    tensors = [leaf for leaf in tree_leaves(call.args[1:]) if isinstance(leaf, Tensor)]
    if not isinstance(equation, str):
        return None
    inputs, _, output = equation.replace(" ", "").partition("->")
    letters = inputs.split(",")
    ahead = [tensor.ndim - len(one.replace("...", "")) for tensor, one in zip(tensors, letters, strict=True)]
    if "->" not in equation:
        counts = Counter(inputs.replace("...", "").replace(",", ""))
        output = "..." + "".join(sorted(letter for letter, count in counts.items() if count == 1))
    # Letters of an equation are never digits, so digits can stand for the axes under the dots.
    dots = "0123456789"
    named = [one.replace("...", dots[10 - count :]) for one, count in zip(letters, ahead, strict=True)]
    return _contract(
        trace, call, list(zip(tensors, named, strict=True)), output.replace("...", dots[10 - max(ahead) :])
    )


@follows(FOLLOWERS, "scaled_dot_product_attention")
def _attention(trace: Trace, call: Call) -> Outcome | None:
    """softmax(scale * q.k + mask) v, whose sum over a head has the factor ``scale``."""
    q, k, v = (call.argument(place, name) for place, name in enumerate(("query", "key", "value")))
    mask = call.argument(3, "attn_mask")
    if call.argument(4, "dropout_p", 0.0):
        return None
    if call.kwargs.get("enable_gqa", False):
        k, v = (_repeated(trace, part, q.shape[-3]) for part in (k, v))
    if mask is not None and trace.value(mask).past_weights:
        return None
    operands = [(q, _ahead(q.ndim - 2) + "id"), (k, _ahead(k.ndim - 2) + "jd"), (v, _ahead(v.ndim - 2) + "je")]
    outcome = _contract(trace, call, operands, _ahead(call.results[0].ndim - 2) + "ie")
    if outcome is None or outcome.sum is None:
        return outcome
    scale = call.kwargs.get("scale")
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    scores = replace(trace.value(q), sum=outcome.sum, factor=factor * trace.value(q).factor * trace.value(k).factor)
    trace.settle(scores)
    return replace(outcome, sum=None, absorbed=(q, k))


def _repeated(trace: Trace, tensor: Tensor, heads: int) -> Tensor:
    """A stand-in for keys or values with each head repeated, so that there are as many as queries have."""
    value = trace.value(tensor)
    if tensor.shape[-3] == heads or value.serial == CONSTANT:
        return tensor
    shape = (*tensor.shape[:-3], heads, *tensor.shape[-2:])
    repeated = torch.empty(shape, device="meta", requires_grad=tensor.requires_grad)
    trace.assign(
        repeated, replace(value, dims=(*value.dims[:-3], trace.axes.derived([value.dims[-3]]), *value.dims[-2:]))
    )
    return repeated


def _ahead(count: int) -> str:
    return _BATCH[len(_BATCH) - count :]


def _contract(trace: Trace, call: Call, operands: Sequence[tuple[Tensor, str]], output: str) -> Outcome | None:
    """Sums over the letters that ``output`` lacks; None if samples are mixed, or widths in a way that cannot be followed."""
    met: dict[str, list[Label]] = {}
    sizes: dict[str, int] = {}
    for tensor, letters in operands:
        for letter, size in zip(letters, tensor.shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    for tensor, letters in operands:
        value = trace.value(tensor)
        if value.serial == CONSTANT:
            continue
        if len(set(letters)) < len(letters):
            return None
        trace.activation(value.weights, None)
        for letter, label, size in zip(letters, value.dims, tensor.shape, strict=True):
            if size == sizes[letter]:
                met.setdefault(letter, []).append(label)
            else:
                trace.axes.fix(label)
    labels = {letter: trace.axes.unified(found) for letter, found in met.items()}
    kept = [labels.get(letter) for letter in output]
    summed = [letter for letter in labels if letter not in output]
    widths = [letter for letter in summed if _is_open(trace, labels[letter])]
    if any(labels[letter] == SAMPLE for letter in summed) or kept.count(SAMPLE) > 1:
        return None
    if sum(_is_open(trace, label) for label in kept) > 1:
        return None
    if len(widths) > 1 or any(len(met[letter]) < 2 for letter in widths):
        return None
    total = None
    for letter in widths:
        label = labels[letter]
        assert label is not None  # a width has one
        total = Sum(label, sizes[letter], call.name, trace.path)
    return Outcome([tuple(kept)], sum=total)


def _is_open(trace: Trace, label: Label) -> bool:
    """Whether an axis may still turn out to be a width."""
    return label not in (None, SAMPLE) and not trace.axes.is_fixed(label)
