"""Convolutions of infinite width: drop-ins for nn.Conv1d, Conv2d and Conv3d between two wide channel axes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.torch_private import ConvBase, padding_twice
from torch_dmft.theory.engine.lazy_layer import LazyLayer, LazySettings
from torch_dmft.theory.gaussian.latents import Population


class InfiniteConv(LazyLayer, ConvBase):
    r"""A hidden convolution between two populations of channels, of any number of dimensions.

    .. math:: y_a = b + \sum_k W_k(t)\, x_{a + k}, \qquad W_k(0)_{ij} \sim N(0, g^2 / (K S_{in})),

    with one lazily sampled matrix W_k for each of the K taps of the kernel. They act on the channel vectors of all pixels,
    so they share the basis Q of these and the basis Q' of their gradients; stride, padding and dilation only say which
    pixel is read where, in coordinates. A pixel costs O(K S k) operations instead of O(K S^2).

    The number of directions k grows with pixels times samples times steps, which for activations with kinks soon meets S:
    then nothing is left to sample and this is an ordinary convolution with S channels (``saturated``).

    Args:
        inputs: population of the input channels.
        outputs: population of the output channels.
        like: a convolution with the kernel size, stride, padding, padding mode and dilation; groups must be 1.
        settings: how the weight is drawn.
        bias: initial bias ``(S_out,)``, or None for no bias.
    """

    def __init__(
        self,
        inputs: Population,
        outputs: Population,
        like: ConvBase,
        settings: LazySettings,
        *,
        bias: Tensor | None = None,
    ) -> None:
        if like.groups != 1:
            raise InvalidInputError(
                "`groups` must be 1: convolutions in groups are not covered by the theory.", got=f"groups={like.groups}"
            )
        geometry: dict[str, Any] = {
            name: getattr(like, name) for name in ("kernel_size", "stride", "padding", "dilation")
        }
        geometry |= {"padding_mode": like.padding_mode, "transposed": False, "output_padding": (0,), "groups": 1}
        super().__init__(inputs.size, outputs.size, bias=False, device="meta", **geometry)
        self.register_parameter("weight", None)
        self.start(inputs, outputs, settings, bias, kernel=self.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to ``(sample, S_in, *spatial)``; gives ``(sample, S_out, *spatial)``."""
        if x.ndim != 2 + len(self.kernel_size) or x.shape[1] != self.in_channels:
            raise InvalidInputError(
                "The second axis must hold the channels of the layer, the others after it the positions.",
                got=f"{tuple(x.shape)} for {self.in_channels} channels and a kernel of {len(self.kernel_size)} dimensions",
            )
        reads, spatial = pixel_reads(self, x)
        rows = self.multiply(x.movedim(1, -1).reshape(-1, self.in_channels), reads)
        if self.bias is not None:
            rows = rows + self.bias
        return rows.reshape(len(x), *spatial, self.out_channels).movedim(-1, 1)

    def extra_repr(self) -> str:
        """Sizes, geometry and ranks, for ``print(model)``."""
        return f"{super().extra_repr()}, gain={self.gain:g}, rank={self.rank}"


@dataclass(frozen=True, eq=False)
class PixelReads:
    """Which input pixel each output pixel reads at each tap.

    Attributes:
        table: numbers of input pixels from 1 on; 0 is the zero of the padding.
        pixels: number of input pixels.
    """

    table: Int[Tensor, "output tap"]
    pixels: int

    @property
    def _places(self) -> Int[Tensor, " output_tap"]:
        """Where, among all pairs of input pixel and tap, each output pixel reads at each tap."""
        taps = self.table.shape[1]
        return (self.table * taps + torch.arange(taps, device=self.table.device)).flatten()

    def gather(self, c: Float[Tensor, "row k"]) -> Float[Tensor, "output_row k_taps"]:
        """Coordinates of the pixels under the kernel at each output pixel."""
        rank = c.shape[1]
        image = _behind_zeros(c.reshape(-1, self.pixels, rank), 1)
        return image[:, self.table].transpose(2, 3).reshape(-1, rank * self.table.shape[1])

    def gather_back(self, v: Float[Tensor, "output_row k_taps"]) -> Float[Tensor, "row k"]:
        """The transpose of ``gather``: add up what each input pixel gets from the output pixels that read it."""
        outputs, taps = self.table.shape
        v = v.reshape(-1, outputs, v.shape[1] // taps, taps).transpose(2, 3).flatten(1, 2)
        summed = v.new_zeros(len(v), 1 + self.pixels, v.shape[2])
        summed.index_add_(1, self.table.flatten(), v)
        return summed[:, 1:].flatten(0, 1)

    def scatter(self, d: Float[Tensor, "output_row k"]) -> Float[Tensor, "row k_taps"]:
        """Back to each input pixel, tap by tap, the coordinates of the output pixels that read it there."""
        outputs, taps = self.table.shape
        rank = d.shape[1]
        d = d.reshape(-1, outputs, rank)
        spread = d.new_zeros(len(d), (1 + self.pixels) * taps, rank)
        spread.index_add_(1, self._places, d.repeat_interleave(taps, dim=1))
        return spread[:, taps:].reshape(-1, taps, rank).transpose(1, 2).reshape(-1, rank * taps)

    def scatter_back(self, v: Float[Tensor, "row k_taps"]) -> Float[Tensor, "output_row k"]:
        """The transpose of ``scatter``: add up, tap by tap, what each output pixel gets from the input pixels it reads."""
        outputs, taps = self.table.shape
        v = v.reshape(len(v) // self.pixels, self.pixels, v.shape[1] // taps, taps).transpose(2, 3).flatten(1, 2)
        return _behind_zeros(v, taps)[:, self._places].unflatten(1, (outputs, taps)).sum(2).flatten(0, 1)


def _behind_zeros(array: Float[Tensor, "image place k"], count: int) -> Float[Tensor, "image count_place k"]:
    """Zeros in front of the places, for what lies outside; unlike ``F.pad`` of torch 2.6 this takes k = 0 too."""
    return torch.cat([array.new_zeros(len(array), count, array.shape[2]), array], 1)


def pixel_reads(conv: ConvBase, x: Tensor) -> tuple[PixelReads, tuple[int, ...]]:
    """What a convolution reads of an input ``(sample, channel, *spatial)``, and the spatial shape of its output.

    The pixels of one image are numbered, padded as the convolution pads and unfolded, so any padding mode is covered.
    """
    spatial, dims = x.shape[2:], len(conv.kernel_size)
    pixels = math.prod(spatial)
    numbers = torch.arange(1, pixels + 1, device=x.device, dtype=torch.float64).reshape(1, 1, *spatial)
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    numbers = F.pad(numbers, padding_twice(conv), mode=mode)
    for axis, (taps, stride, dilation) in enumerate(zip(conv.kernel_size, conv.stride, conv.dilation, strict=True)):
        numbers = numbers.unfold(2 + axis, dilation * (taps - 1) + 1, stride)[..., ::dilation]
    table = numbers[0, 0].long()
    shape = tuple(table.shape[:dims])
    return PixelReads(table.reshape(math.prod(shape), -1), pixels), shape
