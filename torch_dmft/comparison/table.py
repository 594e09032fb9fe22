"""A comparison as pages to read: the verdict with one table, and everything else on request."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from torch import Tensor

from torch_dmft.comparison.consistency import Consistency, Score
from torch_dmft.comparison.deviation import Deviation
from torch_dmft.comparison.richness import movement, target_alignments
from torch_dmft.core.grid import Grid
from torch_dmft.core.page import Page
from torch_dmft.core.trajectory import Trajectory

if TYPE_CHECKING:
    from torch_dmft.comparison.comparison import Comparison
    from torch_dmft.comparison.deviation import Deviations

_MOST = 8
"""Weights in the first table."""
_KERNELS = {"Phi": "forward", "G": "backward", "NTK": "ntk"}
_WORDS = (
    "align: alignment, the cosine of the angle between measured and predicted kernel, 1 for one shape at any size. "
    "error: relative error |measured - predicted| / |predicted|. Phi, the similarity of a weight's inputs, is given by the "
    "data at the first weight; G, the similarity of the gradients at its output, is given at the last."
)
_YARDSTICK = (
    " N: the narrowest layer that the kernel is an average over. One random network is off by a few / sqrt(N) anyway."
)
_Z = (
    "Each number is the deviation in units of that of a typical network of this width; z is the same on the scale of the other "
    "networks' scatter. z = 0: typical; z = 3: farther off than nearly all of them; z = -3: closer than typical, which is no "
    "fault. Column weight: what this weight makes of its inputs and gradients, whatever other weights did to those."
)


def kinds(comparison: Comparison) -> dict[str, str]:
    """The kinds of kernels that are compared: name in the tables, and that of the attribute."""
    return {name: kernel for name, kernel in _KERNELS.items() if kernel != "ntk" or comparison.measured.ntk is not None}


def summary(comparison: Comparison) -> Page:
    """The verdict, and the kernels at the end beside the first prediction."""
    deviations = comparison.deviations[0]
    yardstick = _YARDSTICK if comparison.narrowest is not None else ""
    notes = "".join(f" Note on {run.origin}: {note}." for run in comparison.runs for note in run.notes)
    words = f"{_WORDS}{yardstick}{_layout(comparison.measured)} {_losses(comparison, deviations)}{notes}"
    return Page((comparison.verdict, _first(comparison), words))


def _layout(measured: Trajectory) -> str:
    """What of the kernels is compared, where it is not everything."""
    averaged = " G and the NTK are averaged over equal outputs." if not measured.is_per_output else ""
    alone = " The NTK was not recorded: Phi and G alone are compared." if measured.ntk is None else ""
    return (averaged.replace(" and the NTK are", " is") if alone else averaged) + alone


def details(comparison: Comparison) -> Page:
    """Every table of the comparison."""
    measured, *predictions = origins = [run.origin for run in comparison.runs]
    counts = ", ".join(f"{count} of {origin}" for origin, count in zip(origins, comparison.recorded, strict=True))
    steps, end = comparison.steps, comparison.end
    return Page(
        (
            f"{measured} against {', '.join(predictions)}: {len(steps)} common steps, {int(steps[0])} to {int(steps[-1])} "
            f"(recorded: {counts}). ± is the standard error that the prediction's own sampling noise causes.",
            _kernels(comparison, f"Kernels at {_when(comparison)}", lambda values: values[end]),
            _kernels(comparison, f"Kernels, mean over the {end + 1} steps", lambda values: values[: end + 1].mean()),
            _functions(comparison),
            _learned(comparison),
            *_explained(comparison),
        )
    )


def _when(comparison: Comparison) -> str:
    return f"step {int(comparison.steps[comparison.end])}, time {comparison.measured.times[comparison.end].item():.4g}"


def _first(comparison: Comparison) -> Grid:
    """Every weight in a line, or those that are farthest off."""
    deviations, end = comparison.deviations[0], comparison.end
    layers = deviations.layers

    def farthest(position: int) -> float:
        kernels = [layers[position].forward, layers[position].backward]
        return max(_last(kernel.relative_error[end].item()) for kernel in kernels)

    chosen = sorted(sorted(range(len(layers)), key=farthest, reverse=True)[:_MOST])
    known = kinds(comparison)
    measures = (
        {name: comparison.yardstick(kernel, min(1, len(layers) - 1)) for name, kernel in known.items()}
        if layers
        else {}
    )
    with_widths = bool(comparison.widths) or None not in measures.values()
    rows = []
    for position in chosen:
        cells = []
        for name, attribute in known.items():
            kernel = getattr(layers[position], attribute)
            width = comparison.yardstick(attribute, position)
            cells += [_alignment(kernel.alignment[end]), _with_bar(kernel.relative_error[end].item(), math.nan)]
            cells += ["" if width is None or _is_given(attribute, position, len(layers)) else f"{width}"] * (
                with_widths and name != "NTK"
            )
        rows.append((str(position), layers[position].name, *cells))
    names = ("align", "error", "N") if with_widths else ("align", "error")
    columns = [(kernel, name) for kernel in known for name in (names if kernel != "NTK" else ("align", "error"))]
    rules = [len(rows) - 1]
    whole = deviations.ntk
    if whole is not None:
        ntk = [_alignment(whole.alignment[end]), _with_bar(whole.relative_error[end].item(), math.nan)]
        rows.append(("all", "", *[""] * (len(columns) - 2), *ntk))
    title = f"{comparison.measured.origin} against {comparison.predictions[0].origin} at {_when(comparison)}"
    some = f": the {_MOST} weights of {len(layers)} that are farthest off" if len(layers) > _MOST else ""
    return Grid(f"{title}{some}", ("l", "weight"), tuple(columns), tuple(rows), () if whole is None else tuple(rules))


def _is_given(kernel: str, position: int, count: int) -> bool:
    return (kernel, position) in (("forward", 0), ("backward", count - 1))


def _losses(comparison: Comparison, deviations: Deviations) -> str:
    """Loss and outputs in a sentence."""
    end = comparison.end
    measured, predicted = (run.losses[end].item() for run in comparison.runs[:2])
    differences = [("outputs", deviations.outputs), ("test outputs", deviations.test_outputs)]
    parts = [f"{name} by {d.rms[end].item():.2g} (rms)" for name, d in differences if d is not None]
    loss = "" if math.isnan(measured) else f"Loss {measured:.3g}, predicted {predicted:.3g}; "
    text = f"{loss}{' and '.join(parts)} from the prediction."
    return f"{text.replace(' by', ' differ by', 1)} Everything else: comparison.details()."


def _kernels(comparison: Comparison, title: str, reduce: Callable[[Tensor], Tensor]) -> Grid:
    known = kinds(comparison)
    columns = [(kernel, name) for kernel in known for name in ("align", "error")]
    rows: list[tuple[str, ...]] = []
    rules = []
    for position, name in enumerate(_names(comparison.measured)):
        for row, (prediction, deviations) in enumerate(_pairs(comparison)):
            layer = deviations.layers[position]
            cells = [cell for kernel in known.values() for cell in _cells(getattr(layer, kernel), reduce)]
            rows.append((*_head(position, name, row), prediction.origin, *cells))
        rules.append(len(rows) - 1)
    for row, (prediction, deviations) in enumerate(_pairs(comparison)):
        if deviations.ntk is not None:
            rows.append(("" if row else "all", "", prediction.origin, *[""] * 4, *_cells(deviations.ntk, reduce)))
    return Grid(title, ("l", "weight", "prediction"), tuple(columns), tuple(rows), tuple(rules))


def _head(position: int, name: str, row: int) -> tuple[str, str]:
    return ("", "") if row else (str(position), name)


def _cells(deviation: Deviation, reduce: Callable[[Tensor], Tensor]) -> tuple[str, str]:
    error, stderr = reduce(deviation.relative_error).item(), reduce(deviation.relative_error_stderr).item()
    return _alignment(reduce(deviation.alignment)), _with_bar(error, stderr)


def _alignment(value: Tensor) -> str:
    return f"{value.item():.4f}"


def _with_bar(value: float, stderr: float) -> str:
    """A value and its standard error; a value that is zero to float32 is given, not measured."""
    if value < 1e-6:
        return "0"
    return f"{value:.2g}" if math.isnan(stderr) else f"{value:.2g} ± {stderr:.1g}"


def _functions(comparison: Comparison) -> Grid:
    end = comparison.end
    has_test = bool((~comparison.measured.train).any())
    columns = [("", "loss"), ("", "difference"), ("outputs differ", "by (rms)")]
    columns += [("test outputs differ", "by (rms)")] * has_test
    blank = [""] * (len(columns) - 1)
    rows = [(comparison.measured.origin, _number(comparison.measured.losses[end]), *blank)]
    for prediction, deviations in _pairs(comparison):
        differences = (deviations.losses, deviations.outputs, deviations.test_outputs)
        cells = (_with_bar(d.rms[end].item(), d.noise[end].item()) for d in differences if d is not None)
        rows.append((prediction.origin, _number(prediction.losses[end]), *cells))
    return Grid(f"Loss and outputs at {_when(comparison)}", ("run",), tuple(columns), tuple(rows))


def _learned(comparison: Comparison) -> Grid:
    """How far kernels moved, and where to."""
    targets, end = comparison.targets, comparison.end
    known = kinds(comparison)
    columns = [(kernel, "moved") for kernel in known]
    columns += [] if targets is None else [("on targets:", "start"), ("on targets:", "end")]
    rows, rules = [], []
    for position, name in enumerate(_names(comparison.measured)):
        for row, run in enumerate(comparison.runs):
            layer = run.layers[position]
            cells = [_number(movement(getattr(layer, kernel))[end]) for kernel in known.values()]
            if targets is not None:
                alignments = target_alignments(layer.forward, targets)
                cells += [f"{alignments[0].item():.3f}", f"{alignments[end].item():.3f}"]
            rows.append((*_head(position, name, row), run.origin, *cells))
        rules.append(len(rows) - 1)
    title = "What was learned: movement |K(T) - K(0)| / |K(0)|" + (
        "" if targets is None else ", target alignment of Phi"
    )
    return Grid(title, ("l", "weight", "run"), tuple(columns), tuple(rows), tuple(rules))


def _explained(comparison: Comparison) -> Iterator[str | Grid]:
    """What the width explains, at the start and in what was learned."""
    for deviations in comparison.deviations:
        if deviations.consistency is not None:
            yield _scores_of(deviations.consistency)
            yield _Z


def _scores_of(judged: Consistency) -> Grid:
    parts = [judged.start] if judged.learned is None else [judged.start, judged.learned]
    names = ("start", "learned")[: len(parts)]
    columns = [(f"{part}: {kernel}", name) for part in names for kernel in ("Phi", "G", "weight") for name in ("", "z")]
    rows: list[tuple[str, ...]] = []
    for position, layer in enumerate(judged.start.layers):
        scored = [part.layers[position] for part in parts]
        kernels = [score for layer in scored for score in (layer.forward, layer.backward, layer.weight)]
        rows.append((str(position), layer.name, *_scores(kernels)))
    rule = len(rows) - 1
    if any(part.ntk is not None for part in parts):
        rows.append(("", "NTK", *_scores([score for part in parts for score in (part.ntk, None, None)])))
    rows.append(("", "outputs", *_scores([score for part in parts for score in (part.outputs, None, None)])))
    rows.append(("", "together", *_scores([judged.together, *[None] * (3 * len(parts) - 1)])))
    title = f"Deviation in units of a typical network's of width N = {judged.width}, and its z-score"
    return Grid(title, ("l", "weight"), tuple(columns), tuple(rows), (rule,))


def _scores(scores: Iterable[Score | None]) -> Iterator[str]:
    for score in scores:
        yield from ("", "") if score is None else (f"{score.ratio:.2f}", f"{score.z:.1f}")


def _number(value: Tensor) -> str:
    return "0" if abs(value.item()) < 1e-6 else f"{value.item():.3g}"


def _last(error: float) -> float:
    """NaN is farthest off of all."""
    return math.inf if math.isnan(error) else error


def _names(run: Trajectory) -> list[str]:
    return [layer.name for layer in run.layers]


def _pairs(comparison: Comparison) -> Iterator[tuple[Trajectory, Deviations]]:
    return zip(comparison.predictions, comparison.deviations, strict=True)
