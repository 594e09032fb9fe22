"""What a comparison says, in words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch_dmft.comparison.consistency import Consistency
from torch_dmft.core.divergence import diverged_at, not_finite
from torch_dmft.core.stability import NEAR_THE_EDGE

if TYPE_CHECKING:
    from torch_dmft.comparison.comparison import Comparison
    from torch_dmft.comparison.deviation import Deviation


def verdict(comparison: Comparison) -> str:
    """What diverged, whether the width explains the rest, which kernel departs most, and which prediction is nearest.

    Phi of the first weight and G of the last are left out: they are given by the data and the outputs, not predicted.
    """
    return " ".join(sentences(comparison))


def sentences(comparison: Comparison) -> Iterator[str]:
    """The verdict, sentence by sentence."""
    diverged = [diverged_at(run) for run in comparison.runs]
    yield from _diverged(comparison, diverged)
    if 0 not in diverged[:2]:
        yield from _judged(comparison)
        yield from _farthest(comparison)
    yield from _assumed(comparison)
    yield from _chaotic(comparison)
    if len(comparison.predictions) > 1 and diverged[0] != 0:
        yield from _ranking(comparison, diverged)
    for deviations in comparison.deviations:
        if deviations.consistency is not None:
            yield _explained(comparison, deviations.consistency)


def _diverged(comparison: Comparison, diverged: list[int | None]) -> Iterator[str]:
    """Which runs diverged, and what is compared then."""
    for run, at in zip(comparison.runs, diverged, strict=True):
        if at is None:
            continue
        broken = not_finite(run, at)
        what = f"its loss is {run.losses[at].item():.2g}"
        if broken:
            what = f"{broken[0]}{f' and {len(broken) - 1} more' if len(broken) > 1 else ''} not finite"
        yield f"{run.origin} diverged: at step {int(run.steps[at])} {what}."
    if 0 in diverged[:2]:
        yield "There is nothing left to compare."
    elif any(at is not None for at in diverged[:2]):
        yield f"Compared is what was before, up to step {int(comparison.steps[comparison.end])}."


_ASSUMPTIONS = {
    "batches": "for other batches of that size than the network saw, which nobody noted",
    "data": "for the training set that was given, which the recorder did not see",
    "rows beside noise": "for all training rows in every step, which the recorder cannot check beside Langevin noise",
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


_TYPICAL, _FAR = 6.0, 10.0
"""Largest relative error of a kernel times sqrt(N). Of 200 networks (N = 128 and 512, one to five hidden layers of tanh, ReLU
or GELU, gamma0 = 0.3 to 3) two had more than the first, and none more than 6.2."""


def _judged(comparison: Comparison) -> Iterator[str]:
    """Whether the network is as close to the first prediction as its width lets it be."""
    network, prediction = comparison.measured.origin, comparison.predictions[0].origin
    judged = next((d.consistency for d in comparison.deviations if d.consistency and d.consistency.is_decidable), None)
    if judged is not None and judged.width == comparison.measured.width:
        if judged.consistent:
            yield f"{network} follows {prediction} as closely as other networks of its width do."
        else:
            yield f"{network} departs from {prediction} by more than its width explains."
        return
    _, worst = _worst(comparison)
    width = _yardstick(comparison, worst)
    error, stderr = (values[comparison.end].item() for values in (worst.relative_error, worst.relative_error_stderr))
    if width is None or not math.isfinite(error):
        return
    unit, bar = 1 / math.sqrt(width), 0.0 if math.isnan(stderr) else stderr
    if error - 2 * bar > _FAR * unit and _FAR * unit < 1:  # of a narrower network nothing is too far
        yield f"{network} departs from {prediction} by more than its width explains."
    elif error <= _TYPICAL * unit:
        yield f"{network} follows {prediction} as closely as one expects of its width."
    else:
        yield (
            f"Whether its width explains how far {network} is from {prediction} cannot be told yet: "
            "compare(..., problem=problem) trains other networks of this width beside it."
        )


def _worst(comparison: Comparison) -> tuple[str, Deviation]:
    """The kernel with the largest relative error at the end, and its name."""
    predicted, end = comparison.deviations[0].predicted, comparison.end
    return max(predicted.items(), key=lambda item: _rank(item[1].relative_error[end].item()))


def _farthest(comparison: Comparison) -> Iterator[str]:
    """The kernel with the largest relative error, in units of what finite width alone does."""
    end = comparison.end
    name, worst = _worst(comparison)
    error, stderr = worst.relative_error[end].item(), worst.relative_error_stderr[end].item()
    bar = "" if math.isnan(stderr) else f" ± {stderr:.2g}"
    sentence = (
        f"At step {int(comparison.steps[end])}, {comparison.measured.origin} is farthest from "
        f"{comparison.predictions[0].origin} in {name}: relative error {error:.2g}{bar}"
    )
    width = _yardstick(comparison, worst)
    if width is not None and math.isfinite(error):
        what = "the narrowest layer that it is an average over" if comparison.widths else "the inputs of the readout"
        sentence += (
            f", or {error * math.sqrt(width):.2g} / sqrt(N) with N = {width}, {what} (finite width alone gives a few)"
        )
    yield f"{sentence}."
    narrowest = comparison.narrowest
    if comparison.widths and width is not None and narrowest is not None and narrowest < width:
        layers = comparison.measured.layers
        where = next(layers[at].name for at, made in enumerate(comparison.widths) if made == narrowest)
        yield (
            f"Training also carries into it what the narrowest layer of all does, {where} with N = {narrowest}: "
            f"{error * math.sqrt(narrowest):.2g} / sqrt({narrowest})."
        )
    if error <= 2 * worst.noise[end].item():
        yield (
            f"That is no more than twice the prediction's own noise ({worst.noise[end].item():.2g}): "
            "a more exact prediction is needed to tell them apart."
        )


def _yardstick(comparison: Comparison, kernel: Deviation) -> int | None:
    for position, layer in enumerate(comparison.deviations[0].layers):
        for name in ("forward", "backward"):
            if getattr(layer, name) is kernel:
                return comparison.yardstick(name, position)
    return comparison.narrowest


def _explained(comparison: Comparison, judged: Consistency) -> str:
    """Whether the width explains the deviations, and if not, where to look."""
    if not judged.is_decidable:
        return (
            f"{judged.replicas} networks are too few to tell whether N = {judged.width} explains this: 19 or more can."
        )
    origin, rank = comparison.measured.origin, f"p = {judged.p:.2g} among {judged.replicas} networks of that width"
    if judged.consistent:
        return f"{origin} is consistent with width N = {judged.width} ({rank})."
    name, worst = judged.worst
    sentence = (
        f"{origin} is not consistent with width N = {judged.width} ({rank}): {name} is {worst.ratio:.2g} times as far off as a "
        f"typical network's (z = {worst.z:.1f}, where 0 is typical and 3 is farther off than nearly all of them)."
    )
    width = comparison.measured.width
    if width is not None and width != judged.width:
        return f"{sentence} The measured network has N = {width}."
    if not judged.starts_wrong:
        suspect = None if judged.learned is None else judged.learned.suspect
        weight = "" if suspect is None else f", first of weight {suspect!r}"
        return f"{sentence} It is training that takes it away, so look at gamma0, loss, optimizer and learning rates{weight}."
    weight = "" if judged.start.suspect is None else f", first of weight {judged.start.suspect!r}"
    start = int(comparison.steps[0])
    cause = f"so look at the initialisation{weight}" if start == 0 else f"first at weight {judged.start.suspect!r}"
    return f"{sentence} It is off at step {start} already, {cause}."


def _ranking(comparison: Comparison, diverged: list[int | None]) -> Iterator[str]:
    """The predictions that did not diverge, by their mean relative error."""
    end = comparison.end
    means = [
        (deviations.mean_error[: end + 1].mean().item(), prediction.origin)
        for prediction, deviations, at in zip(comparison.predictions, comparison.deviations, diverged[1:], strict=True)
        if at is None or at > end
    ]
    if means:
        listed = ", ".join(f"{origin} {mean:.2g}" for mean, origin in sorted(means, key=lambda item: _rank(item[0])))
        static = any(prediction.solver == "StaticNTK" for prediction in comparison.predictions)
        told = " (the static NTK leaves out that features are learned)" if static else ""
        yield f"Mean relative error of all kernels over all steps, nearest prediction first: {listed}{told}."


def _rank(error: float) -> float:
    """NaN departs most of all."""
    return math.inf if math.isnan(error) else error
