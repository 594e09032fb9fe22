"""A comparison as a table in a terminal."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from torch import Tensor

from torch_dmft.comparison.consistency import Consistency, Score
from torch_dmft.comparison.deviation import Deviation
from torch_dmft.comparison.richness import movement, target_alignments
from torch_dmft.core.trajectory import Trajectory

if TYPE_CHECKING:
    from torch_dmft.comparison.comparison import Comparison, Deviations

# Wide enough that no table is cut; sentences are wrapped sooner. A narrower terminal gets no alignments.
_WIDTH, _SENTENCE, _NARROW = 200, 100, 100


def text(comparison: Comparison) -> str:
    """The table as plain text."""
    console = Console(file=io.StringIO(), width=_WIDTH, color_system=None, force_terminal=False)
    console.print(render(comparison))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in lines)


@dataclass(frozen=True)
class Report:
    """The table as a rich renderable: kernels, outputs and loss, what was learned, the verdict."""

    comparison: Comparison

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Fit the terminal."""
        yield _sections(self.comparison, alignments=options.max_width >= _NARROW)
        yield Padding(Text(self.comparison.verdict), (0, max(0, options.max_width - _SENTENCE), 0, 0))


def render(comparison: Comparison) -> Report:
    """The table as a rich renderable, which drops the alignments where they do not fit."""
    return Report(comparison)


def _sections(comparison: Comparison, *, alignments: bool) -> RenderableType:
    measured, *predictions = origins = [run.origin for run in comparison.runs]
    counts = ", ".join(f"{count} of {origin}" for origin, count in zip(origins, comparison.recorded, strict=True))
    steps = comparison.steps
    end = f"step {int(steps[-1])}, time {comparison.measured.times[-1].item():.4g}"
    numbers = f"{'alignment, and ' if alignments else ''}relative error ± its standard error"
    return Group(
        Text(f"{measured} against {', '.join(predictions)}", style="bold"),
        Text(f"{len(steps)} common steps, {int(steps[0])} to {int(steps[-1])} (recorded: {counts})", style="dim"),
        _kernels(comparison, f"Kernels at {end}: {numbers}", lambda values: values[-1], alignments),
        _kernels(comparison, f"Kernels, mean over the {len(steps)} steps", lambda values: values.mean(), alignments),
        _functions(comparison, end),
        _learned(comparison),
        *(_explained(each.consistency) for each in comparison.deviations if each.consistency is not None),
    )


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for column in columns:
        words = column in ("weight", "run", "prediction")
        table.add_column(column, justify="left" if words else "right", no_wrap=True)
    return table


def _kernels(comparison: Comparison, title: str, reduce: Callable[[Tensor], Tensor], alignments: bool) -> Table:
    numbers = ("align", "error") if alignments else ("error",)
    columns = [f"{kernel}\n{number}" for kernel in ("Phi", "G", "NTK") for number in numbers]
    table = _table(title, "l", "weight", "prediction", *columns)
    first = 0 if alignments else 1
    last = len(comparison.predictions) - 1
    for position, name in enumerate(_names(comparison.measured)):
        for row, (prediction, deviations) in enumerate(_pairs(comparison)):
            layer = deviations.layers[position]
            kernels = (layer.forward, layer.backward, layer.ntk)
            cells = [cell for kernel in kernels for cell in _cells(kernel, reduce)[first:]]
            table.add_row(*_head(position, name, row), prediction.origin, *cells, end_section=row == last)
    for row, (prediction, deviations) in enumerate(_pairs(comparison)):
        sum_over_weights = _cells(deviations.ntk, reduce)[first:]
        table.add_row("" if row else "all", "", prediction.origin, *[""] * (2 * len(numbers)), *sum_over_weights)
    return table


def _head(position: int, name: str, row: int) -> tuple[str, str]:
    return ("", "") if row else (str(position), name)


def _cells(deviation: Deviation, reduce: Callable[[Tensor], Tensor]) -> tuple[str, str]:
    error, stderr = reduce(deviation.relative_error).item(), reduce(deviation.relative_error_stderr).item()
    return f"{reduce(deviation.alignment).item():.4f}", _with_bar(error, stderr)


def _with_bar(value: float, stderr: float) -> str:
    """A value and its standard error; a value that is zero to float32 is given, not measured."""
    if value < 1e-6:
        return "0"
    return f"{value:.2g}" if math.isnan(stderr) else f"{value:.2g} ± {stderr:.1g}"


def _functions(comparison: Comparison, end: str) -> Table:
    columns = ["run", "loss", "difference", "outputs differ by (rms)"]
    has_test = bool((~comparison.measured.train).any())
    table = _table(f"Loss and outputs at {end}", *columns, *(["test outputs differ by (rms)"] if has_test else []))
    table.add_row(comparison.measured.origin, _number(comparison.measured.losses[-1]))
    for prediction, deviations in _pairs(comparison):
        differences = (deviations.losses, deviations.outputs, deviations.test_outputs)
        cells = (_with_bar(each.rms[-1].item(), each.noise[-1].item()) for each in differences if each is not None)
        table.add_row(prediction.origin, _number(prediction.losses[-1]), *cells)
    return table


def _learned(comparison: Comparison) -> Table:
    targets = comparison.targets
    table = _table(
        "What was learned: movement |K(T) - K(0)| / |K(0)|" + ("" if targets is None else ", target alignment of Phi"),
        *("l", "weight", "run", "Phi\nmoved", "G\nmoved", "NTK\nmoved"),
        *([] if targets is None else ["on targets:\nstart", "\nend"]),
    )
    for position, name in enumerate(_names(comparison.measured)):
        for row, run in enumerate(comparison.runs):
            layer = run.layers[position]
            cells = [_number(movement(kernel)[-1]) for kernel in (layer.forward, layer.backward, layer.ntk)]
            if targets is not None:
                alignments = target_alignments(layer.forward, targets)
                cells += [f"{alignments[0].item():.3f}", f"{alignments[-1].item():.3f}"]
            is_last = row == len(comparison.predictions)
            table.add_row(*_head(position, name, row), run.origin, *cells, end_section=is_last)
    return table


def _explained(found: Consistency) -> Table:
    """What the width explains, at the start and in what was learned; "weight" is what a weight makes of what comes in."""
    columns = ["Phi", "z", "G", "z", "weight", "z"]
    parts = [found.start] if found.learned is None else [found.start, found.learned]
    names = [f"{part}\n{column}" for part in ("start", "learned")[: len(parts)] for column in columns]
    title = f"Deviation in units of a typical network's of width N = {found.width}, and its z-score"
    table = _table(title, "l", "weight", *names)
    for position, layer in enumerate(found.start.layers):
        own = [part.layers[position] for part in parts]
        kernels = [each for layer in own for each in (layer.forward, layer.backward, layer.weight)]
        is_last = position == len(found.start.layers) - 1
        table.add_row(str(position), layer.name, *_scores(kernels), end_section=is_last)
    table.add_row("", "NTK", *_scores([each for part in parts for each in (part.ntk, None, None)]))
    table.add_row("", "outputs", *_scores([each for part in parts for each in (part.outputs, None, None)]))
    table.add_row("", "together", *_scores([found.together]))
    return table


def _scores(scores: Iterable[Score | None]) -> Iterator[str]:
    for score in scores:
        yield from ("", "") if score is None else (f"{score.ratio:.2f}", f"{score.z:.1f}")


def _number(value: Tensor) -> str:
    return "0" if abs(value.item()) < 1e-6 else f"{value.item():.3g}"


def _names(run: Trajectory) -> list[str]:
    return [layer.name for layer in run.layers]


def _pairs(comparison: Comparison) -> Iterator[tuple[Trajectory, Deviations]]:
    return zip(comparison.predictions, comparison.deviations, strict=True)
