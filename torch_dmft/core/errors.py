"""Every error the package raises on purpose: what went wrong, what was got, and the remedy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


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


class InvalidInputError(DMFTError, ValueError):
    """An argument has a wrong shape, type or value."""


class MissingFileError(InvalidInputError, FileNotFoundError):
    """A file that was to be read does not exist."""


class NotRecordedError(DMFTError, LookupError):
    """A quantity was asked of a kernel or trajectory that does not hold it."""


class ConvergenceError(DMFTError, RuntimeError):
    """A numerical method did not reach its tolerance; nothing is returned in place of a result."""


class InsufficientMemoryError(DMFTError, MemoryError):
    """The estimate of the memory needed exceeds what the machine has free."""


class UnsupportedProblemError(DMFTError, ValueError):
    """A solver was given a problem outside its assumptions."""


@dataclass(frozen=True)
class Place:
    """One spot of a model that cannot be handled: its module path, the reason and the remedy."""

    path: str
    reason: str
    remedy: str


class UnsupportedModelError(DMFTError, ValueError):
    """A model has parts that cannot be handled; the message lists every one of them."""

    def __init__(self, what: str, places: Iterable[Place]) -> None:
        self.places = tuple(places)
        lines = [f"  {place.path}: {place.reason}. Remedy: {place.remedy}." for place in self.places]
        super().__init__("\n".join([what, *lines]))
