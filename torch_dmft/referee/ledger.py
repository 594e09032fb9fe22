"""Ledger: the runs of a sweep in a file of JSON lines, written as they end, so that a sweep goes on after a kill.

The first line says what is swept; each other line is one run. A line is appended in one write and synced. A last line that a
kill cut short is left out and overwritten.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch_dmft.core.errors import InvalidInputError, NotWrittenError
from torch_dmft.referee.one_run import Run

SCHEMA = "torch_dmft/transfer-runs/1"


class Ledger:
    """The runs of a sweep, in memory and in a file.

    Args:
        path: the file; None keeps them in memory alone.
        about: what is swept, as plain numbers and words; a file of another sweep is refused.

    Raises:
        InvalidInputError: if the file is of another sweep, or none.
        NotWrittenError: if it cannot be written.
    """

    def __init__(self, path: Path | None, about: Mapping[str, Any]) -> None:
        self.path = path
        self.runs: dict[tuple[int, int, int], Run] = {}
        self._about = {"schema": SCHEMA, **about}
        if path is not None:
            self._open(path)

    def __iter__(self) -> Iterator[Run]:
        return iter(self.runs.values())

    def add(self, run: Run) -> None:
        """Keep a run."""
        self.runs[run.value, run.power, run.seed] = run
        if self.path is not None:
            row = {name: value if _is_plain(value) else None for name, value in asdict(run).items()}
            self._append(row)

    def _open(self, path: Path) -> None:
        if path.is_dir():
            raise InvalidInputError("The log is a file.", got=f"the folder {path}", remedy="log='runs.jsonl'")
        if not path.exists() or not path.stat().st_size:
            self._append(self._about)
            return
        text = path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        try:
            about, *rows = [json.loads(line) for line in whole.splitlines()]
            runs = [Run(**{**row, "loss": _number(row["loss"]), "first": _number(row["first"])}) for row in rows]
        except (ValueError, TypeError, KeyError) as error:
            raise InvalidInputError(
                f"{path} must hold the runs of a sweep.",
                got=f"{type(error).__name__}: {error}".rstrip("."),
                remedy="another file, or delete it",
            ) from error
        if about != self._about:
            other = [name for name in {**about, **self._about} if about.get(name) != self._about.get(name)]
            raise InvalidInputError(
                f"{path} must hold the runs of this sweep.",
                got=", ".join(f"{name}={about.get(name)!r} and not {self._about.get(name)!r}" for name in other),
                remedy="another file, or the settings that it was begun with",
            )
        if len(whole) < len(text):
            with path.open("r+b") as file:
                file.truncate(len(whole))
        self.runs = {(run.value, run.power, run.seed): run for run in runs}

    def _append(self, row: Mapping[str, Any]) -> None:
        assert self.path is not None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                os.write(file, json.dumps(row).encode() + b"\n")
                os.fsync(file)
            finally:
                os.close(file)
        except OSError as error:
            raise NotWrittenError(
                f"The runs cannot be written to {self.path}.", got=str(error), remedy="a file in a folder with room"
            ) from error


def _is_plain(value: int | float) -> bool:
    return math.isfinite(value)


def _number(value: int | float | None) -> float:
    return math.inf if value is None else float(value)
