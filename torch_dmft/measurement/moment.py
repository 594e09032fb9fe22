"""Snapshot: outputs and kernels of every layer of a network at one moment."""

from __future__ import annotations

from dataclasses import dataclass
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
        ntk: what weight and bias add to the NTK, laid out like ``backward``.
        stream: the fields they were computed from.
    """

    name: str
    forward: Tensor
    backward: Tensor
    ntk: Tensor
    stream: Stream


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A network at one moment.

    Attributes:
        outputs: f, ``(sample, output)``.
        layers: one per weight, in forward order.
        ntk: K per unit of the base learning rate, ``(sample, sample)`` or ``(sample, output, sample, output)``: the sum
            over the layers and over the gains and shifts of norm layers.
        layouts: where each use has its samples; pass it to the next ``measure`` of the same network. None while it
            cannot be told for certain.
        notes: what is not known of the network, in words.
        precision: the lowest in which it multiplies.
    """

    outputs: Tensor
    layers: tuple[LayerSnapshot, ...]
    ntk: Tensor
    layouts: Any
    notes: tuple[str, ...] = ()
    precision: torch.dtype | None = None


def squeeze_outputs(kernel: Float[Tensor, "sample output sample output"]) -> Tensor:
    """``(sample, sample)`` for one output, unchanged for several."""
    return kernel[:, 0, :, 0] if kernel.shape[1] == 1 else kernel
