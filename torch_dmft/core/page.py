"""Page: paragraphs and tables to read, in a terminal of any width, in a notebook, or as markdown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from textwrap import fill
from typing import TYPE_CHECKING

from torch_dmft.core.grid import Grid

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

_WIDTH = 80
_SENTENCE = 100
"""Characters to which sentences are wrapped on a wider page."""


@dataclass(frozen=True)
class Page:
    """What is printed, shown and logged of a value.

    Attributes:
        parts: paragraphs and tables, in order.
    """

    parts: tuple[str | Grid, ...]

    def text(self, width: int = _WIDTH) -> str:
        """Plain text in lines of so many characters."""
        shown = [part.text(width) if isinstance(part, Grid) else _wrapped(part, width) for part in self.parts]
        return "\n\n".join(shown)

    def markdown(self) -> str:
        """The same in markdown."""
        shown = [f"**{part.title}**\n\n{part.markdown()}" if isinstance(part, Grid) else part for part in self.parts]
        return "\n\n".join(shown)

    def _repr_html_(self) -> str:
        """The same for a notebook."""
        return "\n".join(part.html() if isinstance(part, Grid) else f"<p>{escape(part)}</p>" for part in self.parts)

    def __str__(self) -> str:
        return self.text()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Fit the terminal."""
        from rich.text import Text

        for number, part in enumerate(self.parts):
            if number:
                yield Text("")
            yield part if isinstance(part, Grid) else Text(_wrapped(part, options.max_width), overflow="fold")


def _wrapped(text: str, width: int) -> str:
    return fill(text, max(1, min(width, _SENTENCE)), break_long_words=False, break_on_hyphens=False)
