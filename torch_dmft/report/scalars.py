"""The numbers that TensorBoard plots: one set of tags for a live run, a measured one and a predicted one.

Equal tags in different runs share a chart, so this is what puts a network beside its theory.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from torch_dmft.comparison import Deviations, relative_error, target_alignment
from torch_dmft.core.kernel import Kernel
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.measurement.record import LayerRecord, Record

KINDS = {"Phi": "forward", "G": "backward", "NTK": "ntk"}


def weight_label(position: int, name: str) -> str:
    """How a weight is called in tags: ``"1 (encoder.fc)"``."""
    return f"{position} ({name})"


def scalars(record: Record, first: Record, targets: Tensor | None = None) -> dict[str, float]:
    """The plotted numbers of one step, by tag.

    Args:
        record: the step.
        first: the first recorded step of the same run, from which kernels move.
        targets: ``(sample,)`` or ``(sample, output)``; None leaves out target alignments.

    Returns:
        ``loss``; per weight and kernel ``Phi trace/...`` (the mean diagonal entry), ``Phi moved/...``
        (|K - K(0)| / |K(0)|), the same for G and NTK, and ``Phi on targets/...``; for the whole NTK ``.../all``.
    """
    values = {"loss": record.loss, "NTK trace/all": _mean_diagonal(record.ntk)}
    values["NTK moved/all"] = relative_error(record.ntk, first.ntk)
    for position, (layer, start) in enumerate(zip(record.layers, first.layers, strict=True)):
        label = weight_label(position, layer.name)
        for kind, attribute in KINDS.items():
            kernel = getattr(layer, attribute)
            values[f"{kind} trace/{label}"] = _mean_diagonal(kernel)
            values[f"{kind} moved/{label}"] = relative_error(kernel, getattr(start, attribute))
        if targets is not None:
            values[f"Phi on targets/{label}"] = target_alignment(layer.forward, targets)
    return values


def deviation_scalars(deviations: Deviations, time: int) -> dict[str, float]:
    """How far the measured run is from one prediction at one common step, by tag."""
    values = {"outputs, rms difference": deviations.outputs.rms[time].item()}
    for position, layer in enumerate(deviations.layers):
        label = weight_label(position, layer.name)
        for kind, attribute in KINDS.items():
            deviation = getattr(layer, attribute)
            values[f"{kind} relative error/{label}"] = deviation.relative_error[time].item()
            values[f"{kind} alignment/{label}"] = deviation.alignment[time].item()
    return values


def records(run: Trajectory) -> Iterator[Record]:
    """A run step by step, as a recorder's callbacks see it."""
    for time, step in enumerate(run.steps):
        layers = tuple(
            LayerRecord(layer.name, *(_at(kernel, time) for kernel in (layer.forward, layer.backward, layer.ntk)))
            for layer in run.layers
        )
        yield Record(int(step), run.outputs[time], run.losses[time].item(), layers, _at(run.ntk, time))


def _at(kernel: Kernel, time: int) -> Tensor:
    return kernel.equal_time[time]


def _mean_diagonal(kernel: Tensor) -> float:
    rows = kernel.shape[: kernel.ndim // 2].numel()
    return kernel.reshape(rows, rows).diagonal().double().mean().item()
