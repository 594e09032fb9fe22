r"""What one layer adds to the neural tangent kernel, without forming the network's Jacobian.

The gradient of f_c(mu) by a weight is a sum of outer products over positions, so its Gram matrix factorises:

.. math::
    \sum_{ij} \partial_{W_{ij}} f_c(\mu)\, \partial_{W_{ij}} f_{c'}(\alpha)
    = \sum_{ab} (g_{\mu c a} \cdot g_{\alpha c' b})\, (x_{\mu a} \cdot x_{\alpha b}), \quad g = \partial f / \partial h.

With one position this is the elementwise product of two Gram matrices. With many it is cheaper either so or through the
per-sample gradients themselves; the operation counts decide, and the latter are formed in blocks of neurons.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

_BLOCK = 2**21
"""Largest number of entries of per-sample gradients that are there at once, 16 MB in float64; larger ones are no faster."""
_PAIRS = 2**24
"""Largest number of pairs of positions whose inner products are formed."""


def weight_ntk(
    x: Float[Tensor, "rows position group feature"], g: Float[Tensor, "sample output position neuron"]
) -> Float[Tensor, "sample output sample output"]:
    """Gram matrix of the gradients by a weight matrix.

    Args:
        x: vectors that multiply the weight; ``rows`` is the number of samples, or 1 if all samples share them.
        g: df_c/dh, neurons ordered by group.
    """
    samples, outputs, count, _ = g.shape
    x = x.expand(samples, -1, -1, -1)
    total = g.new_zeros(samples * outputs, samples * outputs)
    for x_group, g_group in zip(x.unbind(2), g.chunk(x.shape[2], dim=3), strict=True):
        if is_cheaper_by_positions(samples, outputs, count, x_group.shape[-1], g_group.shape[-1]):
            total += _by_positions(x_group, g_group)
        else:
            total += _by_gradients(x_group, g_group)
    return total.reshape(samples, outputs, samples, outputs)


def tied_ntk(
    x: Float[Tensor, "rows position 1 token"],
    g: Float[Tensor, "sample output position neuron"],
    y: Float[Tensor, "others place 1 neuron"],
    k: Float[Tensor, "sample output place token"],
) -> Float[Tensor, "sample output sample output"]:
    r"""What the gradients by two uses of one weight have in common: an embedding's and those of a readout by its transpose.

    The gradient of f_c(mu) by the row of token v is sum_a x_{mu a v} g_{mu c a} by the first use and
    sum_b k_{mu c b v} y_{mu b} by the second, so that beside the Gram matrices of each there is

    .. math:: C + C^T, \qquad C_{\mu c, \alpha c'} = \sum_{ab} (g_{\mu c a} \cdot y_{\alpha b})\,
        (x_{\mu a} \cdot k_{\alpha c' b}).

    Args:
        x: tokens that are looked up, one-hot; ``rows`` is the number of samples, or 1 if all samples share them.
        g: gradients of the outputs by the rows found.
        y: what is read out; ``others`` likewise.
        k: gradients of the outputs by what these tokens read out.
    """
    samples, outputs = g.shape[:2]
    x, y = (one.expand(samples, -1, -1, -1).squeeze(2) for one in (x, y))
    rows = []
    for tokens, gradient in zip(x, g, strict=True):  # one sample at a time, whose pairs of positions are there at once
        meets = torch.einsum("can,pbn->capb", gradient, y)
        reads = torch.einsum("av,pdbv->apdb", tokens, k)
        rows.append(torch.einsum("capb,apdb->cpd", meets, reads))
    one = torch.stack(rows).reshape(samples * outputs, samples * outputs)
    return (one + one.T).reshape(samples, outputs, samples, outputs)


@dataclass(frozen=True, eq=False)
class Slide:
    """One use of a convolution.

    Attributes:
        x: inputs with their border, ``(sample, channel, pixel...)``, or one row that all samples share.
        g: df_c/dh, ``(sample, output, neuron, pixel...)``.
        stride: by how many pixels the kernel moves.
        dilation: distances of the kernel's taps.
    """

    x: Tensor
    g: Tensor
    stride: Sequence[int]
    dilation: Sequence[int]


class _Offsets:
    """The inputs that a tap of the kernel meets, for a use of a convolution, as a piece of memory.

    Every s-th pixel, from one of the first s on, is an image of its own, over which the tap moves by one pixel; in memory a
    shift is an offset. With the gradients filled up to the width of these images a row goes on where the last one ended.
    """

    def __init__(self, use: Slide, dims: int) -> None:
        self._stride, self._dilation = use.stride, use.dilation
        sizes, pixels = use.g.shape[-dims:], use.x.shape[-dims:]
        wide = [-(-size // s) for size, s in zip(pixels, use.stride, strict=True)]
        behind = [
            w * s - size for w, s, size in zip(wide, use.stride, pixels, strict=True)
        ]  # so that all images are alike
        self._x = _filled(use.x.to(use.g.dtype), behind)
        missing = [w - n for n, w in zip(sizes, wide, strict=True)]
        missing[0] = 0  # the first axis needs no border: nothing comes behind it
        self._steps = [math.prod(wide[axis + 1 :]) for axis in range(dims)]
        self._length = 1 + sum((n - 1) * step for n, step in zip(sizes, self._steps, strict=True))
        self.g = _filled(use.g, missing).flatten(-dims)[..., : self._length]
        self._images: dict[tuple[int, ...], Tensor] = {}

    def at(self, tap: Sequence[int]) -> Float[Tensor, "rows channel position"]:
        """What the tap meets at every position of ``g``; anything where ``g`` is filled up with zeros."""
        places = [i * d for i, d in zip(tap, self._dilation, strict=True)]
        first = tuple(place % s for place, s in zip(places, self._stride, strict=True))
        if first not in self._images:
            some: Any = (..., *(slice(p, None, s) for p, s in zip(first, self._stride, strict=True)))
            self._images[first] = self._x[some].flatten(2)
        shifts = [place // s for place, s in zip(places, self._stride, strict=True)]
        offset = sum(shift * step for shift, step in zip(shifts, self._steps, strict=True))
        return self._images[first][..., offset : offset + self._length]


def _filled(images: Tensor, missing: Sequence[int]) -> Tensor:
    """Images with so many zeros behind every axis of pixels."""
    return nn.functional.pad(images, [p for one in reversed(missing) for p in (0, one)]) if any(missing) else images


def sliding_ntk(
    uses: Sequence[Slide], *, taps: Sequence[int], groups: int
) -> Float[Tensor, "sample output sample output"]:
    """``weight_ntk`` of a convolution, without writing out what lies under its kernel.

    The gradient by one tap of the kernel is a product of g with the inputs, shifted.

    Args:
        uses: of one kernel.
        taps: sizes of the kernel.
        groups: of channels that do not meet.
    """
    dims, (samples, outputs, neurons) = len(taps), uses[0].g.shape[:3]
    rows, total = samples * outputs, uses[0].g.new_zeros(samples * outputs, samples * outputs)
    block = max(1, _BLOCK * groups // (rows * uses[0].x.shape[1]))
    flat = [_Offsets(use, dims) for use in uses]
    for tap in itertools.product(*map(range, taps)):
        for group, start in itertools.product(range(groups), range(0, neurons // groups, block)):
            some = slice(
                group * neurons // groups + start, group * neurons // groups + min(start + block, neurons // groups)
            )
            parts = []
            for use in flat:
                meets = use.at(tap).chunk(groups, 1)[group].expand(samples, -1, -1)
                parts.append(use.g[:, :, some].flatten(1, 2) @ meets.mT)
            jacobian = (parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)).reshape(rows, -1)
            total += jacobian @ jacobian.T
    return total.reshape(samples, outputs, samples, outputs)


def bias_ntk(g: Float[Tensor, "sample output position neuron"]) -> Float[Tensor, "sample output sample output"]:
    """Gram matrix of the gradients by a bias, the sum of g over positions."""
    return gram(g.sum(2))


def gram(jacobian: Tensor) -> Float[Tensor, "sample output sample output"]:
    """J J^T of a Jacobian ``(sample, output, ...)``."""
    rows = jacobian.shape[:2]
    flat = jacobian.reshape(rows.numel(), -1)
    return (flat @ flat.T).reshape(*rows, *rows)


def owner_jacobian(
    owner: nn.Module,
    inputs: Float[Tensor, "rows ..."],
    gradients: Float[Tensor, "sample output ..."],
) -> dict[str, Float[Tensor, "sample output ..."]]:
    """Per-sample gradients by the own parameters of one module (a norm layer), through that module alone.

    Args:
        owner: the module.
        inputs: what went in, per sample; one row if shared by all samples.
        gradients: df_c/d(output), per sample and output.
    """
    parameters = {name: value.detach().to(inputs.dtype) for name, value in owner.named_parameters(recurse=False)}

    def pull_back(sample: Tensor, cotangents: Tensor) -> dict[str, Tensor]:
        backward = vjp(lambda values: functional_call(owner, values, (sample,)), parameters)[1]
        jacobian: dict[str, Tensor] = vmap(backward)(cotangents)[0]
        return jacobian

    shared = len(inputs) == 1 and len(gradients) > 1
    if shared:
        return vmap(pull_back, in_dims=(None, 0))(inputs[0], gradients)
    return vmap(pull_back)(inputs, gradients)


def is_cheaper_by_positions(samples: int, outputs: int, count: int, features: int, neurons: int) -> bool:
    """Whether gradients are better avoided than written out, for so many output positions and inputs of a neuron."""
    by_positions = (samples * count) ** 2 * (features + outputs**2 * (neurons + 2))
    by_gradients = samples * outputs * features * neurons * (count + samples * outputs)
    return (samples * outputs * count) ** 2 <= _PAIRS and by_positions <= by_gradients


_MANY_CHANNELS, _MANY_ENTRIES = 8, 2**18
"""From how many channels on, and entries under the kernel at all positions, a product for every tap is the faster way."""


def is_cheaper_by_taps(samples: int, count: int, channels: int, taps: int) -> bool:
    """Whether a convolution's gradients are better taken tap by tap than from what lies under the kernel, written out."""
    entries = samples * count * channels * taps
    return entries > _BLOCK or (entries >= _MANY_ENTRIES and channels >= _MANY_CHANNELS)


def _by_positions(x: Tensor, g: Tensor) -> Tensor:
    samples, outputs, count, _ = g.shape
    x_flat, g_flat = x.flatten(0, 1), g.flatten(0, 2)
    x_gram = (x_flat @ x_flat.T).reshape(samples, 1, count, samples, 1, count)
    g_gram = (g_flat @ g_flat.T).reshape(samples, outputs, count, samples, outputs, count)
    rows = samples * outputs
    return (g_gram * x_gram).sum((2, 5)).reshape(rows, rows)


def _by_gradients(x: Tensor, g: Tensor) -> Tensor:
    samples, outputs, _, neurons = g.shape
    rows = samples * outputs
    block = max(1, _BLOCK // (rows * x.shape[-1]))
    total = g.new_zeros(rows, rows)
    for start in range(0, neurons, block):
        jacobian = torch.einsum("scan,saf->scnf", g[..., start : start + block], x).reshape(rows, -1)
        total += jacobian @ jacobian.T
    return total
