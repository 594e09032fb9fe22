"""What the commands print or write: texts for machines and for pull requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path


def write(texts: Sequence[tuple[Path | None, Callable[[], str]]], otherwise: Callable[[], None]) -> None:
    """Print what is to go to "-", or else what a person reads; then write the other files, whose folders are made.

    Args:
        texts: where to, None for nowhere, and the text.
        otherwise: prints what a person reads.
    """
    printed = [text() for path, text in texts if str(path) == "-"]
    if printed:
        print("\n".join(printed))
    else:
        otherwise()
    for path, text in texts:
        if path is not None and str(path) != "-":
            folder(path.parent)
            path.write_text(text(), encoding="utf-8")


def folder(path: Path) -> Path:
    """A folder, which is made if there is none."""
    if not path.exists():
        path.mkdir(parents=True)
    return path
