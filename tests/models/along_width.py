"""What the page says of wrapping: cells of the table, counts, what is refused, and exponents that are not zero."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from tests.models.reasons import REASONS
from tests.models.wrap import (
    LARGE,
    LITTLE,
    MEDIAN,
    RATES,
    SEEDS,
    STEPS,
    is_alike,
    is_by_chance,
    median,
    stands_out,
    worst,
)

NAMES = {"sgd": "SGD", "adamw": "AdamW"}
REFERENCES = {"InfiniteWidth": "theory", "WideEnsemble": "wide networks", "": "none"}

LEGEND = {
    "wrapped": "`parameterize(model, inputs, wider=the model at twice the width)` takes it, and `undo` after a step of "
    "training brings back every parameter, buffer and attribute bit for bit; *fixed*: its arguments do not vary its widths",
    "SGD, AdamW": "the coordinate check along three widths, each twice the last: median over the weights of the size of the "
    "exponent of the change of features, with the standard error of that weight; behind it the largest exponent "
    f"({SEEDS} seeds, or {4 * SEEDS} where they do not suffice; {STEPS} steps, a base rate at which outputs move by at "
    f"most {LITTLE:g}). *not tried*: so many layers "
    "that it takes too long; *not yet*: `python -m tests.models` goes on with those",
    "reference": "what predicts its training: the theory's infinitely wide twin, wide networks that are extrapolated, or none",
}


def cells(row: dict[str, Any]) -> list[str]:
    """The columns of one model."""
    scaled = row.get("scaled", {})
    if "fixed" in scaled:
        return ["fixed", "", "", ""]
    if "wrapped" not in scaled:
        return ["failed" if scaled else "", "", "", ""]
    if scaled["wrapped"]["refused"]:
        return ["refused", "", "", ""]
    wrapped = "yes" if scaled["wrapped"]["undone"] else "**not undone**"
    return [wrapped, *(_exponent(scaled, name) for name in NAMES), REFERENCES[scaled["predicted"]["by"]]]


def _exponent(scaled: dict[str, Any], optimizer: str) -> str:
    found = scaled.get(optimizer)
    if not found:
        return "not yet" if scaled["is_checked"] else "not tried"
    if not found["exponents"]:
        return "**no number**"
    size, error = median(found)
    name = worst(found)
    said = f"{_short(size)} ± {_short(error)}"
    said = said if size <= MEDIAN else f"**{said}**"
    return f"{said} ({_short(found['exponents'][name])} ± {_short(found['errors'][name])})"


def _short(number: float) -> str:
    return f"{number:.2f}".replace("0.", ".", 1)


def counts(rows: dict[str, dict[str, Any]]) -> list[str]:
    """How many models are wrapped, move alike at every width, and are predicted."""
    scaled = [row["scaled"] for row in rows.values() if "fixed" not in row.get("scaled", {"fixed": ""})]
    taken = [one for one in scaled if "wrapped" in one and one["wrapped"]["undone"]]
    checked = [one for one in taken if all(name in one for name in NAMES)]
    alike = {name: sum(is_alike(one[name]) for one in checked if name in one) for name in NAMES}
    again = {
        name: sum(is_alike(one[name].get("wider", {})) and not is_alike(one[name]) for one in checked) for name in NAMES
    }
    wide = f" (with four times the widths for {again['sgd']} and {again['adamw']} more)" if any(again.values()) else ""
    by = Counter(one["predicted"]["by"] for one in taken)
    return [
        f"The widths of {len(scaled)} models can be varied. {len(taken)} of them are wrapped by comparing two widths, and "
        f"undone bit for bit. {len(checked)} of those were checked along the width: the median |exponent| is at most "
        f"{MEDIAN:g} for {alike['sgd']} with SGD and for {alike['adamw']} with AdamW{wide}. Training is predicted by theory "
        f"for {by['InfiniteWidth']}, by wide networks for {by['WideEnsemble']}; for the others training at several widths "
        "stands in.",
    ]


def sections(rows: dict[str, dict[str, Any]]) -> list[str]:
    """What is refused, and the exponents that are not zero, with the reasons."""
    return [*_refused(rows), *_not_zero(rows)]


def _refused(rows: dict[str, dict[str, Any]]) -> Iterator[str]:
    refused = {key: _why(row["scaled"]) for key, row in rows.items() if "scaled" in row}
    refused = {key: why for key, why in refused.items() if why}
    if refused:
        yield from ("## Not wrapped", "", "| model | the first place, and what it is |", "|---|---|")
        for key, why in refused.items():
            reason = REASONS.get(key.split(": ", 1)[1], "")
            yield f"| {key} | {why}{f' *{reason}*' if reason else ''} |"
        yield ""


def _why(scaled: dict[str, Any]) -> str:
    if "failed" in scaled:
        return str(scaled["failed"]).replace("|", "\\|")
    refused = str(scaled.get("wrapped", {}).get("refused", "")).replace("|", "\\|")
    start = refused.partition("widths: ")[2] or refused
    return start.partition(" Remedy:")[0]


def _not_zero(rows: dict[str, dict[str, Any]]) -> Iterator[str]:
    found = list(off(rows))
    if not found:
        return
    yield from ("## Exponents that are not zero", "")
    yield (
        f"Medians above {MEDIAN:g}, and weights whose |exponent| is above {LARGE:g} and more than two standard errors above "
        f"{MEDIAN:g}. *Wider*: median and largest with four times the widths."
    )
    yield from ("", "| model | optimizer | median | weights | wider | why |", "|---|---|---|---|---|---|")
    for key, optimizer, one in found:
        size, error = median(one)
        large = sorted(stands_out(one), key=lambda name: -abs(one["exponents"][name]))
        said = [
            f"{name or '(model)'} {_short(one['exponents'][name])} ± {_short(one['errors'][name])}"
            for name in large[:3]
        ]
        said += [f"{len(large) - 3} more"] * (len(large) > 3)
        again = one.get("wider")
        wider = ""
        if again:
            name = worst(again)
            wider = (
                f"{_short(median(again)[0])} ± {_short(median(again)[1])} "
                f"({_short(again['exponents'][name])} ± {_short(again['errors'][name])})"
            )
        why = REASONS.get(key.split(": ", 1)[1], "within its error" if is_by_chance(one) else "")
        cells = [key, NAMES[optimizer], f"{_short(size)} ± {_short(error)}", ", ".join(said), wider, why]
        yield f"| {' | '.join(cells)} |"
    yield ""


def off(rows: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Models and optimizers whose exponents are not zero."""
    for key, row in rows.items():
        for optimizer in RATES:
            one = row.get("scaled", {}).get(optimizer)
            if one and one["exponents"] and (not is_alike(one) or stands_out(one)):
                yield key, optimizer, one
