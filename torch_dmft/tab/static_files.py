"""The files of the page, by name."""

from __future__ import annotations

from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent / "static"
MIME_TYPES = {".js": "text/javascript", ".css": "text/css", ".txt": "text/plain"}


@cache
def static_files() -> dict[str, Path]:
    """Path relative to the folder, with slashes -> the file. What is not listed here is not served."""
    files = sorted(path for path in _FOLDER.rglob("*") if path.suffix in MIME_TYPES)
    return {path.relative_to(_FOLDER).as_posix(): path for path in files}
