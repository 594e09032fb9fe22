"""One HTML file of a verdict: its word, its sentences, its figures and its tables, in the colours of the DMFT tab."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from torch_dmft.core.arguments import checked
from torch_dmft.core.grid import Grid
from torch_dmft.core.replacing import replacing
from torch_dmft.referee import Transferred, Verdict
from torch_dmft.report import check, transfer
from torch_dmft.tab.static_files import static_files

_STYLE = """
body { display: block; height: auto; max-width: 1120px; margin: 0 auto; padding: 24px 20px 48px; }
h1 { font-size: 19px; margin: 0 0 4px; }
h2 { font-size: 14px; margin: 0 0 10px; }
section { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: 14px 18px; margin-top: 14px; }
.word { display: inline-block; padding: 2px 12px; border-radius: 999px; color: #fff; font-weight: 600; background: #8a6d00; }
.word.good { background: #00734f; }
.word.bad { background: #b3261e; }
.about { color: var(--muted); margin-left: 10px; }
section ul { margin: 0; padding-left: 18px; }
section li { margin: 5px 0; overflow-wrap: anywhere; }
.figure { background: #fff; overflow-x: auto; border-radius: 4px; }
.figure svg { display: block; max-width: 100%; height: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption:empty { display: none; }
caption { text-align: left; color: var(--muted); padding-bottom: 6px; }
th, td { padding: 3px 12px 3px 0; border-bottom: 1px solid var(--grid); text-align: right; white-space: nowrap; }
th { color: var(--muted); font-weight: 500; vertical-align: bottom; white-space: normal; }
.words-1 :is(th, td):nth-child(-n + 1), .words-2 :is(th, td):nth-child(-n + 2), .words-3 :is(th, td):nth-child(-n + 3)
  { text-align: left; }
summary { cursor: pointer; font-weight: 600; }
details > .scroll { margin-top: 10px; }
"""

_DARK = 'if (matchMedia("(prefers-color-scheme: dark)").matches) document.documentElement.dataset.theme = "dark";'


@dataclass(frozen=True)
class Sheet:
    """What stands on a page.

    Attributes:
        title: of the page.
        word: the verdict.
        passed: whether it is good; None where nothing is decided.
        about: what was done, in a few words.
        said: the sentences.
        figures: with titles of their own.
        table: that is always shown.
        further: tables that are folded.
        notes: what was chosen for the user, or is to be known.
        json: everything for machines, which the page carries.
    """

    title: str
    word: str
    passed: bool | None
    about: str
    said: Sequence[str]
    figures: Sequence[Figure]
    table: Grid
    further: Sequence[Grid] = ()
    notes: Sequence[str] = ()
    json: str = field(default="{}", repr=False)


def of_check(verdict: Verdict) -> Sheet:
    """The page of a check."""
    further = verdict.details().parts[1:]  # behind the table
    return Sheet(
        title="Width check",
        word=verdict.word,
        passed={0: True, 1: False}.get(verdict.exit_code),
        about=verdict.about,
        said=verdict.summary,
        figures=list(check.figures(verdict).values()),
        table=verdict.table(),
        further=[part for part in further if isinstance(part, Grid)],
        notes=verdict.measured.notes,
        json=verdict.to_json(),
    )


def of_transfer(found: Transferred) -> Sheet:
    """The page of a sweep of learning rates."""
    return Sheet(
        title=f"Learning rate against {found.axis}",
        word=found.word,
        passed={0: True, 1: False}.get(found.exit_code),
        about=f"{found.steps} steps; {found.seeds} seed{'s' * (found.seeds != 1)}; {len(found.runs)} runs",
        said=[f"{line[0].upper()}{line[1:]}." for line in found.sentences],
        figures=[transfer.figure(found)],
        table=found.table(),
        notes=[f"{line[0].upper()}{line[1:]}." for line in found.notes],
        json=found.to_json(),
    )


@checked
def write_sheet(result: Verdict | Transferred, path: str | Path) -> None:
    """Write a check, or a sweep of learning rates, as one page that opens from disk and asks for nothing.

    The page has the sentences, the figures, all tables and, in the element ``#result``, the JSON.

    Args:
        result: what ``check`` or ``transfer`` returned.
        path: of the HTML file; an existing one is replaced.

    Raises:
        NotWrittenError: if the file system does not take the file.
    """
    sheet = of_check(result) if isinstance(result, Verdict) else of_transfer(result)
    with replacing(path) as file:
        file.write(_html(sheet).encode())


def _html(sheet: Sheet) -> str:
    kind = {True: "good", False: "bad", None: "open"}[sheet.passed]
    sections = [_items(sheet.said)]
    sections += [f'<div class="figure">{_svg(one)}</div>' for one in sheet.figures]
    sections.append(_table(sheet.table))
    sections += [
        f"<details><summary>{escape(grid.title)}</summary>{_table(replace(grid, title=''))}</details>"
        for grid in sheet.further
    ]
    if sheet.notes:
        sections.append(f"<h2>Chosen or to be known</h2>{_items(sheet.notes)}")
    style = static_files()["style.css"].read_text("utf-8") + _STYLE
    data = sheet.json.replace("<", "\\u003c")
    body = "\n".join(f"<section>{one}</section>" for one in sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{escape(sheet.title)}: {escape(sheet.word)} · torch_dmft</title>
<style>{style}</style>
<script>{_DARK}</script>
<body>
<h1>{escape(sheet.title)}</h1>
<p><span class="word {kind}">{escape(sheet.word)}</span><span class="about">{escape(sheet.about)}</span></p>
{body}
<script type="application/json" id="result">{data}</script>
</body>
</html>
"""


def _items(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def _table(grid: Grid) -> str:
    return f'<div class="scroll words-{len(grid.words)}">{grid.html()}</div>'


def _svg(figure: Figure) -> str:
    """A figure as an element; its letters are paths, so that it looks the same everywhere."""
    drawn = io.StringIO()
    with rc_context({"svg.hashsalt": "torch_dmft"}):  # the same figure is the same text
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    text = drawn.getvalue()
    return text[text.index("<svg") :]
