"""The runs of a log directory: a network with the predictions that stand beside it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch_dmft.tab.about import About
from torch_dmft.tab.log import KERNELS, TEXT
from torch_dmft.tab.reader import Records, read, read_about

MOST_FOLDERS = 20_000
_MOST_READ = 64
"""Members whose numbers are kept in memory."""
_FRESH = 1.0
"""Seconds for which the list of runs is not looked up again."""


@dataclass(frozen=True)
class Member:
    """A network or a prediction, as far as the first line of its records tells.

    Attributes:
        folder: where its records are.
        about: what it is; None if that cannot be told.
        stamp: what changes whenever its files do.
        read: reads its records.
    """

    folder: Path
    about: About | None
    stamp: tuple[int, ...]
    read: Callable[[], Records]


@dataclass(frozen=True)
class Run:
    """What the page shows as one run.

    Attributes:
        name: the network's folder below the log directory, with slashes.
        members: the network, then its predictions, the theory first; or a single file that belongs to no network.
    """

    name: str
    members: tuple[Member, ...]


class Library:
    """The runs below one or more directories; files are read again when they have changed.

    Args:
        roots: name -> directory; the name is put before the names of runs, and may be empty.
        older: further runs by name, which are shown where there is no file of records.
    """

    def __init__(self, roots: Mapping[str, Path], older: Callable[[], Mapping[str, Member]] = dict) -> None:
        self.roots = dict(roots)
        self._older = older
        self.problems: tuple[str, ...] = ()
        self._members: dict[Path, Member] = {}
        self._read: dict[Path, tuple[tuple[int, ...], Records]] = {}
        self._runs: dict[str, Run] = {}
        self._looked = -_FRESH
        self._lock = threading.Lock()

    def runs(self) -> dict[str, Run]:
        """Every run by its name, in order."""
        with self._lock:
            if time.monotonic() - self._looked >= _FRESH:
                self._look()
            return self._runs

    def records(self, member: Member) -> Records:
        """The records of a member of a run, read again if its files have changed."""
        with self._lock:
            kept = self._read.get(member.folder)
            if kept is None or kept[0] != member.stamp:
                kept = self._read[member.folder] = (member.stamp, member.read())
                while len(self._read) > _MOST_READ:
                    del self._read[next(iter(self._read))]
            return kept[1]

    def warm(self) -> None:
        """Read the first run, in a thread of its own, so that it is there when it is asked for."""

        def read_first() -> None:
            for run in list(self.runs().values())[:1]:
                for member in run.members:
                    self.records(member)

        threading.Thread(target=read_first, daemon=True).start()

    def _look(self) -> None:
        """Look for runs, with and without records."""
        members = {**self._older(), **{name: self._member(folder) for name, folder in self._walk()}}
        known = {member.folder for member in members.values()}
        self._members = {folder: member for folder, member in self._members.items() if folder in known}
        self._read = {folder: kept for folder, kept in self._read.items() if folder in known}
        self._runs = _grouped(members)
        self._looked = time.monotonic()

    def _walk(self) -> Iterator[tuple[str, Path]]:
        """Folders with records, in order of their names; links are followed, each folder once."""
        self.problems = ()
        seen: set[str] = set()
        for root, top in self.roots.items():
            for folder, inner, files in os.walk(top, followlinks=True):
                real = os.path.realpath(folder)
                if len(seen) >= MOST_FOLDERS:
                    self.problems = (f"Only the first {MOST_FOLDERS} folders below {top} were looked at.",)
                    break
                if real in seen:
                    inner.clear()
                    continue
                seen.add(real)
                inner.sort()
                if TEXT in files:
                    relative = Path(folder).relative_to(top).as_posix()
                    yield "/".join(part for part in (root, relative) if part not in ("", ".")) or ".", Path(folder)

    def _member(self, folder: Path) -> Member:
        stamp = tuple(number for name in (TEXT, KERNELS) for number in _stamp(folder / name))
        known = self._members.get(folder)
        if known is None or known.stamp != stamp:
            known = self._members[folder] = Member(folder, read_about(folder), stamp, partial(read, folder))
        return known


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes when a file does."""
    try:
        facts = path.stat()
    except OSError:
        return ()
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


_ORDER = {"theory": 0, "networks": 1, "static": 2}


def _grouped(members: Mapping[str, Member]) -> dict[str, Run]:
    """Networks with the predictions of the same folder that are of them; what is left stands alone."""
    runs: dict[str, Run] = {}
    used: set[str] = set()
    for name, one in members.items():
        if one.about is None or one.about.kind != "network":
            continue
        beside = [other for other, theirs in members.items() if _parent(other) == _parent(name) and _is_of(theirs, one)]
        used |= {name, *beside}
        predictions = sorted((members[other] for other in beside), key=_rank)
        runs[name] = Run(name, (one, *predictions))
    runs |= {name: Run(name, (one,)) for name, one in members.items() if name not in used}
    return dict(sorted(runs.items()))


def _is_of(prediction: Member, network: Member) -> bool:
    ours, theirs = network.about, prediction.about
    return ours is not None and theirs is not None and theirs.kind != "network" and theirs.network == ours.origin


def _rank(member: Member) -> int:
    return 9 if member.about is None else _ORDER.get(member.about.kind, 9)


def _parent(name: str) -> str:
    return name.rpartition("/")[0]
