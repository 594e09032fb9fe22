"""Record: a snapshot reduced to what is kept of a training run."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from torch_dmft.measurement.snapshot import Snapshot


@dataclass(frozen=True, eq=False)
class LayerRecord:
    """The kernels of one weight at one step, on the CPU.

    Attributes:
        name: module path.
        forward: Phi, ``(sample, sample)``.
        backward: G, ``(sample, sample)`` or ``(sample, output, sample, output)``.
        ntk: its part of the NTK, laid out like ``backward``.
    """

    name: str
    forward: Tensor
    backward: Tensor
    ntk: Tensor


@dataclass(frozen=True, eq=False)
class Record:
    """Everything recorded at one step, on the CPU; what a recorder's callbacks are given.

    Attributes:
        step: optimizer steps done.
        outputs: f, ``(sample, output)``.
        loss: the loss on the training rows; NaN without targets.
        layers: one per weight, in forward order.
        ntk: K, ``(sample, sample)`` or ``(sample, output, sample, output)``.
    """

    step: int
    outputs: Tensor
    loss: float
    layers: tuple[LayerRecord, ...]
    ntk: Tensor


def reduce_snapshot(snapshot: Snapshot, step: int, loss: float) -> Record:
    """The part of a snapshot that is kept, moved to the CPU."""
    layers = tuple(
        LayerRecord(layer.name, layer.forward.cpu(), layer.backward.cpu(), layer.ntk.cpu()) for layer in snapshot.layers
    )
    return Record(step, snapshot.outputs.cpu(), loss, layers, snapshot.ntk.cpu())
