"""Snapshot: outputs and kernels of every layer of a network at one moment."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torch_dmft.measurement.normal_form import Stream


@dataclass(frozen=True, eq=False)
class LayerSnapshot:
    """The kernels of one weight at one moment; definitions in ``torch_dmft.measurement.normal_form``.

    Attributes:
        name: module path.
        forward: Phi, ``(sample, sample)``.
        backward: G, ``(sample, sample)``, or ``(sample, output, sample, output)`` for several outputs.
        ntk: what weight and bias add to the NTK, laid out like ``backward``; None if it is not wanted.
        stream: the fields they were computed from. Where fields are not wanted, h may be NaN, and of kernels averaged over
            outputs the gradients are those of the first one.
    """

    name: str
    forward: Tensor
    backward: Tensor
    ntk: Tensor | None
    stream: Stream


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A network at one moment.

    Attributes:
        outputs: f, ``(sample, output)``, of the rows that are measured.
        layers: one per weight, in forward order.
        ntk: K per unit of the base learning rate, ``(sample, sample)`` or ``(sample, output, sample, output)``: the sum
            over the layers and over the gains and shifts of norm layers; None if it is not wanted.
        layouts: where each use has its samples; pass it to the next ``measure`` of the same network. None while it
            cannot be told for certain.
        notes: what is not known of the network, in words.
        precision: the lowest in which it multiplies.
    """

    outputs: Tensor
    layers: tuple[LayerSnapshot, ...]
    ntk: Tensor | None
    layouts: Any
    notes: tuple[str, ...] = ()
    precision: torch.dtype | None = None

    @property
    def known_ntk(self) -> Tensor:
        """K, where it was wanted."""
        assert self.ntk is not None  # asked for where it was
        return self.ntk


Part = tuple[tuple[LayerSnapshot, ...], Tensor | None]
"""The layers and the whole NTK of some outputs."""


def averaged(parts: Iterable[Part], outputs: int, *, fields: bool) -> Part:
    """The layers and the NTK, averaged over outputs.

    Args:
        parts: those of one output after the other.
        outputs: C.
        fields: whether the gradients by all outputs are kept.
    """
    layers: list[LayerSnapshot] = []
    gradients: list[list[tuple[Tensor, ...]]] = []
    total: Tensor | None = None
    for part, whole in parts:
        if not layers:
            layers, total, gradients = [*part], whole, [[] for _ in part]
        else:
            layers, total = [*map(_added, layers, part)], _sum(total, whole)
        if fields:
            for kept, layer in zip(gradients, part, strict=True):
                kept.append(layer.stream.gradients)
    if fields:
        of_all = [tuple(torch.cat(use, 1) for use in zip(*kept, strict=True)) for kept in gradients]
        streams = [replace(layer.stream, gradients=use) for layer, use in zip(layers, of_all, strict=True)]
        layers = [replace(layer, stream=stream) for layer, stream in zip(layers, streams, strict=True)]
    mean = [
        replace(one, backward=one.backward / outputs, ntk=None if one.ntk is None else one.ntk / outputs)
        for one in layers
    ]
    return tuple(mean), None if total is None else total / outputs


def _added(one: LayerSnapshot, more: LayerSnapshot) -> LayerSnapshot:
    return replace(one, backward=one.backward + more.backward, ntk=_sum(one.ntk, more.ntk))


def _sum(one: Tensor | None, more: Tensor | None) -> Tensor | None:
    return None if one is None or more is None else one + more


def squeeze_outputs(kernel: Float[Tensor, "sample output sample output"]) -> Tensor:
    """``(sample, sample)`` for one output, unchanged for several."""
    return kernel[:, 0, :, 0] if kernel.shape[1] == 1 else kernel
