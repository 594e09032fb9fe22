"""What a comparison says, in words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from torch_dmft.comparison.consistency import Consistency
from torch_dmft.core.stability import NEAR_THE_EDGE

if TYPE_CHECKING:
    from torch_dmft.comparison.comparison import Comparison, Deviations
    from torch_dmft.comparison.deviation import Deviation


def verdict(comparison: Comparison) -> str:
    """Which kernel departs most from the first prediction, by how much, and which prediction is nearest.

    Phi of the first weight and G of the last are left out: they are given by the data and the outputs, not predicted.
    """
    return " ".join(_sentences(comparison))


def predicted_kernels(deviations: Deviations) -> Iterator[tuple[str, Deviation]]:
    """The kernels that learning moves, each with a name such as ``"Phi of weight 1 (fc2)"``."""
    last = len(deviations.layers) - 1
    for position, layer in enumerate(deviations.layers):
        if position > 0:
            yield f"Phi of weight {position} ({layer.name})", layer.forward
        if position < last:
            yield f"G of weight {position} ({layer.name})", layer.backward


def _sentences(comparison: Comparison) -> Iterator[str]:
    kernels = list(predicted_kernels(comparison.deviations[0])) or [("the NTK", comparison.deviations[0].ntk)]
    name, worst = max(kernels, key=lambda item: _rank(item[1].relative_error[-1].item()))
    yield _farthest(comparison, name, worst)
    if worst.relative_error[-1] <= 2 * worst.noise[-1]:
        yield (
            f"That is no more than twice the prediction's own noise ({worst.noise[-1].item():.2g}): "
            "a more exact prediction is needed to tell them apart."
        )
    yield from _assumed(comparison)
    yield from _chaotic(comparison)
    layers = comparison.deviations[0].layers
    if layers and layers[0].forward.relative_error[0] > 1e-3:
        error = layers[0].forward.relative_error[0].item()
        yield f"The kernels of the inputs differ by {error:.2g}: are these runs about the same data?"
    if len(comparison.predictions) > 1:
        yield _ranking(comparison)
    for deviations in comparison.deviations:
        if deviations.consistency is not None:
            yield _explained(comparison, deviations.consistency)


_ASSUMPTIONS = {
    "batches": "for other batches of that size than the network saw, which nobody noted",
    "data": "for the training set that was given, which the recorder did not see",
    "start": "for Gaussian weights, which the network did not start from",
}


def _assumed(comparison: Comparison) -> Iterator[str]:
    """What predictions took for granted in place of what is known of the run."""
    for prediction in comparison.predictions:
        for assumption in prediction.training.assumptions:
            yield f"{prediction.origin} is {_ASSUMPTIONS.get(assumption, f'made with an assumed {assumption}')}."


def _chaotic(comparison: Comparison) -> Iterator[str]:
    """Whether a learning rate near the edge of stability makes comparisons chaotic."""
    for run in comparison.runs[:2]:
        if run.edge is None or not bool((run.edge > NEAR_THE_EDGE).any()):
            continue
        step, worst = int(run.steps[run.edge.nan_to_num(0.0).argmax()]), float(run.edge.nan_to_num(0.0).max())
        yield (
            f"The learning rate of {run.origin} reaches {worst:.2g} of the largest stable one (at step {step}): there small "
            "differences grow, and runs depart that differ in nothing but their random start. Compare at a smaller rate "
            "before width is blamed."
        )
        return


def _farthest(comparison: Comparison, name: str, worst: Deviation) -> str:
    error, stderr = worst.relative_error[-1].item(), worst.relative_error_stderr[-1].item()
    bar = "" if math.isnan(stderr) else f" ± {stderr:.2g}"
    sentence = (
        f"At step {int(comparison.steps[-1])}, {comparison.measured.origin} is farthest from "
        f"{comparison.predictions[0].origin} in {name}: relative error {error:.2g}{bar}"
    )
    width = comparison.measured.metadata.get("width")
    if isinstance(width, int | float) and width > 0 and math.isfinite(error):
        sentence += f", or {error * math.sqrt(width):.2g} / sqrt(N) with N = {width:g} (finite width alone gives a few)"
    return f"{sentence}."


def _explained(comparison: Comparison, found: Consistency) -> str:
    """Whether the width explains the deviations, and if not, where to look."""
    if not found.is_decidable:
        return (
            f"{found.replicas} networks are too few to tell whether N = {found.width} explains this: take 19 or more."
        )
    origin, rank = comparison.measured.origin, f"p = {found.p:.2g} among {found.replicas} networks of that width"
    if found.consistent:
        return f"{origin} is consistent with width N = {found.width} ({rank})."
    name, worst = found.worst
    sentence = (
        f"{origin} is not consistent with width N = {found.width} ({rank}): {name} is {worst.ratio:.2g} times as far off as a "
        f"typical network's (z = {worst.z:.1f})."
    )
    width = comparison.measured.metadata.get("width")
    if isinstance(width, int) and width != found.width:
        return f"{sentence} The measured network has N = {width}."
    if not found.starts_wrong:
        suspect = None if found.learned is None else found.learned.suspect
        weight = "" if suspect is None else f", first of weight {suspect!r}"
        return f"{sentence} It is training that takes it away, so look at gamma0, loss, optimizer and learning rates{weight}."
    weight = "" if found.start.suspect is None else f", first of weight {found.start.suspect!r}"
    start = int(comparison.steps[0])
    cause = f"so look at the initialisation{weight}" if start == 0 else f"first at weight {found.start.suspect!r}"
    return f"{sentence} It is off at step {start} already, {cause}."


def _ranking(comparison: Comparison) -> str:
    means = []
    for prediction, deviations in zip(comparison.predictions, comparison.deviations, strict=True):
        kernels = [kernel for _, kernel in predicted_kernels(deviations)] or [deviations.ntk]
        means.append((torch.cat([kernel.relative_error for kernel in kernels]).mean().item(), prediction.origin))
    listed = ", ".join(f"{origin} {mean:.2g}" for mean, origin in sorted(means, key=lambda item: _rank(item[0])))
    return f"Mean relative error of all kernels over all steps, nearest prediction first: {listed}."


def _rank(error: float) -> float:
    """NaN departs most of all."""
    return math.inf if math.isnan(error) else error
