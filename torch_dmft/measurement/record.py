"""Record: the trajectory of one step, and how the records of a run become its trajectory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from torch_dmft.core.kernel import Kernel
from torch_dmft.core.training import Training
from torch_dmft.core.trajectory import LayerKernels, Trajectory
from torch_dmft.measurement.moment import LayerSnapshot, Snapshot
from torch_dmft.measurement.probe import Probe
from torch_dmft.measurement.subject import Subject


def record_of(
    subject: Subject, probe: Probe, taken: Snapshot, step: int, loss: float, *, like: Trajectory | None = None
) -> Trajectory:
    """What is kept of a snapshot: a trajectory of one time, on the CPU, that knows nothing of how the network was trained.

    Args:
        subject: the network.
        probe: what it was measured on.
        taken: the snapshot.
        step: optimizer steps done.
        loss: on the training rows; NaN without targets.
        like: an earlier record of the run, with all that does not depend on time.
    """
    kept = {
        "step": step,
        "outputs": taken.outputs.cpu(),
        "loss": loss,
        "ntk": None if taken.ntk is None else taken.ntk.cpu(),
        "notes": taken.notes,
        "layers": [
            {"name": each.name, **{name: array.cpu() for name, array in _arrays(each)}} for each in taken.layers
        ],
    }
    return restored(subject, probe, kept, like=like)


def plain(record: Trajectory) -> dict[str, Any]:
    """A record as plain containers of tensors."""
    return {
        "step": int(record.steps[0]),
        "outputs": record.outputs[0],
        "loss": float(record.losses[0]),
        "ntk": None if record.ntk is None else record.ntk.array[0],
        "notes": record.notes,
        "layers": [
            {"name": layer.name, **{name: kernel.array[0] for name, kernel in _arrays(layer)}}
            for layer in record.layers
        ],
    }


def _arrays(layer: LayerSnapshot | LayerKernels) -> Iterator[tuple[str, Any]]:
    """The kernels of a layer that there are."""
    return ((name, getattr(layer, name)) for name in _KERNELS if getattr(layer, name) is not None)


def restored(subject: Subject, probe: Probe, kept: Mapping[str, Any], *, like: Trajectory | None = None) -> Trajectory:
    """The record that ``plain`` was made of."""
    outputs = kept["outputs"]
    like = _blank(subject, probe, outputs.shape[1]) if like is None else like
    widths = {layer.name: layer.width for layer in like.layers} or _widths(subject)
    layers = []
    for each in kept["layers"]:
        forward, backward, ntk = (Kernel(each[kernel][None]) if kernel in each else None for kernel in _KERNELS)
        assert forward is not None  # only the NTK may be missing
        assert backward is not None
        layers.append(LayerKernels(each["name"], forward, backward, ntk, width=widths.get(each["name"])))
    return replace(
        like,
        steps=torch.tensor([kept["step"]], device=outputs.device),
        outputs=outputs[None],
        losses=outputs.new_tensor([kept["loss"]]),
        layers=tuple(layers),
        ntk=None if kept["ntk"] is None else Kernel(kept["ntk"][None]),
        training=replace(like.training, steps=kept["step"]),
        notes=tuple(kept["notes"]),
    )


def _blank(subject: Subject, probe: Probe, outputs: int) -> Trajectory:
    """What a run is before anything of it is recorded."""
    plan, targets = subject.plan, probe.target_values(outputs)
    return Trajectory(
        steps=torch.zeros(0, dtype=torch.int64, device="cpu"),
        outputs=torch.zeros(0, len(probe), outputs, device="cpu"),
        losses=torch.zeros(0, device="cpu"),
        layers=(),
        ntk=Kernel(torch.zeros(0, len(probe), len(probe), device="cpu")),
        origin=plan.origin,
        training=Training.unseen(0, plan),
        train=probe.train_rows,
        targets=None if targets is None else targets.cpu(),
        network=plan.functions,
        probe_print=probe.print,
        width=None if plan.is_limit else subject.width,
        centered=subject.is_centered,
    )


def _widths(subject: Subject) -> dict[str, int | None]:
    return {} if subject.plan.is_limit else {layer.path: layer.width for layer in subject.architecture.layers}


def joined(records: Sequence[Trajectory]) -> Trajectory:
    """The trajectory of all records, one after the other; what does not depend on time is that of the first."""

    def stacked(kernels: Iterable[Kernel]) -> Kernel:
        return Kernel(torch.cat([kernel.array for kernel in kernels]))

    def known(kernels: Sequence[Kernel | None]) -> Kernel | None:
        there = [kernel for kernel in kernels if kernel is not None]
        return stacked(there) if len(there) == len(kernels) else None

    first, layers = records[0], []
    for every in zip(*(record.layers for record in records), strict=True):
        forward, backward = stacked(layer.forward for layer in every), stacked(layer.backward for layer in every)
        layers.append(replace(every[0], forward=forward, backward=backward, ntk=known([layer.ntk for layer in every])))
    return replace(
        first,
        steps=torch.cat([record.steps for record in records]),
        outputs=torch.cat([record.outputs for record in records]),
        losses=torch.cat([record.losses for record in records]),
        layers=tuple(layers),
        ntk=known([record.ntk for record in records]),
        notes=tuple(dict.fromkeys(note for record in records for note in record.notes)),
    )


_KERNELS = ("forward", "backward", "ntk")
