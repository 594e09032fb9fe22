"""The numbers that TensorBoard plots: one set of tags for a live run, a measured one and a predicted one.

Equal tags in different runs share a chart, so this is what puts a network beside its theory. A tag names a weight by its index
l alone, ``"Phi moved/1"``: models with other names share charts, and the description says what the weight is called.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from torch_dmft.comparison import Comparison, Deviation, Deviations, relative_error, target_alignment
from torch_dmft.comparison.scatter import scatter
from torch_dmft.comparison.yardstick import narrowest
from torch_dmft.core.kernel import Kernel
from torch_dmft.core.trajectory import Trajectory

KINDS = {"Phi": "forward", "G": "backward", "NTK": "ntk"}
LOWER, UPPER = "band lower", "band upper"
"""How the tags of a band begin: ``"band lower/NTK trace/all"`` for ``"NTK trace/all"``."""
WIDTHS = 2
"""Half the width of a band, in standard errors."""
_ROUND_OFF = 1e-6
"""Relative errors from which networks of one width have no scatter."""

_KERNELS = {
    "Phi": "Phi is the Gram matrix of the weight's inputs, per feature.",
    "G": "G is the Gram matrix of the gradients at the weight's output, per feature.",
    "NTK": "The tangent kernel: how a step on one sample moves the output on another.",
}
_QUANTITIES = {
    "trace": "Mean of the diagonal entries.",
    "moved": "|K(t) - K(0)| / |K(0)|: 0 if nothing was learned, of order 1 if features were.",
    "on targets": "Alignment with the task, the cosine of the angle between Phi and Y Y^T.",
    "alignment": "Cosine of the angle between the measured kernel and this prediction: 1 for one shape at any size.",
    "relative error": "|measured - predicted| / |predicted|.",
    "error, root N": "Relative error times the square root of N, the narrowest width that the kernel is an average over: "
    "a few for any random network.",
    "deviation": "Relative error in units of that of a typical network of the measured one's width: 1 is typical.",
}
_OTHERS = {
    "loss": "Loss on the training rows.",
    "loss, log10": "Logarithm of the loss on the training rows, to base 10.",
    "relative error/all": "|measured - predicted| / |predicted|, mean over Phi and G of all weights where they are not given.",
    "outputs, rms difference": "Root mean square of the measured minus the predicted outputs, on the training rows.",
}


def description(tag: str, names: Sequence[str]) -> str:
    """What a tag shows, in markdown.

    Args:
        tag: one of those below.
        names: of the weights, l = 0..L.
    """
    quantity, _, place = tag.partition("/")
    if quantity in (LOWER, UPPER):
        bound = "Lower" if quantity == LOWER else "Upper"
        return f"{bound} end of the band of {WIDTHS} standard errors around `{place}`."
    if tag in _OTHERS:
        return _OTHERS[tag]
    kind, _, what = quantity.partition(" ")
    where = f"Weight {place} is `{names[int(place)]}`. " if place.isdigit() else "Of all weights together. "
    return where + " ".join(text for text in (_QUANTITIES.get(what, ""), _KERNELS.get(kind, "")) if text)


def scalars(run: Trajectory, time: int, first: Trajectory, targets: Tensor | None = None) -> dict[str, float]:
    """The plotted numbers of one step, by tag.

    Args:
        run: a run.
        time: position of the step.
        first: the same run, or its first record: kernels move from its first step.
        targets: ``(sample, output)`` or ``(sample,)`` floats, or ``(sample,)`` integer classes; None leaves out target
            alignments.

    Returns:
        ``loss`` and its logarithm; per weight l and kernel ``Phi trace/l`` (the mean diagonal entry), ``Phi moved/l``
        (|K - K(0)| / |K(0)|), the same for G and, if it was recorded, NTK, and ``Phi on targets/l``; for the whole NTK
        ``.../all``.
    """
    loss = run.losses[time].item()
    values = {"loss": loss}
    if loss > 0:
        values["loss, log10"] = math.log10(loss)
    kernels: list[tuple[str, str, Kernel | None, Kernel | None]] = [("NTK", "all", run.ntk, first.ntk)]
    for position, (layer, start) in enumerate(zip(run.layers, first.layers, strict=True)):
        for kind, attribute in KINDS.items():
            kernels.append((kind, str(position), getattr(layer, attribute), getattr(start, attribute)))
        if targets is not None:
            values[f"Phi on targets/{position}"] = target_alignment(layer.forward.equal_time[time], targets)
    for kind, place, kernel, beginning in kernels:
        if kernel is None or beginning is None:
            continue
        now = kernel.equal_time[time]
        values[f"{kind} trace/{place}"] = _mean_diagonal(now)
        values[f"{kind} moved/{place}"] = relative_error(now, beginning.equal_time[0])
    return values


def deviation_scalars(deviations: Deviations, time: int) -> dict[str, float]:
    """How far the measured run is from one prediction at one common step, by tag."""
    values = {
        "outputs, rms difference": deviations.outputs.rms[time].item(),
        "relative error/all": deviations.mean_error[time].item(),
    }
    if deviations.ntk is not None:
        values["NTK relative error/all"] = deviations.ntk.relative_error[time].item()
        values["NTK alignment/all"] = deviations.ntk.alignment[time].item()
    for position, layer in enumerate(deviations.layers):
        for kind, attribute in KINDS.items():
            deviation: Deviation | None = getattr(layer, attribute)
            if deviation is None:
                continue
            values[f"{kind} relative error/{position}"] = deviation.relative_error[time].item()
            values[f"{kind} alignment/{position}"] = deviation.alignment[time].item()
    return values


def width_scalars(
    deviations: Deviations,
    time: int,
    widths: Sequence[int | None],
    units: Mapping[tuple[str, int], float] | None = None,
) -> dict[str, float]:
    """Relative errors at one common step in units of what finite width explains, by tag.

    Args:
        deviations: of the measured run from a prediction.
        time: position of the step.
        widths: how many features each weight makes, empty if nobody knows.
        units: the relative error of a typical network of the measured one's width, by kernel and weight, if known.

    Returns:
        ``Phi error, root N/l``: times the square root of the narrowest width that the kernel is an average over, and
        ``Phi deviation/l``: over that of a typical network.
    """
    values = {}
    for position, layer in enumerate(deviations.layers):
        for kind, kernel in KINDS.items():
            deviation: Deviation | None = getattr(layer, kernel)
            if deviation is None:
                continue
            error = deviation.relative_error[time].item()
            width = narrowest(widths, kernel, position)
            if width is not None:
                values[f"{kind} error, root N/{position}"] = error * math.sqrt(width)
            unit = (units or {}).get((kernel, position), 0.0)
            if unit > _ROUND_OFF:
                values[f"{kind} deviation/{position}"] = error / unit
    return values


def band_scalars(values: Mapping[str, float], stderr: Trajectory | None = None, time: int = 0) -> dict[str, float]:
    """The ends of the bands of one step, by tag; a run without standard errors has bands of no width.

    Args:
        values: what ``scalars`` returned.
        stderr: the standard errors of the run. Those of the entries of a diagonal count as equal signs of one error: an
            upper bound of the trace's.
        time: position of the step.
    """
    spread = {}
    if stderr is not None:
        spread = {"loss": stderr.losses[time].item()}
        kernels: list[tuple[str, Kernel | None]] = [("NTK trace/all", stderr.ntk)]
        for position, layer in enumerate(stderr.layers):
            kernels += [(f"{kind} trace/{position}", getattr(layer, attribute)) for kind, attribute in KINDS.items()]
        spread |= {tag: _mean_diagonal(kernel.equal_time[time]) for tag, kernel in kernels if kernel is not None}
    ends = {}
    for tag in (tag for tag in values if tag == "loss" or " trace/" in tag):
        ends[f"{LOWER}/{tag}"] = values[tag] - WIDTHS * spread.get(tag, 0.0)
        ends[f"{UPPER}/{tag}"] = values[tag] + WIDTHS * spread.get(tag, 0.0)
    return ends


def run_scalars(comparison: Comparison, run: Trajectory, deviations: Deviations | None) -> list[dict[str, float]]:
    """All plotted numbers of one run of a comparison, step by step.

    Args:
        comparison: the comparison.
        run: one of its runs.
        deviations: of the measured run from this one, if it is a prediction.
    """
    typical = {} if deviations is None else scatter(run)
    widths = comparison.widths or (comparison.narrowest,) * (len(run.layers) - 1)
    steps = []
    for time in range(len(run.steps)):
        values = scalars(run, time, run, comparison.targets)
        values |= band_scalars(values, run.stderr, time)
        if deviations is not None:
            units = {key: errors[time].item() for key, errors in typical.items()}
            values |= deviation_scalars(deviations, time) | width_scalars(deviations, time, widths, units)
        steps.append(values)
    return steps


def _mean_diagonal(kernel: Tensor) -> float:
    rows = kernel.shape[: kernel.ndim // 2].numel()
    return kernel.reshape(rows, rows).diagonal().double().mean().item()
