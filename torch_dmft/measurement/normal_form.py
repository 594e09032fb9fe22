r"""The one form in which every layer is measured: rows of features, ``[sample, position, feature]``.

A linear layer on ``(sample, token, feature)``, a convolution on ``(sample, channel, height, width)`` and an embedding
of ``(sample, token)`` are the same thing: for each sample mu and position a, an input vector x_{mu a} and an output
vector h_{mu a} = W x_{mu a} + b.

================  ===============================  ==================================================================
kind              input vector x_{mu a}            for the NTK
================  ===============================  ==================================================================
linear            the last axis                    the same
conv              the channels at position a       the patch under the kernel at output position a, per group
embedding         one-hot token, so that x.x' is   the same
                  1 for equal tokens, else 0
================  ===============================  ==================================================================

The gradients of output c are ``[sample, output, position, feature]``: df_c(mu)/dh_{mu a}. The kernels of a layer are,
with n_in and n_out its features and A the number of positions,

.. math::
    \Phi_{\mu\alpha} = \frac{1}{A\, n_{in}} \sum_a x_{\mu a} \cdot x_{\alpha a}, \qquad
    G_{\mu c, \alpha c'} = \frac{1}{A\, n_{out}} \sum_a g_{\mu c a} \cdot g_{\alpha c' a}, \qquad
    g_{\mu c a} = \gamma_0\, n_{out}\, A\, \frac{\partial f_c(\mu)}{\partial h_{\mu a}}.

g is the derivative with respect to the *average* over positions, so that both are O(1) in the width and in the number
of positions of a pooled model. At A = 1 they are Phi^l and G^{l+1} of the dense chain. Embeddings have n_in = 1 (one
token is on at a time); at the readout g = A df_c/dh and G is not divided by n_out, so that it is the identity over
outputs. The kernels of a layer that is used several times are averaged over its uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property, reduce
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from torch_dmft.architecture import Layer, Role
from torch_dmft.core.torch_private import ConvBase, padding_twice


class Layout(Enum):
    """Where the samples are in a tensor inside the network."""

    FIRST = "samples on the first axis, several consecutive rows per sample if there are more rows than samples"
    SECOND = "samples on the second axis, as in sequence-first models"
    SHARED = "one tensor for all samples, such as position embeddings"


def per_sample(tensor: Tensor, layout: Layout, samples: int) -> Tensor:
    """The tensor as ``(sample, row, ...)``; a shared one as ``(1, row, ...)``. Half precision is raised to float32.

    Gram matrices are sums over at most a few thousand neurons, for which float32 accumulation is safe.
    """
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    match layout:
        case Layout.FIRST:
            return tensor.reshape(samples, len(tensor) // samples, *tensor.shape[1:])
        case Layout.SECOND:
            return tensor.transpose(0, 1)
        case Layout.SHARED:
            return tensor.unsqueeze(0)


def positions(rows: Tensor, layer: Layer) -> Tensor:
    """``(sample, row, ...)`` in the layer's own axis order -> ``(sample, position, feature)``."""
    if layer.kind == "conv":
        rows = rows.movedim(2, -1)
    return rows.reshape(len(rows), -1, rows.shape[-1])


def vocabulary(layer: Layer, inputs: Sequence[Tensor]) -> Tensor | None:
    """The sorted tokens that an embedding meets over all its uses; None for other layers."""
    return torch.unique(torch.cat([tokens.flatten() for tokens in inputs])) if layer.kind == "embedding" else None


def input_vectors(inputs: Tensor, layer: Layer, layout: Layout, samples: int, tokens: Tensor | None) -> Tensor:
    """The input vectors x of one use: ``(sample, position, feature)``; bool for an embedding of ``tokens``."""
    rows = per_sample(inputs, layout, samples)
    if tokens is None:
        return positions(rows, layer)
    return rows.flatten(1).unsqueeze(-1) == tokens


def patches(
    inputs: Tensor, layer: Layer, module: nn.Module, layout: Layout, samples: int, tokens: Tensor | None
) -> Tensor:
    """The vectors that multiply the weight: ``(sample, output position, group, feature)``."""
    if layer.kind != "conv":
        x = input_vectors(inputs, layer, layout, samples, tokens)
        padding = getattr(module, "padding_idx", None)
        if tokens is not None and padding is not None:  # the row of the padding token is never trained
            x = x & (tokens != padding)
        return x.unsqueeze(2)
    conv = cast(ConvBase, module)
    rows = _unfold(inputs, conv)
    rows = rows.unflatten(1, (conv.groups, -1)).permute(0, 3, 1, 2)  # (batch, position, group, channel and tap)
    return per_sample(rows, layout, samples).flatten(1, 2)


def _unfold(inputs: Tensor, conv: ConvBase) -> Tensor:
    """Patches of a convolution of any dimension: ``(batch, channel and tap, position)``; ``F.unfold`` knows two."""
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    x = F.pad(inputs, padding_twice(conv), mode=mode)
    dims = len(conv.kernel_size)
    for axis, (taps, stride, dilation) in enumerate(zip(conv.kernel_size, conv.stride, conv.dilation, strict=True)):
        x = x.unfold(2 + axis, dilation * (taps - 1) + 1, stride)[..., ::dilation]
    # now (batch, channel, positions..., taps...)
    x = x.movedim(tuple(range(2, 2 + dims)), tuple(range(-dims, 0)))
    return x.flatten(1, 1 + dims).flatten(2)


@dataclass(frozen=True, eq=False)
class Stream:
    """What flowed through one layer, in normal form, one entry per use.

    Attributes:
        layer: the layer.
        gamma0: effective feature-learning strength.
        inputs: x, ``(sample, position, feature)``; ``(1, position, feature)`` if shared by all samples.
        outputs: h, ``(sample, position, neuron)``, or shared likewise.
        gradients: df_c/dh, ``(sample, output, position, neuron)``.
    """

    layer: Layer
    gamma0: float
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    gradients: tuple[Tensor, ...]

    @cached_property
    def input_products(self) -> tuple[Tensor, ...]:
        """Of each use the inner products of x, summed over positions: ``(sample, sample)``, or ``(1, 1)`` if x is shared."""
        return tuple(_inner_products(x, x) for x in self.inputs)

    @cached_property
    def gradient_products(self) -> tuple[Tensor, ...]:
        """Of each use the inner products of df/dh, summed over positions: rows are pairs ``(sample, output)``."""
        return tuple(_inner_products(g.flatten(0, 1), g.flatten(0, 1)) for g in self.gradients)

    @property
    def is_plain(self) -> bool:
        """Whether each sample is one vector that is multiplied once, so that the NTK is a product of the two above."""
        has_one = len(self.inputs) == 1 and self.inputs[0].shape[1] == self.gradients[0].shape[2] == 1
        return has_one and self.layer.kind == "linear"

    @property
    def gradient_scale(self) -> float:
        """gamma0 n_out, or 1 at the readout: g = gradient_scale * A * df/dh, f being h times a tied one's multiplier.

        Where h' = c h stands in the forward pass, as parameters hold a number c (``Layer.fold``), df/dh is c df/dh'.
        """
        if self.layer.multiplier is not None:
            return 1 / self.layer.multiplier.number
        return 1.0 if self.layer.role is Role.READOUT else self.gamma0 * self.layer.out_features * self.layer.fold

    def preactivations(self) -> Float[Tensor, "sample neuron"]:
        """The field h of all positions and uses side by side."""
        samples, fold = len(self.gradients[0]), self.layer.fold
        fields = [h.flatten(1).expand(samples, -1) for h in self.outputs]
        return _side_by_side(fields if fold == 1.0 else [h / fold for h in fields])

    def gradient_fields(self) -> Float[Tensor, "sample output neuron"]:
        """The field g of all positions and uses side by side."""
        return _side_by_side([self.gradient_scale * g.shape[2] * g.flatten(2) for g in self.gradients])


def forward_gram(left: Stream, right: Stream) -> Float[Tensor, "sample sample"]:
    """Phi between the rows of two streams of one layer (equal, or at two times)."""
    features = (1 if left.layer.kind == "embedding" else left.layer.in_features) * left.layer.fold_in**2
    samples = len(left.gradients[0])
    products = left.input_products if left is right else map(_inner_products, left.inputs, right.inputs)
    return _mean(
        [
            (product / (x.shape[1] * features)).expand(samples, samples)
            for product, x in zip(products, left.inputs, strict=True)
        ]
    )


def backward_gram(left: Stream, right: Stream) -> Float[Tensor, "sample output sample output"]:
    """G between the rows of two streams of one layer (equal, or at two times)."""
    rows = left.gradients[0].shape[:2]
    features = 1 if left.layer.role is Role.READOUT else left.layer.out_features
    if left is right:
        products = left.gradient_products
    else:
        pairs = zip(left.gradients, right.gradients, strict=True)
        products = tuple(_inner_products(x.flatten(0, 1), y.flatten(0, 1)) for x, y in pairs)
    grams = [product * (g.shape[2] / features) for product, g in zip(products, left.gradients, strict=True)]
    return (_mean(grams) * (left.gradient_scale * right.gradient_scale)).reshape(*rows, *rows)


def averaged_gram(left: Stream, right: Stream) -> Float[Tensor, "sample sample"]:
    """``backward_gram`` averaged over equal outputs, one output after the other."""
    outputs = left.gradients[0].shape[1]

    def one(stream: Stream, c: int) -> Stream:
        return replace(stream, gradients=tuple(g[:, c : c + 1] for g in stream.gradients))

    grams = (backward_gram(one(left, c), one(right, c))[:, 0, :, 0] for c in range(outputs))
    return reduce(torch.add, grams) / outputs


def forward_vectors(stream: Stream) -> Float[Tensor, "sample entry"]:
    """The vectors whose inner products are Phi: x of all uses and positions end to end, each over the root of its number."""
    features = (1 if stream.layer.kind == "embedding" else stream.layer.in_features) * stream.layer.fold_in**2
    samples, uses = len(stream.gradients[0]), len(stream.inputs)
    parts = [(x / (x.shape[1] * features * uses) ** 0.5).flatten(1).expand(samples, -1) for x in stream.inputs]
    return _side_by_side(parts)


def backward_vectors(stream: Stream) -> Float[Tensor, "sample output entry"]:
    """The vectors whose inner products are G, likewise."""
    features = 1 if stream.layer.role is Role.READOUT else stream.layer.out_features
    uses, scale = len(stream.gradients), stream.gradient_scale
    return _side_by_side([(g * (scale * (g.shape[2] / features / uses) ** 0.5)).flatten(2) for g in stream.gradients])


def _inner_products(x: Float[Tensor, "row position feature"], y: Float[Tensor, "other position feature"]) -> Tensor:
    """The sums over positions and features, ``(row, other)``; features that lie apart in memory are not moved together."""
    if all(one.stride(2) > one.stride(1) for one in (x, y)):
        x, y = x.mT, y.mT
    return x.flatten(1) @ y.flatten(1).T


def _side_by_side(fields: list[Tensor]) -> Tensor:
    return fields[0] if len(fields) == 1 else torch.cat(fields, dim=-1)


def _mean(grams: list[Tensor]) -> Tensor:
    return grams[0] if len(grams) == 1 else torch.stack(grams).mean(0)
