r"""The writer of records: what the tab shows of one run, in files beside its event file.

``dmft.jsonl`` holds one JSON value a line: first the format, its schema and ``About``; then the names of numbers
(``{"columns": [...]}``), the numbers of every record, the leading eigenvalues of its NTK, and densities. A number that JSON
does not know is null or a word (``"inf"``).

``dmft.kernels`` holds frames of one size, each a step (int64) and the upper triangles of all kernels (float32), behind a head
that names the run of the other file. ``dmft.pairs`` holds two-time kernels, if they were recorded.

Every record is brought to the disk at once, so a run that is killed loses nothing that was recorded. A last line or frame that
is not complete is left out by the reader.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import struct
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from torch_dmft.tab.about import FORMAT, SCHEMA, About

TEXT, KERNELS, PAIRS = "dmft.jsonl", "dmft.kernels", "dmft.pairs"
HEAD = struct.Struct("<8s16sII")
"""Of the binary files: what it is, of which run, samples, kernels in a frame."""
MAGIC = {KERNELS: b"DMFTKER1", PAIRS: b"DMFTTWO1"}
BUDGET = 2**29
"""Bytes of kernels kept of a run. When they are full, every second record's are dropped, and from then on left out."""

Density = tuple[float, float, Sequence[float]]
"""The ends of a histogram with equal bins, and its heights."""


class RecordLog:
    """Writes the records of one run.

    Args:
        folder: of the run; made if it does not exist.
        about: what the run is.
        start: the first step that will be written; records before it are kept if an earlier log has the same layout. None
            replaces an earlier log when this one is closed, completely or not at all.
        budget: bytes of kernels to keep.
    """

    def __init__(self, folder: str | Path, about: About, *, start: int | None = None, budget: int = BUDGET) -> None:
        self.folder, self.about = Path(folder), about
        self.folder.mkdir(parents=True, exist_ok=True)
        self._budget, self._stride, self._records = budget, 1, 0
        self._key = secrets.token_hex(8)
        if _is_being_written(self.folder / TEXT):
            warnings.warn(
                f"Another run is writing its records into {self.folder}; they end here. Remedy: a folder for each run.",
                stacklevel=3,
            )
        self._columns: tuple[str, ...] = ()
        self._upper = np.triu_indices(len(about.rows))
        self._suffix = f".{os.getpid()}.part" if start is None else ""
        lines, frames = ([], iter(())) if start is None else _kept(self.folder, about, start)
        opening = {"format": FORMAT, "schema": SCHEMA, "key": self._key, "about": about.as_json()}
        with _whole(self._path(TEXT)) as text:
            text.write("".join(f"{line}\n" for line in [strict_json(opening), *lines]).encode())
        with _whole(self._path(KERNELS)) as kernels:
            kernels.write(self._head(KERNELS, len(about.kernels)))
            kernels.writelines(frames)
        if self._suffix == "":
            (self.folder / PAIRS).unlink(missing_ok=True)
        self._text = self._path(TEXT).open("ab")
        _lock(self._text)
        self._kernels = self._path(KERNELS).open("ab")

    @property
    def frame(self) -> np.dtype:
        """One frame of the file of kernels."""
        return frame_of(self.about)

    def record(
        self,
        step: int,
        time: float,
        values: Mapping[str, float],
        kernels: Mapping[str, NDArray] | None = None,
        spectrum: tuple[Iterable[float], Iterable[float]] | None = None,
    ) -> None:
        """Write one record.

        Args:
            step: optimizer steps done.
            time: the sum of learning rates so far.
            values: numbers by name.
            kernels: ``(sample, sample)`` by name, all of ``about.kernels``, in the order of ``about.rows``.
            spectrum: leading eigenvalues of the NTK, largest first, and the share of the targets along each.

        Raises:
            FileExistsError: if another writer has taken this one's place; then nothing more is written.
        """
        self._require_place()
        if kernels is not None and self._records % self._stride == 0:
            self._write_kernels(step, kernels)
        self._records += 1
        if unknown := [name for name in values if name not in self._columns]:
            self._columns = (*self._columns, *unknown)
            self._line({"columns": self._columns})
        line: dict[str, Any] = {"step": step, "time": time, "values": [values.get(name) for name in self._columns]}
        if spectrum is not None:
            line["eigenvalues"], line["shares"] = map(list, spectrum)
        self._line(line)

    def density(self, step: int, weight: int, field: str, density: Density) -> None:
        """Write the density of a field, ``"preactivation"`` or ``"gradient"``, behind one weight at one step."""
        low, high, heights = density
        self._line({"step": step, "weight": weight, "field": field, "low": low, "high": high, "density": list(heights)})

    def problem(self, text: str) -> None:
        """Write what the page is to say of this run above everything else."""
        self._line({"problem": text})

    def pairs(self, blocks: Iterable[NDArray]) -> None:
        """Write the two-time kernels, one block for each of ``about.two_time_kernels``.

        Args:
            blocks: ``(matrix, time, time)``: first the mean over equal samples; then, if ``about.pairs``, one matrix for each
                pair of samples mu <= alpha, row by row.
        """
        with _whole(self._path(PAIRS)) as file:
            file.write(self._head(PAIRS, len(self.about.two_time_kernels)))
            for block in blocks:
                file.write(np.ascontiguousarray(block, "<f4").tobytes())

    def close(self) -> None:
        """Close the files, and put them in place."""
        self._text.close()
        self._kernels.close()
        for name in (PAIRS, KERNELS, TEXT):
            if self._suffix and self._path(name).exists():
                self._path(name).replace(self.folder / name)
            elif self._suffix and name == PAIRS:
                (self.folder / name).unlink(missing_ok=True)

    def abandon(self) -> None:
        """Close the files; what was to replace an earlier log is removed."""
        self._text.close()
        self._kernels.close()
        for name in (TEXT, KERNELS, PAIRS) if self._suffix else ():
            self._path(name).unlink(missing_ok=True)

    def __enter__(self) -> RecordLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close() if error is None else self.abandon()

    def _path(self, name: str) -> Path:
        return self.folder / (name + self._suffix)

    def _head(self, name: str, count: int) -> bytes:
        return HEAD.pack(MAGIC[name], self._key.encode(), len(self.about.rows), count)

    def _require_place(self) -> None:
        """Leave the folder to a writer that came later, and let its log tell that there were two."""
        path = self.folder / TEXT
        if self._suffix or (path.exists() and path.stat().st_ino == os.fstat(self._text.fileno()).st_ino):
            return
        if path.exists():
            with path.open("ab") as file:
                told = "Two runs write their records into this folder; shown is the later one. Give each a folder of its own."
                file.write(strict_json({"problem": told}).encode() + b"\n")
        raise FileExistsError(f"another run writes its records into {self.folder}, or they were removed")

    def _line(self, value: Any) -> None:
        self._text.write(strict_json(value).encode() + b"\n")
        self._text.flush()

    def _write_kernels(self, step: int, kernels: Mapping[str, NDArray]) -> None:
        frame = np.zeros((), self.frame)
        frame["step"] = step
        for position, name in enumerate(self.about.kernels):
            frame["kernels"][position] = kernels[name][self._upper]
        self._kernels.write(frame.tobytes())
        self._kernels.flush()
        size = self._kernels.tell() - HEAD.size
        if size + frame.nbytes > self._budget and size > frame.nbytes:
            self._thin()

    def _thin(self) -> None:
        """Keep every second frame, and write every second record's from now on."""
        self._kernels.close()
        self._stride *= 2
        with self._path(KERNELS).open("rb") as old, _whole(self._path(KERNELS)) as new:
            new.write(old.read(HEAD.size))
            number = 0
            while frame := old.read(self.frame.itemsize):
                if number % 2 == 0:
                    new.write(frame)
                number += 1
        self._kernels = self._path(KERNELS).open("ab")


def frame_of(about: About) -> np.dtype:
    """One frame of a run's file of kernels."""
    return np.dtype([("step", "<i8"), ("kernels", "<f4", (len(about.kernels), about.triangle))])


def strict_json(value: Any) -> str:
    """JSON of one line, in which numbers that are not finite are null (NaN) or a word, and others have seven digits."""
    return json.dumps(_plain(value), separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None if math.isnan(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _kept(folder: Path, about: About, start: int) -> tuple[list[str], Iterator[bytes]]:
    """Lines and frames of an earlier log before a step, if its layout is the same."""
    from torch_dmft.tab.reader import read

    earlier = read(folder) if (folder / TEXT).is_file() and start > 0 else None
    if earlier is None or earlier.about is None or not earlier.about.same_layout(about):
        return [], iter(())
    text = (folder / TEXT).read_text(encoding="utf-8", errors="replace").splitlines()[1:]
    lines = []
    for line in text:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and value.get("step", -1) < start:
            lines.append(line)
    return lines, (earlier.frame_bytes(step) for step in earlier.frames if step < start)


def _lock(file: BinaryIO) -> bool:
    """Show others that a file is being written, as long as it is open.

    Returns:
        Whether nobody else did; True where there are no locks.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _is_being_written(path: Path) -> bool:
    """Whether another log holds this file, of this process or another that is alive."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return not _lock(file)


@contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    """A file that is written completely or not at all."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with scratch.open("wb") as file:
            yield file
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
