"""Sweep: which runs say where the best learning rate is, at every value of the axis; coarse first, then fine.

At the first value one seed tries the rates that were asked for, to within a factor of two. At every value a seed then walks
along rates a factor of two apart until the best has two worse ones on either side, starting from the best of the value before;
all seeds train these five, which may move the best again. Rates beyond two worse ones are not tried: they are clearly worse.
Then every seed goes up from there to the first rate at which it diverges, which ends early. Last, the largest value is trained
at the best rates of all others, to see what these cost there.

Which run comes next follows from the results of those before alone, so that a sweep that was interrupted ends with the same
runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch_dmft.core.errors import InvalidInputError
from torch_dmft.referee.ledger import Ledger
from torch_dmft.referee.one_run import Run
from torch_dmft.referee.optimum import AROUND, best_of, means, parabola
from torch_dmft.referee.workers import Told, Workers

_FARTHEST = 24
"""Steps of the grid from the rates that were asked for at which the search is given up."""
_HIGHEST = 12
"""Steps of the grid above the best rate at which no more is looked for where training becomes unstable."""


@dataclass
class Sweep:
    """The runs of a sweep as they are asked for.

    Attributes:
        values: of the axis, in order.
        base: the rate of power 0.
        coarse: powers that are tried first.
        steps: of every run.
        seeds: how many.
        ledger: what was trained already.
        workers: train what was not.
        told: is told of every run; None for nobody.
        best: value -> the power around which all seeds were trained.
    """

    values: Sequence[int]
    base: float
    coarse: Sequence[int]
    steps: int
    seeds: int
    ledger: Ledger
    workers: Workers[Run]
    told: Told | None
    best: dict[int, int]

    def run(self) -> None:
        """Train everything.

        Raises:
            InvalidInputError: if there is no best rate: all diverge, or the loss does not depend on the rate.
        """
        first = self.values[0]
        self._need((first, power, 0) for power in self.coarse)
        center = best_of({power: self._loss(first, power, 0) for power in self.coarse})
        for value in self.values:
            center = self.best[value] = self._settled(value, center)
            self._ceilings(value, center)
        last = self.values[-1]
        self._need((last, p, s) for value in self.values[:-1] for p in self._beside(value) for s in range(self.seeds))

    def _settled(self, value: int, center: int) -> int:
        """The power around which the best rate of a value is, trained with all seeds."""
        for seeds in ([0], list(range(self.seeds))):
            seen: set[int] = set()
            while center not in seen:
                seen.add(center)
                self._require_near(value, center)
                near = range(center - AROUND, center + AROUND + 1)
                self._need((value, power, seed) for power in near for seed in seeds)
                center = best_of(means(self.curve(value, seeds), range(len(seeds))))
        return center

    def _require_near(self, value: int, center: int) -> None:
        low, high = min(self.coarse) - _FARTHEST, max(self.coarse) + _FARTHEST
        if not low <= center <= high:
            losses = {run.loss for run in self.ledger if run.value == value}
            still = f"the loss still falls at lr = {self.rate(center):.3g}"
            same = "all rates diverge" if math.inf in losses else "the loss is the same at all rates"
            raise InvalidInputError(
                "There must be a best learning rate.",
                got=f"at {value} {same if len(losses) == 1 else still}",
                remedy="a set-up that learns in these steps, with lr= of its optimizer or factory(value, lr) that uses it; or "
                "other lrs=",
            )

    def _ceilings(self, value: int, center: int) -> None:
        """Go up with every seed to the first rate that diverges."""
        open_ones = set(range(self.seeds))
        for power in range(center - AROUND, center + _HIGHEST + 1):
            self._need((value, power, seed) for seed in sorted(open_ones))
            open_ones = {seed for seed in open_ones if math.isfinite(self._loss(value, power, seed))}

    def _beside(self, value: int) -> tuple[int, ...]:
        """The powers on both sides of the best rate of a value, by the same fit that places it."""
        curve = self.curve(value, range(self.seeds))
        x = parabola(means(curve, range(self.seeds)), self.best[value]).at
        return tuple(sorted({math.floor(x), math.ceil(x)}))

    def curve(self, value: int, seeds: Iterable[int]) -> dict[int, list[float]]:
        """Power -> losses of these seeds, where all of them were trained."""
        return curve(self.ledger, value, list(seeds))

    def rate(self, power: int) -> float:
        """The learning rate of a power."""
        return self.base * 2.0**power

    def _loss(self, value: int, power: int, seed: int) -> float:
        return self.ledger.runs[value, power, seed].loss

    def _need(self, runs: Iterable[tuple[int, int, int]]) -> None:
        missing = [key for key in dict.fromkeys(runs) if key not in self.ledger.runs]
        tasks = [(value, power, seed, self.rate(power), self.steps) for value, power, seed in missing]
        for number, run in enumerate(self.workers.train(tasks), start=1):
            self.ledger.add(run)
            if self.told is not None:
                rest = missing[number:]
                self.told(len(self.ledger.runs), *self._ahead(run, len(rest)), self._said(run))

    def _ahead(self, run: Run, waiting: int) -> tuple[int, float]:
        """About how many runs there will be, and the seconds until then."""
        usual = self.seeds * (2 * AROUND + 4)
        seconds = {
            value: [one.seconds for one in self.ledger if one.value == value and one.steps == self.steps]
            for value in self.values
        }
        known = {value: sum(times) / len(times) for value, times in seconds.items() if times}
        total, left, last = len(self.ledger.runs), 0.0, run.seconds
        for value in self.values:
            there = sum(one.value == value for one in self.ledger)
            more = max(waiting, usual - there) if value == run.value else max(0, usual - there)
            last = known.get(value, 2 * last)
            total, left = total + more, left + more * last
        return total, left / self.workers.count

    def _said(self, run: Run) -> str:
        loss = f"loss {run.loss:.4g}" if run.holds else "diverged"
        return f"{run.value}, lr {self.rate(run.power):.3g}, seed {run.seed}: {loss}"


def curve(runs: Ledger | Iterable[Run], value: int, seeds: Sequence[int]) -> dict[int, list[float]]:
    """Power -> the losses of these seeds at a value, where all of them were trained."""
    there: dict[int, dict[int, float]] = {}
    for run in runs:
        if run.value == value:
            there.setdefault(run.power, {})[run.seed] = run.loss
    return {power: [row[seed] for seed in seeds] for power, row in sorted(there.items()) if set(seeds) <= set(row)}
