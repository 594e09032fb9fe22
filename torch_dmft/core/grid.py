"""Grid: a table of numbers that never loses a digit; as text of any width, as markdown and as HTML."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from textwrap import wrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

_GAP = "  "
_NARROWEST = 12
"""Characters to which a column of words is folded before columns of numbers go into a table of their own below."""
_WIDEST = 120


@dataclass(frozen=True)
class Grid:
    """Rows of words and numbers under two lines of headings.

    Where it is wider than the page, words are folded; then columns of numbers go into further tables below, each with the
    words again. Nothing is cut.

    Attributes:
        title: the line above.
        words: headings of the columns of words, which stand first, flush left.
        numbers: headings of the columns of numbers, flush right: ``(group, name)``; neighbours of one group share its heading.
        rows: of cells, one for each column.
        rules: positions of rows after which a line is left empty.
    """

    title: str
    words: tuple[str, ...]
    numbers: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, ...], ...]
    rules: tuple[int, ...] = ()

    def text(self, width: int = _WIDEST) -> str:
        """The table in lines of at most so many characters, wherever a single column fits beside the words."""
        widths = self._widths(width)
        blocks = [self._block(widths, chunk) for chunk in self._chunks(widths, width)]
        return "\n".join([*wrap(self.title, max(width, 1)), *"\n\n".join(blocks).split("\n")])

    def markdown(self) -> str:
        """The table in markdown, without its title."""
        numbers = [f"{group} {name}".strip() for group, name in self.numbers]
        lines = [[*self.words, *numbers], [*["---"] * len(self.words), *["--:"] * len(numbers)], *self.rows]
        cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
        return "\n".join(f"| {' | '.join(line)} |" for line in cells)

    def html(self) -> str:
        """The table as an HTML element."""
        headings = [*self.words, *(f"{group} {name}".strip() for group, name in self.numbers)]
        head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
        body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in self.rows)
        return (
            f"<table><caption>{escape(self.title)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        )

    def __str__(self) -> str:
        return self.text()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Fit the terminal."""
        from rich.text import Text

        title = len(wrap(self.title, max(options.max_width, 1)))
        for number, line in enumerate(self.text(options.max_width).splitlines()):
            yield Text(line, style="bold" if number < title else "", overflow="fold")

    def _widths(self, width: int) -> list[int]:
        """Characters of every column."""
        widths = [max(map(len, [name, *(row[at] for row in self.rows)])) for at, name in enumerate(self.words)]
        for at, (group, name) in enumerate(self.numbers, start=len(self.words)):
            alone = [other for other, _ in self.numbers].count(group) == 1
            widths.append(max(map(len, [name, group if alone else "", *(row[at] for row in self.rows)])))
        folded = list(_shrinking(widths, len(self.words)))
        return min(folded, key=lambda widths: len(self._chunks(widths, width)))

    def _chunks(self, widths: Sequence[int], width: int) -> list[list[int]]:
        """Which columns of numbers stand beside each other: groups stay together where they fit."""
        count = len(self.words)
        room = width - sum(widths[:count]) - len(_GAP) * count

        def needed(columns: Sequence[int]) -> int:
            return sum(widths[at] + len(_GAP) for at in columns) - len(_GAP)

        positions = range(count, count + len(self.numbers))
        groups = [list(group) for _, group in groupby(positions, key=lambda at: self.numbers[at - count][0])]
        parts = [part for group in groups for part in ([group] if needed(group) <= room else [[at] for at in group])]
        chunks: list[list[int]] = [[]]
        for part in parts:
            if chunks[-1] and needed([*chunks[-1], *part]) > room:
                chunks.append([])
            chunks[-1] += part
        return chunks

    def _block(self, widths: Sequence[int], chunk: Sequence[int]) -> str:
        """The words and some columns of numbers, as text."""
        count = len(self.words)
        columns = [*range(count), *chunk]
        shown = {at: self.numbers[at - count] for at in chunk}
        lines = []
        if any(group for group, _ in shown.values()):
            line = _GAP.join(" " * widths[at] for at in range(count))
            for group, members in groupby(chunk, key=lambda at: shown[at][0]):
                span = [widths[at] for at in members]
                room = sum(span) + len(_GAP) * (len(span) - 1)
                line += _GAP * bool(line) + (group.center(room) if len(span) > 1 else group.rjust(room))
            lines.append(line)
        heads = {**dict(enumerate(self.words)), **{at: name for at, (_, name) in shown.items()}}
        lines += self._line([heads[at] for at in columns], columns, widths)
        lines.append(_GAP.join("─" * widths[at] for at in columns))
        for number, row in enumerate(self.rows):
            lines += self._line([row[at] for at in columns], columns, widths)
            if number in self.rules and number < len(self.rows) - 1:
                lines.append("")
        return "\n".join(line.rstrip() for line in lines)

    def _line(self, cells: Sequence[str], columns: Sequence[int], widths: Sequence[int]) -> list[str]:
        """One row as one line, or more where words are folded."""
        folded = [
            [cell] if at >= len(self.words) else _folded(cell, widths[at])
            for cell, at in zip(cells, columns, strict=True)
        ]
        lines = []
        for number in range(max(map(len, folded))):
            parts = [part[number] if number < len(part) else "" for part in folded]
            placed = zip(parts, columns, strict=True)
            lines.append(
                _GAP.join(
                    part.ljust(widths[at]) if at < len(self.words) else part.rjust(widths[at]) for part, at in placed
                )
            )
        return lines


def _shrinking(widths: Sequence[int], words: int) -> Iterator[list[int]]:
    """The widths of all columns, then with the columns of words narrower and narrower, down to 12 characters."""
    shrunk = list(widths)
    yield list(shrunk)
    while words and max(shrunk[:words]) > _NARROWEST:
        shrunk[shrunk.index(max(shrunk[:words]))] -= 1
        yield list(shrunk)


def _folded(text: str, width: int) -> list[str]:
    """Words in lines of at most so many characters; names are folded behind their dots where that is possible."""
    lines = [""]
    for part in re.findall(r"[^\s./_-]*[\s./_-]?", text):
        if lines[-1] and len(lines[-1]) + len(part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
        while len(lines[-1].rstrip()) > width:
            lines[-1:] = [lines[-1][:width], lines[-1][width:]]
    return [line.rstrip() for line in lines]
