"""Every error the package raises on purpose: what went wrong, what was got, and the remedy."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any


class DMFTError(Exception):
    """Base of all errors raised by torch_dmft."""

    def __init__(self, what: str, *, got: str | None = None, remedy: str | None = None) -> None:
        self.what, self.got, self.remedy = what, got, remedy
        parts = [what]
        if got is not None:
            parts.append(f"Got: {got}.")
        if remedy is not None:
            parts.append(f"Remedy: {remedy}.")
        super().__init__(" ".join(parts))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what it says, not how it was made: an error of another process has to arrive, whatever its class takes."""
        return _as_raised, (type(self), self.args, vars(self))


def _as_raised(kind: type[DMFTError], args: tuple[Any, ...], attributes: dict[str, Any]) -> DMFTError:
    """An error as it was where it was raised, without its traceback."""
    makers: list[Any] = [base for base in kind.__mro__ if base.__module__ == "builtins"]
    for base in makers:  # of several built-in ones a single one can make it: OSError, for one that is of its kind
        with suppress(TypeError):
            error = base.__new__(kind)
            break
    error.args = args
    vars(error).update(attributes)
    return error


class InvalidInputError(DMFTError, ValueError):
    """An argument has a wrong shape, type or value."""


class MissingFileError(InvalidInputError, FileNotFoundError):
    """A file that was to be read does not exist."""


class NotWrittenError(DMFTError, OSError):
    """A file could not be written: the disk is full, the folder is missing, or a device stands in its place."""


class NotRecordedError(DMFTError, LookupError):
    """A quantity was asked of a kernel or trajectory that does not hold it."""


class ConvergenceError(DMFTError, RuntimeError):
    """A numerical method did not reach its tolerance; nothing is returned in place of a result."""


class InsufficientMemoryError(DMFTError, MemoryError):
    """The estimate of the memory needed exceeds what the machine has free."""


class BusyModelError(DMFTError, RuntimeError):
    """One thread runs a network while another one measures it, and none of them can wait for the other."""


class LostProcessError(DMFTError, ConnectionError):
    """Another of the processes that work together has ended, or cannot be reached."""


class UnsupportedProblemError(DMFTError, ValueError):
    """A solver was given a problem outside its assumptions."""


@dataclass(frozen=True)
class Place:
    """One spot of a model that cannot be handled: its module path, the reason and the remedy."""

    path: str
    reason: str
    remedy: str


class UnsupportedModelError(DMFTError, ValueError):
    """A model has parts that cannot be handled; the message lists every one of them, those of one kind in one line.

    Attributes:
        places: all of them.
    """

    def __init__(self, what: str, places: Iterable[Place]) -> None:
        self.places = tuple(places)
        kinds: dict[tuple[str, str], list[Place]] = {}
        for place in self.places:
            kinds.setdefault((_pattern(place.reason), place.remedy), []).append(place)
        lines = []
        for (reason, remedy), alike in kinds.items():
            patterns = Counter(_pattern(place.path) for place in alike)
            single = {_pattern(place.path): place.path for place in alike}
            paths = [f"{path} ({n} times)" if n > 1 else single[path] for path, n in patterns.items()]
            lines.append(f"  {', '.join(paths)}: {alike[0].reason if len(alike) == 1 else reason}. Remedy: {remedy}.")
        super().__init__("\n".join([what, *lines]))


def _pattern(text: str) -> str:
    """A text with the numbers in dotted names left open: ``"h.*.attn"`` for all of ``"h.0.attn"``, ``"h.1.attn"``, ..."""
    return re.sub(r"(?<=\.)\d+(?=\.)|\b\d+(?=\.[A-Za-z_])|(?<=[A-Za-z_]\.)\d+\b", "*", text)
