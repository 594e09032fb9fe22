"""Pieces of Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence


def table(header: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """A table whose first column is aligned to the left, the others to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in (header, rule, *rows))


def percent(value: float) -> str:
    """A share with two significant digits."""
    return f"{100 * value:.2g}%"


def seconds(value: float) -> str:
    """A duration with three significant digits."""
    return f"{value:.3g} s" if value < 600 else f"{value / 60:.3g} min"


def reflow(text: str, width: int = 150) -> str:
    """The same page with its paragraphs filled to a width; tables, headings and comments stay as they are."""
    blocks = [
        block if block.startswith(("|", "#", "<")) else textwrap.fill(block, width, break_on_hyphens=False)
        for block in text.strip().split("\n\n")
    ]
    return "\n\n".join(block.strip() for block in blocks) + "\n"
