"""The reader of records: numpy alone, no pickles, nothing larger than what is written is allocated, nothing raises.

A file may be missing, truncated, foreign, older, damaged or still be written; what can be read is, and the rest is said in
``Records.problems``, which the page shows.
"""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from torch_dmft.core.errors import InvalidInputError
from torch_dmft.tab.about import FORMAT, SCHEMA, About
from torch_dmft.tab.log import HEAD, KERNELS, MAGIC, PAIRS, TEXT, frame_of

MOST_TEXT, MOST_LINE = 2**28, 2**24
_MOST_NUMBERS = 2**26
_MOST_EIGENVALUES, _MOST_WORDS = 1024, 400


@dataclass(frozen=True)
class Density:
    """A histogram with equal bins of a field over samples and neurons."""

    step: int
    weight: int
    field: str
    low: float
    high: float
    heights: NDArray


@dataclass(frozen=True)
class Records:
    """What is known of one run.

    Attributes:
        folder: where its files are.
        about: what it is; None if that cannot be told.
        steps: ``(time,)``, increasing.
        times: ``(time,)``, sums of learning rates.
        columns: names of the numbers.
        values: ``(time, column)``, NaN where a number was not written.
        eigenvalues: ``(time, eigenvalue)`` of the NTK on the training rows, largest first, NaN where there are fewer.
        shares: ``(time, eigenvalue)``, of the targets along each.
        densities: of fields of single neurons.
        frames: step -> the number of its frame in the file of kernels.
        problems: what is wrong with the files, as sentences.
    """

    folder: Path
    about: About | None = None
    steps: NDArray = field(default_factory=lambda: np.zeros(0, np.int64))
    times: NDArray = field(default_factory=lambda: np.zeros(0))
    columns: tuple[str, ...] = ()
    values: NDArray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    eigenvalues: NDArray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    shares: NDArray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    densities: tuple[Density, ...] = ()
    frames: Mapping[int, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    def kernel(self, name: str, step: int) -> NDArray | None:
        """The upper triangle of a kernel at a step, row by row; None if it was not kept."""
        if self.about is None or step not in self.frames or name not in self.about.kernels:
            return None
        size, position = self.about.triangle * 4, self.about.kernels.index(name)
        start = self._start(step)
        at = _bytes(self.folder / KERNELS, start, 8)
        content = _bytes(self.folder / KERNELS, start + 8 + position * size, size)
        if len(content) != size or int.from_bytes(at, "little", signed=True) != step:  # replaced since it was read
            return None
        return np.frombuffer(content, "<f4")

    def frame_bytes(self, step: int) -> bytes:
        """The frame of a step as it is in the file."""
        assert self.about is not None  # there are frames
        return _bytes(self.folder / KERNELS, self._start(step), frame_of(self.about).itemsize)

    def _start(self, step: int) -> int:
        """Where the frame of a step begins."""
        assert self.about is not None  # there are frames
        return HEAD.size + self.frames[step] * frame_of(self.about).itemsize

    def two_time(self, name: str, pair: tuple[int, int] | None = None) -> NDArray | None:
        """A kernel between all pairs of times, ``(time, time)``: the mean over equal samples, or one pair of samples.

        Args:
            name: of the kernel, such as ``"Phi/1"``.
            pair: positions mu, alpha among the samples that are shown: K[(t, mu), (s, alpha)].
        """
        about = self.about
        if about is None or not about.times or name not in about.two_time_kernels:
            return None
        count, each = len(about.times), len(about.times) ** 2 * 4
        matrices = 1 + (about.triangle if about.pairs else 0)
        number = 0
        if pair is not None:
            low, high = sorted(pair)
            if not about.pairs or low < 0 or high >= len(about.rows):
                return None
            number = 1 + low * len(about.rows) - low * (low - 1) // 2 + high - low
        start = HEAD.size + (about.two_time_kernels.index(name) * matrices + number) * each
        content = _bytes(self.folder / PAIRS, start, each)
        if len(content) != each:
            return None
        matrix = np.frombuffer(content, "<f4").reshape(count, count)
        return matrix.T if pair is not None and pair[0] > pair[1] else matrix


def opened(path: Path) -> BinaryIO:
    """A regular file, for reading.

    Raises:
        OSError: for anything else; a pipe would wait for somebody to write into it.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "It is no regular file")
    return path.open("rb")


def read_about(folder: str | Path) -> About | None:
    """What the run of a folder is, of its first line alone; None if that cannot be told."""
    try:
        with opened(Path(folder) / TEXT) as file:
            return _opening(file.readline(MOST_LINE))[0]
    except (OSError, InvalidInputError):
        return None


def read(folder: str | Path) -> Records:
    """Read the records of a folder; a folder without any has a problem and nothing else."""
    folder = Path(folder)
    try:
        size = (folder / TEXT).stat().st_size
        if size > MOST_TEXT:
            return Records(folder, problems=(f"{TEXT} has {size} bytes, more than any that is written.",))
        with opened(folder / TEXT) as file:
            lines = file.read(MOST_TEXT).split(b"\n")
    except OSError as error:
        return Records(folder, problems=(f"{TEXT} cannot be read: {error.strerror or error}.",))
    problems: list[str] = []
    if lines.pop():
        problems.append("The last record is not complete: the run is still writing it, or was killed.")
    try:
        about, key = _opening(lines[0] if lines else b"")
    except InvalidInputError as error:
        return Records(folder, problems=(str(error),))
    with np.errstate(over="ignore"):  # what is too large for float32 is infinite
        parts = _parse(lines[1:], problems)
    frames = _frames(folder, about, key, problems)
    if about.times and not _fits(folder / PAIRS, PAIRS, about, key):
        problems.append("The two-time kernels are missing or not those of this run.")
    return Records(folder, about, **parts, frames=frames, problems=tuple(dict.fromkeys(problems)))


def _opening(line: bytes) -> tuple[About, str]:
    """The first line of a file.

    Raises:
        InvalidInputError: if it is not one of this format and schema.
    """
    try:
        opening = json.loads(line[:MOST_LINE])
    except (ValueError, RecursionError):
        opening = None
    if not isinstance(opening, dict) or opening.get("format") != FORMAT:
        raise InvalidInputError(f"{TEXT} holds no records of torch_dmft.", got=line[:40].decode("ascii", "replace"))
    if opening.get("schema") not in range(1, SCHEMA + 1):
        raise InvalidInputError(
            f"These records have schema {opening.get('schema')!r}; this version of torch_dmft reads schemas up to {SCHEMA}.",
            remedy="show them with the version that wrote them, or write them again with this one",
        )
    return About.from_json(opening.get("about")), str(opening.get("key"))


def _parse(lines: Iterable[bytes], problems: list[str]) -> dict[str, Any]:
    """Records and densities of the lines behind the first; of two records of one step the later one."""
    columns: list[str] = []
    rows: dict[int, tuple[float, tuple[int, ...], NDArray]] = {}
    spectra: dict[int, tuple[NDArray, NDArray]] = {}
    densities: dict[tuple[int, int, str], Density] = {}
    places: tuple[int, ...] = ()
    position: dict[str, int] = {}
    bad, latest, numbers = 0, -1, 0
    for line in lines:
        try:
            value: Any = json.loads(line) if len(line) <= MOST_LINE else None
            if "columns" in value:
                for name in value["columns"]:
                    position.setdefault(str(name), len(position))
                places = tuple(position[str(name)] for name in value["columns"])
                columns = list(position)
            elif "problem" in value:
                problems.append(str(value["problem"])[:_MOST_WORDS])
            elif "density" in value:
                density = _density(value)
                densities[density.step, density.weight, density.field] = density
            else:
                step, entries = int(value["step"]), _numbers(value["values"])
                numbers += len(entries)
                if len(entries) != len(places) or numbers > _MOST_NUMBERS or not 0 <= step < 2**53:
                    raise ValueError
                if step <= latest:
                    problems.append(
                        "Steps go back: two processes wrote here, or a run was started again; shown is the later."
                    )
                latest = step
                rows[step] = float(_numbers([value["time"]])[0]), places, entries
                if "eigenvalues" in value:
                    both = [_numbers(value[name])[:_MOST_EIGENVALUES] for name in ("eigenvalues", "shares")]
                    spectra[step] = both[0], both[1]
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            bad += 1
    if bad:
        problems.append(f"{bad} line{'s are' if bad > 1 else ' is'} damaged and left out.")
    steps = sorted(rows)
    table = np.full((len(steps), len(columns)), np.nan, np.float32)
    widest = max((max(map(len, both)) for both in spectra.values()), default=0)
    eigenvalues, shares = (np.full((len(steps), widest), np.nan, np.float32) for _ in range(2))
    for at, step in enumerate(steps):
        table[at, rows[step][1]] = rows[step][2]
        for target, entries in zip((eigenvalues, shares), spectra.get(step, ()), strict=False):
            target[at, : len(entries)] = entries
    return {
        "steps": np.array(steps, np.int64),
        "times": np.array([rows[step][0] for step in steps]),
        "columns": tuple(columns),
        "values": table,
        "eigenvalues": eigenvalues,
        "shares": shares,
        "densities": tuple(densities.values()),
    }


def _numbers(values: Any) -> NDArray:
    """A list of numbers; null is NaN, and a word such as ``"inf"`` is what it says."""
    if not isinstance(values, list):
        raise TypeError
    return np.array(values, np.float64).reshape(len(values)).astype(np.float32)


def _density(value: Mapping[str, Any]) -> Density:
    heights = _numbers(value["density"])
    low, high = float(value["low"]), float(value["high"])
    if not -math.inf < low < high < math.inf:
        raise ValueError
    return Density(int(value["step"]), int(value["weight"]), str(value["field"]), low, high, heights)


def _frames(folder: Path, about: About, key: str, problems: list[str]) -> dict[int, int]:
    """Step -> number of its frame; a last frame that is not complete is left out."""
    path = folder / KERNELS
    if not _fits(path, KERNELS, about, key):
        problems.append("The kernels are missing or not those of this run.")
        return {}
    frame = frame_of(about)
    count = (path.stat().st_size - HEAD.size) // frame.itemsize
    if count == 0:
        return {}
    # Mapped, so that of every frame only the page with its step is read.
    steps = np.memmap(path, frame, "r", HEAD.size, (count,))["step"]
    return {int(step): number for number, step in enumerate(steps)}


def _fits(path: Path, name: str, about: About, key: str) -> bool:
    """Whether a binary file is there, and of this run."""
    count = len(about.kernels if name == KERNELS else about.two_time_kernels)
    return _bytes(path, 0, HEAD.size) == HEAD.pack(MAGIC[name], key.encode()[:16], len(about.rows), count)


def _bytes(path: Path, start: int, size: int) -> bytes:
    """A part of a file, shorter or empty if it ends before."""
    try:
        with opened(path) as file:
            file.seek(start)
            return file.read(size)
    except (OSError, ValueError):
        return b""
