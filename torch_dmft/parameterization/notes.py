"""What a plan says beside its table: what was assumed, changed, or has no limit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch_dmft.architecture import Part
from torch_dmft.core.listed import listed

if TYPE_CHECKING:
    from torch_dmft.parameterization.plan import Plan


def notes_of(plan: Plan) -> tuple[str, ...]:
    """What was assumed about the model, changed in it beside its weights, or has no limit, in words."""
    factors = plan.rescaled.values()
    kept = [f"weights were kept and multiplied by {min(factors):.3g} to {max(factors):.3g}"] if factors else []
    numbers = list(_of_numbers(plan))
    ties = [
        f"{layer.path}: reads out with {layer.weight}, which makes features as well, so that what {module} returns is "
        f"multiplied by {layer.multiplier.number:.4g}; whoever loads a checkpoint of this model has to wrap it first"
        if layer.multiplier.number != 1.0
        else f"{layer.path}: reads out with {layer.weight}, which makes features as well: its rates are as large as both "
        "uses allow"
        for layer in plan.architecture.layers
        if layer.multiplier is not None and plan.scheme != "standard"
        for module in [layer.multiplier.path or "the model"]
    ]
    streams = [
        f"{stream.branches} residual branches are multiplied by {plan.depth}, L = {stream.branches}, in initial sizes and "
        f"rates of what ends them: {listed([name for name, part in stream.parts.items() if part is Part.END])}"
        for stream in plan.architecture.streams
    ]
    return (
        *plan.architecture.notes,
        *kept,
        *streams,
        *ties,
        *numbers,
    )


def _of_numbers(plan: Plan) -> Iterator[str]:
    """Numbers of the forward pass that depend on the width, in words."""
    scores = [name for fold in plan.architecture.folds if fold.of_scores for name in fold.factors]
    others: dict[str, dict[str, float]] = {}
    for fold in plan.architecture.folds:
        if not fold.of_scores:
            others.setdefault(fold.reason, {}).update(fold.factors)
    scales = [f"{one.path}.{one.name}" for one in plan.architecture.attributes]
    if plan.scheme == "standard" or plan.wrapping.init == "untouched":
        if scores or scales:
            yield f"{listed(scores + scales)}: scores stay q.k/sqrt(d), so that rates do not carry over where d grows"
        for reason in others:
            yield f"{reason}: features stay as they are, so that rates do not carry over"
        return
    if scores:
        yield (
            f"{listed(scores)}: initial size and rates hold the 1/sqrt(d) that the scores lack, so that they are q.k/d"
        )
    for reason, factors in others.items():
        held = listed(f"{name} (by {factor:.4g})" for name, factor in factors.items())
        yield f"{reason}: held by initial size and rates, multiplied, of {held}"
    if scales:
        yield (
            f"{listed(scales)}: set so that the scores are q.k/d; whoever loads a checkpoint of this model has to wrap it "
            "first"
        )
