"""A hook of mkdocs: `.. math::` blocks of docstrings become formulas of the page, which otherwise shows their source."""

from __future__ import annotations

import re
from typing import Any

from markdown import Markdown
from markdown.extensions import Extension
from markdown.preprocessors import Preprocessor

_DIRECTIVE = re.compile(r"^( *)\.\. math::(.*)$")


class _MathBlocks(Preprocessor):
    """Puts `$$` around what belongs to the directive: the rest of its line, and the indented lines behind it."""

    def run(self, lines: list[str]) -> list[str]:
        shown: list[str] = []
        remaining = list(lines)
        while remaining:
            line = remaining.pop(0)
            directive = _DIRECTIVE.match(line)
            if directive is None:
                shown.append(line)
                continue
            indent, first = directive.groups()
            formula = [first.strip()]
            while remaining and remaining[0].startswith(f"{indent} ") and remaining[0].strip():
                formula.append(remaining.pop(0).strip())
            shown += ["", f"{indent}$$", *(f"{indent}{part}" for part in formula if part), f"{indent}$$", ""]
        return shown


class DocstringMath(Extension):
    """Reads `.. math::` blocks in Markdown."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 - the name is Markdown's
        """Before code and HTML are set aside (priority 30)."""
        md.preprocessors.register(_MathBlocks(md), "docstring_math", 40)


def on_config(config: Any) -> Any:
    """Every page, and mkdocstrings with it, reads the blocks."""
    config.markdown_extensions.append(DocstringMath())
    return config
