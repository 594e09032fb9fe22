"""Transferred: what a sweep says of how well the learning rate transfers; as a table, JSON and Markdown."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch_dmft.core.arguments import checked
from torch_dmft.core.grid import Grid
from torch_dmft.core.listed import listed
from torch_dmft.referee.one_run import Run
from torch_dmft.referee.optimum import OF_GRID, Estimate, Parabola, best_of, estimated, loss_at, means, parabola, slope
from torch_dmft.referee.sweep import curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = "torch_dmft/transfer/1"
"""Name and version of the JSON."""

TRANSFERS, DOES_NOT, UNDECIDED = "transfers", "does not transfer", "not decided"


@dataclass(frozen=True, eq=False, repr=False)
class Transferred:
    """What came of a sweep; ``print`` it.

    Attributes:
        axis: what was changed, "width" for example.
        values: of the axis, in order.
        base: the rate of power 0 of the grid, lr = base * 2^power.
        seeds: networks at every value and rate.
        steps: of every training.
        runs: all of them, by value, power and seed.
        best: value -> the power around which all seeds were trained.
        theory: power -> loss at infinite size, if that was given.
        takes_rate: whether rates are what the factory was given, or factors of the rates that its optimizers have.
        tolerance: largest exponent of the best rate that counts as none.
        accept: largest cost of a transferred rate, relative to the least loss, that is called enough.
        notes: what was chosen for the user: one sentence each.
    """

    axis: str
    values: tuple[int, ...]
    base: float
    seeds: int
    steps: int
    runs: tuple[Run, ...]
    best: Mapping[int, int]
    theory: Mapping[int, float] | None = None
    takes_rate: bool = True
    tolerance: float = 0.15
    accept: float = 0.02
    notes: tuple[str, ...] = ()

    @cached_property
    def curves(self) -> dict[int, dict[int, list[float]]]:
        """Value -> power -> the losses of all seeds; infinite where training diverged."""
        return {value: curve(self.runs, value, range(self.seeds)) for value in self.values}

    def lr(self, power: int | float) -> float:
        """The rate of a power of the grid."""
        return self.base * 2.0**power

    def _fit(self, value: int, seeds: Sequence[int]) -> tuple[dict[int, float], Parabola]:
        mean = means(self.curves[value], seeds)
        return mean, parabola(mean, self.best[value])

    @cached_property
    def optima(self) -> dict[int, Estimate]:
        """Value -> log2 of the best rate over ``base``; to half a step of the grid where no parabola has its minimum there."""
        found = {
            value: estimated(lambda seeds, value=value: self._fit(value, seeds)[1].at, self.seeds)  # type: ignore[misc]
            for value in self.values
        }
        return {value: Estimate(one.value, math.hypot(one.reach, self._of_grid(value))) for value, one in found.items()}

    def _of_grid(self, value: int) -> float:
        return 0.0 if self._fit(value, range(self.seeds))[1].bend else OF_GRID

    @cached_property
    def least(self) -> dict[int, float]:
        """Value -> the loss at the best rate, by the parabola."""
        return {value: self._fit(value, range(self.seeds))[1].least for value in self.values}

    @cached_property
    def exponent(self) -> Estimate:
        """By which power of the axis the best rate goes; 0 if it transfers."""
        found = estimated(
            lambda seeds: slope(self.values, [self._fit(v, seeds)[1].at for v in self.values]), self.seeds
        )
        return Estimate(found.value, math.hypot(found.reach, self._scatter([self._of_grid(v) for v in self.values])))

    def _scatter(self, reaches: Sequence[float]) -> float:
        """What intervals of single values make of that of an exponent."""
        return math.hypot(
            *(
                slope(self.values, [reach * (v == at) for v in self.values])
                for at, reach in zip(self.values, reaches, strict=True)
            )
        )

    @cached_property
    def costs(self) -> dict[int, Estimate]:
        """Value -> by how much the loss at the largest value is above its least one, relatively, at this value's best rate."""

        def cost(value: int, seeds: Sequence[int]) -> float:
            mean, near = self._fit(self.values[-1], seeds)
            above = loss_at(mean, near, self._fit(value, seeds)[1].at) - near.least  # of a loss that may be negative
            return above if math.isnan(above) or not near.least else max(0.0, above / abs(near.least))

        return {
            value: estimated(lambda seeds, value=value: cost(value, seeds), self.seeds)  # type: ignore[misc]
            for value in self.values[:-1]
        }

    def _ceiling(self, value: int, seed: int) -> float:
        """Half a step of the grid above the last stable rate of a seed, from the best rate on; NaN if none diverged."""
        here = [run for run in self.runs if run.value == value and run.seed == seed and run.power >= self.best[value]]
        powers = {run.power: run.holds for run in here}
        broken = [power for power, holds in powers.items() if not holds]
        held = [power for power, holds in powers.items() if holds and power < min(broken, default=math.inf)]
        return (max(held) + min(broken)) / 2 if held and broken else math.nan

    @cached_property
    def ceilings(self) -> dict[int, Estimate]:
        """Value -> log2 of the largest stable rate over ``base``, to half a step of the grid; NaN where nothing diverged."""
        return {
            value: estimated(
                lambda seeds, value=value: sum(self._ceiling(value, s) for s in seeds) / len(seeds),  # type: ignore[misc]
                self.seeds,
            )
            for value in self.values
        }

    @cached_property
    def ceiling_exponent(self) -> Estimate:
        """By which power of the axis the largest stable rate goes; each is known to half a step of the grid."""
        found = estimated(
            lambda seeds: slope(
                self.values, [sum(self._ceiling(v, s) for s in seeds) / len(seeds) for v in self.values]
            ),
            self.seeds,
        )
        return Estimate(found.value, math.hypot(found.reach, self._scatter([OF_GRID] * len(self.values))))

    @property
    def word(self) -> str:
        """One of "transfers", "does not transfer" and "not decided"."""
        exponent = self.exponent
        if any(math.isinf(cost.value) for cost in self.costs.values()):
            return DOES_NOT
        if abs(exponent.value) > self.tolerance and abs(exponent.value) > exponent.reach:
            return DOES_NOT
        return (
            TRANSFERS if abs(exponent.value) <= self.tolerance and exponent.reach <= 2 * self.tolerance else UNDECIDED
        )

    @property
    def passed(self) -> bool:
        """Whether the rate transfers."""
        return self.word == TRANSFERS

    @property
    def exit_code(self) -> int:
        """Of the command: 0 transfers, 1 does not, 3 not decided; 2 is for what could not run."""
        return {TRANSFERS: 0, DOES_NOT: 1, UNDECIDED: 3}[self.word]

    @property
    def seeds_needed(self) -> int:
        """About how many seeds would decide it; 0 if it is decided."""
        if self.word != UNDECIDED:
            return 0
        if not self.exponent.reach > 0:
            return max(3, self.seeds + 1)
        wanted = max(2 * self.tolerance, abs(self.exponent.value))
        return max(self.seeds + 1, math.ceil(self.seeds * (self.exponent.reach / wanted) ** 2))

    @property
    def enough(self) -> int | None:
        """The smallest value from which on every best rate costs at most ``accept``, by the upper end; None if none does."""
        found = None
        for value in reversed(self.values[:-1]):
            if not self.costs[value].high <= self.accept:  # NaN neither
                break
            found = value
        return found

    @property
    def sentences(self) -> tuple[str, ...]:
        """The verdict in words."""
        first, last, exponent = self.values[0], self.values[-1], self.exponent
        by = f"the best rate goes like {self.axis}^{_shown(exponent)}"
        factor = 2 ** (self.optima[last].value - self.optima[first].value)
        said = [f"{self.word}: {by}, by a factor {factor:.2g} from {first} to {last}"]
        lost = [value for value, cost in self.costs.items() if math.isinf(cost.value)]
        if lost:
            rates, diverge = ("rates", "diverge") if len(lost) > 1 else ("rate", "diverges")
            said.append(f"the best {rates} of {listed(map(str, lost))} {diverge} at {last}")
        if self.word == UNDECIDED:
            said.append(f"give more seeds to decide it, about {self.seeds_needed}, or more values of the {self.axis}")
        if self.seeds == 1:
            return (*said, "one seed has no interval")
        enough = self.enough
        if enough is not None:
            cost = self.costs[enough]
            said.append(
                f"base {self.axis} {enough} is enough: its best rate costs {cost.value:.1%} of the loss at {last} "
                f"(at most {cost.high:.1%})"
            )
        else:
            cost = self.costs[self.values[-2]]
            costs = "diverges" if math.isinf(cost.value) else f"may cost {cost.high:.1%} of the loss"
            said.append(
                f"no base {self.axis} below {last} is shown to be enough: the best rate of {self.values[-2]} {costs} there, "
                f"where {self.accept:.1%} are accepted"
            )
        if math.isfinite(self.ceiling_exponent.value):
            said.append(f"the largest stable rate goes like {self.axis}^{_shown(self.ceiling_exponent)}")
        if self.theory is not None:
            at = self._of_theory().at
            said.append(
                f"theory's best rate at infinite {self.axis} is {self.lr(at):.3g}, {2 ** (at - self.optima[last].value):.2g} "
                f"times that of {last}"
            )
        return tuple(said)

    def _of_theory(self) -> Parabola:
        assert self.theory is not None  # asked for where there is one
        return parabola(self.theory, best_of(self.theory))

    def table(self) -> Grid:
        """A row for every value of the axis."""
        rows = []
        for value in self.values:
            optimum, ceiling = self.optima[value], self.ceilings[value]
            rows.append(
                (
                    str(value),
                    f"{self.lr(optimum.value):.3g}",
                    self._range(optimum),
                    f"{self.least[value]:.4g}",
                    _cost(self.costs.get(value)),
                    _upper(self.costs.get(value)),
                    f"{self.lr(ceiling.value):.2g}" if math.isfinite(ceiling.value) else "–",
                )
            )
        if self.theory is not None:
            near = self._of_theory()
            rows.append(("theory", f"{self.lr(near.at):.3g}", "", f"{near.least:.4g}", "", "", ""))
        numbers = (
            ("best", "lr" if self.takes_rate else "factor"),
            ("best", "95%"),
            ("", "loss"),
            (f"cost at {self.values[-1]}", "of its lr"),
            (f"cost at {self.values[-1]}", "at most"),
            ("largest", "stable"),
        )
        return Grid(self.title, (self.axis,), numbers, tuple(rows))

    @property
    def title(self) -> str:
        """What was swept."""
        seeds = f"{self.seeds} seed{'s' * (self.seeds != 1)}"
        return f"learning rate against {self.axis}: {self.steps} steps, {seeds}, {len(self.runs)} runs"

    def _range(self, estimate: Estimate) -> str:
        if math.isnan(estimate.reach):
            return "–"
        return f"{self.lr(estimate.low):.2g} to {self.lr(estimate.high):.2g}"

    def __rich__(self) -> Grid:
        return self.table()

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return f"<Transferred: {self.word}, {self.axis}^{_shown(self.exponent)}>"

    def text(self, width: int = 80) -> str:
        """The sentences and the table, of so many columns."""
        from textwrap import fill

        said = "\n".join(fill(f"{line}.", width) for line in self.sentences)
        notes = "\n".join(fill(f"{line}.", width) for line in self.notes)
        return "\n\n".join(part for part in (said, self.table().text(width), notes) if part)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers, words, lists and dictionaries; None for what is not finite."""
        return plain(
            {
                "schema": SCHEMA,
                "verdict": self.word,
                "exit_code": self.exit_code,
                "sentences": list(self.sentences),
                "axis": self.axis,
                "values": list(self.values),
                "steps": self.steps,
                "seeds": self.seeds,
                "seeds_needed": self.seeds_needed,
                "rates_are": "learning rates" if self.takes_rate else "factors",
                "tolerance": self.tolerance,
                "accept": self.accept,
                "exponent": _interval(self.exponent),
                "largest_stable_exponent": _interval(self.ceiling_exponent),
                "enough": self.enough,
                "by_value": [
                    {
                        "value": value,
                        "best_lr": self.lr(self.optima[value].value),
                        "best_lr_low": self.lr(self.optima[value].low),
                        "best_lr_high": self.lr(self.optima[value].high),
                        "loss": self.least[value],
                        "cost_at_largest": None if value not in self.costs else _interval(self.costs[value]),
                        "largest_stable_lr": self.lr(self.ceilings[value].value),
                        "losses": [
                            {"lr": self.lr(power), "seeds": losses} for power, losses in self.curves[value].items()
                        ],
                    }
                    for value in self.values
                ],
                "theory": None
                if self.theory is None
                else {
                    "best_lr": self.lr(self._of_theory().at),
                    "loss": self._of_theory().least,
                    "losses": [{"lr": self.lr(power), "loss": loss} for power, loss in self.theory.items()],
                },
                "runs": [{**asdict(run), "lr": self.lr(run.power)} for run in self.runs],
                "notes": list(self.notes),
            }
        )

    def to_json(self, *, indent: int | None = 2) -> str:
        """``to_dict`` as text."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def to_markdown(self) -> str:
        """For a pull request."""
        mark = {TRANSFERS: "✅", DOES_NOT: "❌"}.get(self.word, "❔")
        head, *others = self.sentences
        lines = [f"### {mark} The learning rate {head}.", *(f"- {line[0].upper()}{line[1:]}." for line in others)]
        return "\n".join([*lines, "", self.table().markdown(), *(f"\n{line}." for line in self.notes)]) + "\n"

    def figure(self) -> Figure:
        """Loss against rate, a line for every value, and the best and the largest stable rate against the axis."""
        from torch_dmft.report.transfer import figure  # one floor up, taken only when it is called

        return figure(self)

    @checked
    def write_html(self, path: str | Path) -> None:
        """Write the result as one page that opens from disk: sentences, figure and tables.

        Args:
            path: of the HTML file; an existing one is replaced.
        """
        from torch_dmft.report import write_sheet  # likewise

        write_sheet(self, path)


def _shown(estimate: Estimate) -> str:
    reach = "" if math.isnan(estimate.reach) else f" ± {estimate.reach:.2f}"
    return f"({estimate.value:+.2f}{reach})"


def _cost(cost: Estimate | None) -> str:
    if cost is None:
        return ""
    return "diverges" if math.isinf(cost.value) else f"{cost.value:.1%}"


def _upper(cost: Estimate | None) -> str:
    return "" if cost is None else f"{cost.high:.1%}" if math.isfinite(cost.high) else "–"


def _interval(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def plain(what: Any) -> Any:
    """The same without numbers that JSON does not know."""
    if isinstance(what, dict):
        return {name: plain(value) for name, value in what.items()}
    if isinstance(what, list | tuple):
        return [plain(value) for value in what]
    return None if isinstance(what, float) and not math.isfinite(what) else what
