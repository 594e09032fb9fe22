"""Verdict: what a check found, as a table for people, as JSON for machines and as Markdown for a pull request."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch_dmft.core.arguments import checked
from torch_dmft.core.grid import Grid
from torch_dmft.core.page import Page
from torch_dmft.core.plain import as_json, plain
from torch_dmft.referee.blame import Fault, faults
from torch_dmft.referee.details import alignment_table, alignments, parameter_table
from torch_dmft.referee.effective import effective
from torch_dmft.referee.halts import NOTHING_MOVES, halt_sentence, halted
from torch_dmft.referee.judge import Finding, Reading, Rule, readings
from torch_dmft.referee.look import Place
from torch_dmft.referee.measure import Measured
from torch_dmft.referee.roles import Role, role
from torch_dmft.referee.words import sentence

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = "torch_dmft/check/1"
"""Name and version of the JSON."""

RIGHT, WRONG, UNDECIDED = "right", "wrong", "not decided"
"""The words of a verdict."""

_SHOWN = 4
"""Faults of which a table tells everything."""


@dataclass(frozen=True, eq=False, repr=False)
class Verdict:
    """What a check found; ``print`` it.

    Attributes:
        measured: everything that was seen.
        rule: what was taken for right.
    """

    measured: Measured
    rule: Rule

    @cached_property
    def readings(self) -> tuple[Reading, ...]:
        """Every exponent that was judged, in forward order."""
        return readings(self.measured, self.rule)

    @cached_property
    def faults(self) -> tuple[Fault, ...]:
        """What is to blame, in forward order."""
        return faults(self.measured, self.readings, self.rule)

    @property
    def culprit(self) -> Fault | None:
        """The first of the faults; None where there is none."""
        return self.faults[0] if self.faults else None

    @cached_property
    def diverged(self) -> tuple[int, ...]:
        """Widths at which the loss of a seed was not finite at the last step."""
        lost = ~self.measured.losses[-1].isfinite().all(1)
        return tuple(width for width, is_lost in zip(self.measured.widths, lost.tolist(), strict=True) if is_lost)

    @property
    def _diverges_by_width(self) -> bool:
        """Whether all seeds diverge at the widest, and none at the narrowest; a few do at the edge of a rate that is right."""
        order = sorted(range(len(self.measured.widths)), key=self.measured.widths.__getitem__)
        lost = ~self.measured.losses[-1].isfinite()
        return self.measured.seeds > 1 and bool(lost[order[-1]].all() and not lost[order[0]].any())

    @cached_property
    def halted(self) -> dict[str, tuple[int, ...]]:
        """Parameters that move at some widths and are held still at others: the widths of the second kind."""
        return halted(self.measured)

    @property
    def word(self) -> str:
        """One of "right", "wrong" and "not decided"."""
        if self.faults or self.halted or self._diverges_by_width or any(one.departs for one in self.readings):
            return WRONG
        return UNDECIDED if self.undecided or self.diverged or not self.moves else RIGHT

    @property
    def moves(self) -> bool:
        """Whether there is anything to judge beside the start."""
        return any(one.quantity != "start" for one in self.readings)

    @property
    def passed(self) -> bool:
        """Whether the set-up is right."""
        return self.word == RIGHT

    @property
    def exit_code(self) -> int:
        """Of the command: 0 right, 1 wrong, 3 not decided; 2 is for what could not run."""
        return {RIGHT: 0, WRONG: 1, UNDECIDED: 3}[self.word]

    @cached_property
    def undecided(self) -> tuple[Place, ...]:
        """Matrices and outputs of which no window of steps is decided, and vectors that may depart from the first step on."""
        return tuple(
            place
            for place in self.measured.places
            if self._found(place) is Finding.UNDECIDED and (self._counts(place) or self._may_depart(place))
        )

    @property
    def hidden(self) -> tuple[Place, ...]:
        """Those of which nothing is decided as overlaps with unrelated rows hide it, at widths below the number of rows."""
        among = {one.place for one in self.readings if one.is_hidden}
        return tuple(place for place in self.undecided if place in among)

    def _may_depart(self, place: Place) -> bool:
        return any(
            one.finding is Finding.UNDECIDED and abs(one.beside.exponent) > self.rule.tolerance
            for one in self.readings
            if one.place == place and one.quantity == "own" and one.steps[0] == self.measured.steps[0]
        )

    @property
    def _still(self) -> tuple[str, ...]:
        """Matrices that move at no width."""
        places = [place for place in self.measured.places if self._found(place) is Finding.STILL]
        return tuple(dict.fromkeys(place[0] for place in places if place[0] and role(self.measured, place).is_matrix))

    @property
    def seeds_needed(self) -> int:
        """How many seeds would settle what is not decided; 0 if all is."""
        open_ones = [
            min(one.seeds for one in several)
            for place in self.undecided
            if (several := [one for one in self.readings if one.place == place and one.finding is Finding.UNDECIDED])
        ]
        return max(open_ones, default=0)

    def _counts(self, place: Place) -> bool:
        kind = role(self.measured, place)
        return kind.is_matrix or kind is Role.OUTPUTS

    def _found(self, place: Place) -> Finding:
        """What is found at a place: a departure of any kind, else whether its own term (of outputs the change) is decided."""
        here = [one for one in self.readings if one.place == place and not one.in_eval]
        departed = next((one.finding for one in here if one.departs), None)
        if departed is not None:
            return departed
        main = [one for one in here if one.quantity in ("own", "change")]
        if not main:
            return Finding.STILL
        is_open = any(
            one.finding is Finding.UNDECIDED and (one.is_hidden or abs(one.beside.exponent) > self.rule.tolerance)
            for one in main
        )
        is_right = any(one.finding is Finding.RIGHT for one in main) and not is_open
        return Finding.RIGHT if is_right else Finding.UNDECIDED

    def _exponent(self, place: Place, quantity: str) -> Reading | None:
        """Of the windows of a quantity at a place the one that departs, else the one that is farthest from 0."""
        here = [one for one in self.readings if one.place == place and one.quantity == quantity and not one.in_eval]
        return max(here, key=lambda one: (one.departs, abs(one.law.exponent)), default=None)

    @property
    def sentences(self) -> tuple[str, ...]:
        """The verdict in words: what is wrong where and what mends it, or what is missing."""
        return tuple(self._sentences())

    def _sentences(self) -> Iterator[str]:
        widths = self.measured.widths
        yield from (sentence(fault, self.measured) for fault in self.faults)
        if self.diverged:
            remedy = "" if self.word == WRONG else " Its rate is at the edge of stability: give a smaller one."
            yield f"The loss is no longer finite at the last step at N = {', '.join(map(str, self.diverged))}.{remedy}"
        departed = [one for one in self.readings if one.departs]
        for name, still in self.halted.items():
            yield halt_sentence(name, still, self.measured)
        if departed and not self.faults:
            one = departed[0]
            name = "the outputs in eval mode" if one.in_eval else one.place[0] or one.place[2] or "the outputs"
            yield f"{name}: {one.quantity} {one.finding} as N^{one.law.exponent:+.2f} ±{one.reach:.2f}; no setting explains it."
        if self.word == RIGHT:
            yield (
                f"Every weight moves what it makes alike at every width, N = {min(widths)} to {max(widths)}: no exponent "
                f"departs from 0 by more than {self.rule.tolerance:g}."
            )
            if self._still:
                yield f"Not judged, as nothing moves it at any width: {', '.join(self._still)}."
        if not self.moves and not self.diverged:
            yield NOTHING_MOVES
        elif self.word == UNDECIDED and self.measured.seeds < 2:
            yield "A single seed has no error: give more seeds (4 or more)."
        elif self.hidden and self.word == UNDECIDED:
            name = self.hidden[0][0] or "the outputs"
            yield (
                f"{name}: a step acts on unrelated rows (or tokens) of a batch as much as on its own, by overlaps which fade "
                "only where N is far above their number; they hide the rest. Give wider widths, or fewer rows."
            )
        elif self.undecided and self.word == UNDECIDED:
            names = ", ".join(place[0] or "the outputs" for place in self.undecided[:3])
            seeds = f"about {self.seeds_needed}"
            yield f"The scatter is too large at {names}: give more seeds ({seeds}) or a wider range of widths."

    @property
    def summary(self) -> tuple[str, ...]:
        """The sentences with at most four of the faults."""
        count = len(self.faults)
        if count <= _SHOWN:
            return self.sentences
        rest = ", ".join(dict.fromkeys(f"{one.name} ({one.setting})" for one in self.faults[_SHOWN:]))
        return (*self.sentences[:_SHOWN], f"Likewise: {rest}.", *self.sentences[count:])

    @property
    def about(self) -> str:
        """What was trained."""
        measured = self.measured
        return f"N = {', '.join(map(str, measured.widths))}; {measured.seeds} seeds; steps 0..{measured.steps[-1]}"

    @property
    def title(self) -> str:
        """The first line."""
        return f"{self.word.upper()} ({self.about})"

    def table(self) -> Grid:
        """Exponents of every matrix, of scores and of the outputs; of vectors those that depart."""
        rows = []
        for place in self.measured.places:
            kind, finding = role(self.measured, place), self._found(place)
            is_shown = (
                kind.is_matrix or kind in (Role.SCORES, Role.OUTPUTS) or finding in (Finding.GROWS, Finding.VANISHES)
            )
            if is_shown:
                later = "change" if kind in (Role.SCORES, Role.OUTPUTS) else "own"
                cells = [self._cell(place, name) for name in ("start", later, "carried")]
                name = place[0] or (place[2] if kind is Role.SCORES else "") or str(kind)
                rows.append((name, str(kind), str(finding), *cells))
        numbers = (("power of N", "start"), ("power of N", "own"), ("power of N", "carried"))
        return Grid("", ("weight", "role", "verdict"), numbers, tuple(rows))

    def _cell(self, place: Place, quantity: str) -> str:
        one = self._exponent(place, quantity)
        if one is None or math.isnan(one.law.exponent):
            return "0" if one is None and quantity == "start" else "–"
        reach = one.law.reach(self.rule.certain)
        return f"{one.law.exponent:+.2f}" + ("" if math.isnan(reach) else f" ±{reach:.2f}")

    def details(self) -> Page:
        """What every parameter is trained with, and how its terms align with what they multiply."""
        return Page((self.table(), parameter_table(self.measured), alignment_table(self.measured)))

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers, words, lists and dictionaries; NaN is None. See ``schema.json`` beside this file."""
        measured = self.measured
        return plain(
            {
                "schema": SCHEMA,
                "verdict": self.word,
                "exit_code": self.exit_code,
                "sentences": list(self.sentences),
                "widths": list(measured.widths),
                "seeds": measured.seeds,
                "seeds_needed": self.seeds_needed,
                "steps": list(measured.steps),
                "rule": self.rule,
                "faults": [{**asdict(fault), "sentence": sentence(fault, measured)} for fault in self.faults],
                "places": [
                    {
                        "parameter": place[0],
                        "operator": place[1],
                        "module": place[2],
                        "role": str(role(measured, place)),
                        "verdict": str(self._found(place)),
                        "readings": [_reading(one) for one in self.readings if one.place == place],
                        "alignment": {name: law.exponent for name, law in alignments(measured, place).items()},
                        "sizes": {
                            name: measured.sizes[place, name].nanmean(2).tolist()
                            for name in ("start", "own", "carried", "change")
                        },
                    }
                    for place in measured.places
                ],
                "parameters": {name: [row[name] for row in measured.parameters] for name in measured.parameters[0]},
                "gamma0": [one.gamma0 for one in effective(measured)],
                "base_rates": {
                    name: [one.rates.get(name, math.nan) for one in effective(measured)]
                    for name in measured.parameters[0]
                },
                "updates": {name: values.nanmean(2).tolist() for name, values in measured.updates.items()},
                "losses": measured.losses.nanmean(2).tolist(),
                "diverged": list(self.diverged),
                "halted": {name: list(widths) for name, widths in self.halted.items()},
                "notes": list(measured.notes),
            }
        )

    def to_json(self) -> str:
        """``to_dict`` as JSON."""
        return as_json(self.to_dict())

    def to_markdown(self) -> str:
        """The verdict for a pull request."""
        said = "\n".join(f"- {one}" for one in self.summary)
        notes = "\n".join(f"- {one}" for one in self.measured.notes)
        parts = [
            f"### Width check: {self.title}",
            said,
            self.table().markdown(),
            notes and f"Chosen or to be known:\n\n{notes}",
        ]
        return "\n\n".join(part for part in parts if part) + "\n"

    def figures(self) -> dict[str, Figure]:
        """Sizes of every term against the width, by name."""
        return _report().check.figures(self)

    @checked
    def write_tensorboard(self, logdir: str | Path) -> None:
        """Write scalars (a run for every width), exponents, figures and the report for TensorBoard.

        Args:
            logdir: directory of the logs.
        """
        _report().check.write_check(self, logdir)

    @checked
    def write_html(self, path: str | Path) -> None:
        """Write the report as one page that opens from disk: sentences, figures and tables.

        Args:
            path: of the HTML file; an existing one is replaced.
        """
        _report().write_sheet(self, path)

    def __repr__(self) -> str:
        return f"<Verdict: {self.title}>"

    def __str__(self) -> str:
        return self._text()

    def _text(self, width: int = 80) -> str:
        """The report in lines of so many characters."""
        from textwrap import fill

        lines = [fill(one, width, initial_indent="- ", subsequent_indent="  ") for one in self.summary]
        notes = [fill(one, width, initial_indent="  ", subsequent_indent="    ") for one in self.measured.notes]
        said = ["Chosen or to be known:", *notes] if notes else []
        return "\n".join(
            [fill(self.title, width), *lines, "", self.table().text(width).strip("\n"), *([""] if said else []), *said]
        )

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        """Fit the terminal."""
        from rich.text import Text

        lines = self._text(min(options.max_width, 100)).split("\n")
        colour = {RIGHT: "bold green", WRONG: "bold red"}.get(self.word, "bold yellow")
        yield Text(lines[0], style=colour)
        yield Text("\n".join(lines[1:]))


def _reading(one: Reading) -> dict[str, Any]:
    return {
        "quantity": one.quantity,
        "steps": list(one.steps),
        "mode": "eval" if one.in_eval else "train",
        "exponent": one.law.exponent,
        "error": one.law.error,
        "interval": [one.law.exponent - one.reach, one.law.exponent + one.reach],
        "verdict": str(one.finding),
        "seeds_needed": one.seeds,
    }


def _report() -> Any:
    """The report, a floor up: a verdict shows itself, and what that needs is loaded only when it does."""
    from torch_dmft import report

    return report
