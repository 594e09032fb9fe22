"""The page of the compatibility table."""

from __future__ import annotations

from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.models.along_width import LEGEND, cells, counts, sections
from tests.models.check import EXACT, SAMPLES, STEPS, is_right

RESULTS = Path(__file__).parent / "results.json"
PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def versions() -> dict[str, str]:
    """Versions of what the models come from."""
    return {name: version(name) for name in ("torch", "torchvision", "timm", "transformers")}


def page(results: dict[str, Any]) -> str:
    """The page, in Markdown."""
    rows: dict[str, dict[str, Any]] = results["models"]
    right = sum(is_right(row) for row in rows.values())
    used = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    self_check = (
        "what a measurement does of itself on its first record: the NTK against an ordinary backward pass, samples against "
        "samples run apart. *by samples*: uses of some parameters were not seen, and their shares of the NTK were taken "
        "sample by sample"
    )
    oracle = (
        "relative difference of the NTK from that of full Jacobians (`torch.func`; (a): one backward pass for each output, "
        f"where `torch.func` cannot follow); at most {EXACT:g}"
    )
    lines = [
        "# Models that were tried",
        "",
        f"Every model here was measured on {SAMPLES} samples in float64, with random weights, and checked in three ways.",
        f"{right} of {len(rows)} pass all of them. Made by `python -m tests.models` with {used};",
        "a short version runs with every change.",
        "",
        *counts(rows),
        "",
        "| column | what it says |",
        "|---|---|",
        "| weights | layers with kernels Phi and G |",
        f"| self-check | {self_check} |",
        f"| bit-identical | {STEPS} steps with a recorder leave weights, buffers and random numbers as {STEPS} steps without |",
        f"| Jacobian | {oracle} |",
        *(f"| {name} | {said} |" for name, said in LEGEND.items()),
        "",
    ]
    for library in dict.fromkeys(key.split(": ")[0] for key in rows):
        some = {key.split(": ", 1)[1]: row for key, row in rows.items() if key.split(": ")[0] == library}
        lines += [f"## {library[0].upper() + library[1:] if library == 'by hand' else library}", ""]
        lines += [
            "| model | parameters | weights | self-check | bit-identical | Jacobian | wrapped | SGD | AdamW | reference |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [_line(name, row) for name, row in some.items()]
        lines.append("")
    wrong = {key: row for key, row in rows.items() if not is_right(row)}
    if wrong:
        lines += ["## Not measured", "", "| model | why |", "|---|---|"]
        lines += [f"| {key} | {_why(row)} |" for key, row in wrong.items()]
        lines.append("")
    lines += sections(rows)
    return "\n".join(lines).rstrip() + "\n"


def _line(name: str, row: dict[str, Any]) -> str:
    scaled = " | ".join(cells(row))
    if not row.get("measured"):
        return f"| {name} | {_count(row)} | | {'refused' if row.get('refused') else 'failed'} | | | {scaled} |"
    check = "by samples" if "sample by sample" in row["notes"] else "yes"
    difference = (
        "" if row["difference"] is None else f"{row['difference']:.0e}{' (a)' if row['oracle'] == 'autograd' else ''}"
    )
    identical = "yes" if row["identical"] else "**no**"
    return f"| {name} | {_count(row)} | {row['layers']} | {check} | {identical} | {difference} | {scaled} |"


def _count(row: dict[str, Any]) -> str:
    count = row.get("parameters")
    if count is None:
        return ""
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e3:.0f} k" if count >= 1e4 else str(count)


def _why(row: dict[str, Any]) -> str:
    if not row.get("measured"):
        return (
            str(row.get("refused") or row.get("failed") or "kernels are not finite")
            .replace("|", "\\|")
            .replace("\n", " ")
        )
    return "; ".join(
        [
            *["recording changes the training"] * (not row["identical"]),
            *[f"the NTK is off by {row['difference']:.0e}"]
            * (row["difference"] is not None and row["difference"] > EXACT),
        ]
    )


def summary(rows: dict[str, dict[str, Any]]) -> Counter[str]:
    """How many models there are of each library."""
    return Counter(key.split(": ")[0] for key in rows)
