r"""What each operator does with its weight, in one form for all of them.

A **product** is h_{mu a} = W x_{mu a} with positions a, whatever operator takes it: ``addmm`` of rows, ``bmm`` of experts
(in groups), a convolution (x is the patch), an embedding (x is the one-hot token). A **sum** adds the weight, a **scaling**
multiplies by it entry by entry, and everything else is **opaque**: its derivative is taken through that operator alone.

All tensors here are parts of single samples, stacked: ``(sample, ...)`` with behind it the shape that the tensor has when
the model is given that sample alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.nn import functional as F

from torch_dmft.uses.products import Slide, is_cheaper_by_positions, is_cheaper_by_taps
from torch_dmft.uses.views import geometry
from torch_dmft.uses.watch import Slot, Use

_FEW_GROUPS = 8
"""Groups of a convolution up to which gradients are taken tap by tap; depthwise ones have hundreds."""


@dataclass(frozen=True, eq=False)
class Product:
    """A product with a weight.

    Attributes:
        use: the operator.
        slot: where the weight is.
        data: where the vectors that it multiplies are.
        kind: ``"linear"``, ``"conv"`` or ``"embedding"``.
        columns: whether the weight stands on the left and multiplies columns.
    """

    use: Use
    slot: Slot
    data: Slot
    kind: str
    columns: bool = False

    @property
    def weight(self) -> Tensor:
        """The matrix."""
        return self.use.argument(self.slot)

    @property
    def names(self) -> frozenset[str]:
        """The parameters it is made of."""
        return self.use.weights[self.slot]

    def features(self) -> tuple[int, int, int]:
        """Features of the input, features of the output, and fan-in."""
        shape = self.weight.shape
        if self.kind == "embedding":
            return shape[0], shape[1], 1
        if self.kind == "conv":
            groups, taps = self._groups, math.prod(shape[2:])
            if self._is_transposed:
                return shape[0], shape[1] * groups, taps * shape[0] // groups
            return shape[1] * groups, shape[0], taps * shape[1]
        if len(shape) == 1:
            return shape[0], 1, shape[0]
        into, out = (shape[-1], shape[-2]) if self.columns else (shape[-2], shape[-1])
        batches = 1 if len(shape) == 2 or self._is_one_for_all else shape[0]
        return into * batches, out * batches, into

    def matrix(self) -> Tensor:
        """The weight without axes along which it is merely repeated, as the operator sees it."""
        weight = self.weight
        return weight[0] if weight.ndim == 3 and self.kind == "linear" and self._is_one_for_all else weight

    def origin(self) -> Tensor | GradientEdge:
        """Where in the graph ``matrix()`` was made."""
        return self.use.origins.get(self.slot, self.matrix())

    def geometry(self) -> tuple[object, ...]:
        """Which entries of its storage the weight has, and what they are: equal for uses that can be pooled."""
        weight = self.matrix()
        if self.columns:
            weight = weight.transpose(-1, -2)
        kind = (self.kind, self._is_transposed, self._groups) if self.kind == "conv" else (self.kind, self.padding)
        return kind, *geometry(weight)

    def input_vectors(self, x: Tensor, border: Sequence[int] = ()) -> Tensor:
        """The vectors of which Phi is taken: ``(sample, position, feature)``; tokens ``(sample, position)``.

        Args:
            x: as the operator was given it, per sample.
            border: positions to leave out on both sides of every axis, last axis first: copies of those inside.
        """
        if self.kind == "embedding":
            return x.flatten(1)
        if self.kind == "conv":
            x = F.pad(x, [-width for width in border]) if border else x
            return _channels_last(x, self._dims)
        return self._rows(x).flatten(2)

    def output_vectors(self, h: Tensor) -> Tensor:
        """``(sample, position, neuron)`` of outputs or of gradients by them."""
        if self.kind == "embedding":
            return h.flatten(1, -2)
        if self.kind == "conv":
            return _channels_last(h, self._dims)
        if self.weight.ndim == 1:
            return h.reshape(len(h), -1, 1)
        return self._rows(h).flatten(2)

    def factors(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Whose outer products are the gradient by the weight.

        Args:
            x: as the operator was given it, per sample.
            g: df/d(output), ``(sample, output, ...)``.

        Returns:
            ``(sample, position, group, feature)`` and ``(sample, output, position, group and neuron)``; tokens instead of
            features for an embedding.
        """
        if self.kind == "conv":
            return self._convolution(x, g)
        flat = self.output_vectors(g.flatten(0, 1)).unflatten(0, g.shape[:2])
        if self.kind == "embedding":
            return self.input_vectors(x)[:, :, None, None], flat
        return self._rows(x), flat

    def slides(self, x: Tensor, g: Tensor) -> bool:
        """Whether ``products.sliding_ntk`` is the way to the gradients of a convolution.

        Args:
            x: as the operator was given it, per sample.
            g: df/d(output), ``(sample, output, ...)``.
        """
        if self.kind != "conv" or self._is_transposed:
            return False
        if self._groups > _FEW_GROUPS:  # each is a product of its own for every tap
            return False
        dims, groups, shape = self._dims, self._groups, self.weight.shape
        is_one = math.prod(x.shape[1 : -dims - 1]) == math.prod(g.shape[2 : -dims - 1]) == 1  # image per sample
        count, features = math.prod(g.shape[-dims:]), math.prod(shape[1:])
        return (
            is_one
            and is_cheaper_by_taps(len(x), count, shape[1], math.prod(shape[2:]))
            and not is_cheaper_by_positions(len(g), g.shape[1], count, features, shape[0] // groups)
        )

    def slide(self, x: Tensor, g: Tensor) -> Slide:
        """What ``products.sliding_ntk`` takes of this use."""
        dims = self._dims
        stride, padding, dilation = self.use.args[3:6]
        padded = F.pad(x, [p for one in reversed(padding) for p in (one, one)])
        x, g = padded.reshape(len(x), *padded.shape[-dims - 1 :]), g.reshape(*g.shape[:2], *g.shape[-dims - 1 :])
        return Slide(x, g, stride, dilation)

    @property
    def kernel(self) -> dict[str, Any]:
        """Taps and groups of a convolution."""
        return {"taps": self.weight.shape[2:], "groups": self._groups}

    def gradient(self, x: Tensor, g: Tensor) -> Tensor:
        """The gradient by ``matrix()``, written out: ``(sample, output, *matrix)``."""
        if self.kind == "embedding":
            tokens = self.input_vectors(x).expand(len(g), -1)
            kept = g.flatten(2, -2) * (tokens != self.padding)[:, None, :, None]
            found = g.new_zeros(*g.shape[:2], *self.weight.shape)
            index = tokens[:, None, :, None].expand_as(kept).clamp(min=0)
            return found.scatter_add_(2, index, kept)
        vectors, pulled = self.factors(x, g)
        groups = vectors.shape[2]
        pulled = pulled.unflatten(-1, (groups, -1))
        found = torch.einsum("sapi,scapo->scpio", vectors.expand(len(g), -1, -1, -1), pulled)
        weight = self.matrix()
        if self.kind == "conv":
            if self._is_transposed:  # (group, in, out and tap) -> (group and in, out, taps)
                return found.flatten(2, 3).reshape(*g.shape[:2], *weight.shape)
            return found.transpose(-1, -2).flatten(2, 3).reshape(*g.shape[:2], *weight.shape)
        if self.columns:
            found = found.transpose(-1, -2)
        return found.reshape(*g.shape[:2], *weight.shape)

    @property
    def padding(self) -> int:
        """The token of an embedding that is never trained; -1 if there is none."""
        return int(self.use.args[2]) if self.kind == "embedding" and len(self.use.args) > 2 else -1

    @property
    def _is_one_for_all(self) -> bool:
        return self.weight.shape[0] == 1 or self.weight.stride(0) == 0

    def _rows(self, x: Tensor) -> Tensor:
        """Vectors of a matrix product: ``(sample, position, group, feature)``."""
        if x.ndim == 2:
            return x[:, None, None, :]
        if self.columns:
            x = x.transpose(-1, -2)
        if x.ndim == 3:
            return x.unsqueeze(2)
        if self._is_one_for_all or x.shape[1] == 1:
            return x.flatten(1, 2).unsqueeze(2)
        return x.transpose(1, 2)

    # Convolutions: (input, weight, bias, stride, padding, dilation, transposed, output padding, groups)

    @property
    def _dims(self) -> int:
        return self.weight.ndim - 2

    @property
    def _groups(self) -> int:
        return int(self.use.args[8])

    @property
    def _is_transposed(self) -> bool:
        return bool(self.use.args[6])

    def _convolution(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        g_flat = g.flatten(0, 1)
        if self._is_transposed:  # every input position meets the outputs under the kernel
            pulled = self._patches(g_flat, x.shape[-self._dims :])
            return _channels_last(x, self._dims).unflatten(-1, (self._groups, -1)), pulled.flatten(2).unflatten(
                0, g.shape[:2]
            )
        pulled = _channels_last(g_flat, self._dims).unflatten(0, g.shape[:2])
        return self._patches(x, g.shape[-self._dims :]), pulled

    def _patches(self, x: Tensor, sizes: torch.Size) -> Tensor:
        """What lies under the kernel at every position: ``(sample, position, group, channel and tap)``."""
        dims, groups = self._dims, self._groups
        stride, padding, dilation = (list(self.use.args[i]) for i in (3, 4, 5))
        rows = len(x)
        x = x.reshape(-1, *x.shape[-dims - 1 :])
        reach = [d * (k - 1) + 1 for d, k in zip(dilation, self.weight.shape[2:], strict=True)]
        needed = [(n - 1) * s + r for n, s, r in zip(sizes, stride, reach, strict=True)]
        # What is missing behind is the output padding of a transposed convolution.
        behind = [n - have - p for n, have, p in zip(needed, x.shape[2:], padding, strict=True)]
        x = F.pad(x, [p for one in reversed([*zip(padding, behind, strict=True)]) for p in one])
        taps = list(self.weight.shape[2:])
        if dims < 3:
            if dims == 1:
                x, taps, stride, dilation = x.unsqueeze(2), [1, *taps], [1, *stride], [1, *dilation]
            x = F.unfold(x, tuple(taps), tuple(dilation), stride=tuple(stride)).unflatten(1, (groups, -1))
            return x.movedim(-1, 1).reshape(rows, -1, groups, x.shape[2])
        for axis in range(dims):
            x = x.unfold(2 + axis, reach[axis], stride[axis])[..., :: dilation[axis]]
        x = x.unflatten(1, (groups, -1))  # (batch, group, channel, positions..., taps...)
        order = [0, *range(3, 3 + dims), 1, 2, *range(3 + dims, 3 + 2 * dims)]
        return x.permute(order).reshape(rows, -1, groups, x.shape[2] * math.prod(taps))


def _channels_last(x: Tensor, dims: int) -> Tensor:
    """``(sample, batch, channel, positions...)`` -> ``(sample, position, channel)``."""
    flat = x.flatten(-dims).movedim(-2, -1)  # a view, as are the rows of samples of one image each
    return flat.squeeze(1) if flat.shape[1] == 1 else flat.flatten(1, -2)


@dataclass(frozen=True, eq=False)
class Entrywise:
    """A weight that is added, or that multiplies entry by entry.

    Attributes:
        use: the operator.
        slot: where the weight is.
        factor: the number that multiplies it.
        by: makes the tensor that it multiplies, shaped like the output; None if it is added.
        by_slot: the argument that multiplies it, if that is an argument.
        on_channels: whether it is one number per channel on axis 1, instead of broadcast from the last axis on.
    """

    use: Use
    slot: Slot
    factor: float = 1.0
    by: Callable[[], Tensor] | None = None
    by_slot: Slot | None = None
    on_channels: bool = False

    def gradient(self, by: Tensor | None, g: Tensor, weight: torch.Size) -> Tensor:
        """The gradient by the weight: ``(sample, output, *weight)``.

        Args:
            by: what it multiplies, per sample.
            g: df/d(output), ``(sample, output, ...)``.
            weight: shape of the weight for one sample alone.
        """
        if by is not None:
            g = g * by.reshape(len(by), 1, *(1,) * (g.ndim - by.ndim - 1), *by.shape[1:])
        g = g * self.factor if self.factor != 1 else g
        shape = (*weight, *(1,) * (g.ndim - 4)) if self.on_channels else tuple(weight)
        shape = (1,) * (g.ndim - 2 - len(shape)) + shape
        axes = [2 + i for i, size in enumerate(shape) if size == 1 and g.shape[2 + i] != 1]
        g = g.sum(axes, keepdim=True) if axes else g
        return g.reshape(*g.shape[:2], *weight)


@dataclass(frozen=True, eq=False)
class Opaque:
    """A weight in an operator that nothing else is known of."""

    use: Use
    slot: Slot

    def pull_back(self, cotangents: list[Tensor]) -> list[Tensor]:
        """Gradients by the weight, of the shape it has, through this operator alone."""
        weight = self.use.argument(self.slot).detach().requires_grad_()
        with torch.enable_grad():
            made = self.use.function(*_with(self.use.args, self.slot, weight * 1), **self.use.kwargs)
            if not isinstance(made, Tensor):
                made = next(one for one in made if isinstance(one, Tensor) and one.requires_grad)
            return [torch.autograd.grad(made, weight, one, retain_graph=True)[0] for one in cotangents]


def _with(args: Sequence[object], slot: Slot, weight: Tensor) -> list[object]:
    """Arguments without their graphs, with another weight."""
    bare = [
        [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in arg]
        if isinstance(arg, tuple | list)
        else arg.detach().clone()
        if isinstance(arg, Tensor)
        else arg
        for arg in args
    ]
    i, j = slot
    if j is None:
        bare[i] = weight
    else:
        bare[i][j] = weight  # type: ignore[index]
    return bare


Part = Product | Entrywise | Opaque
