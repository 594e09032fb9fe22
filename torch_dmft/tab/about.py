"""What a file of records says of its run before the first record."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from torch_dmft.core.errors import InvalidInputError

SCHEMA = 2
"""Raised whenever a file written now could not be read by the code before; files of all earlier ones are read."""
FORMAT = "torch_dmft records"

MOST_SAMPLES, MOST_WEIGHTS, MOST_TIMES = 1024, 4096, 4096
"""Sizes beyond which a file is refused before memory is taken for it."""

KINDS = ("network", "theory", "static", "networks")
Fact = str | int | float | bool | None


@dataclass(frozen=True)
class About:
    """One run: a trained network or a prediction of it, and how its kernels are laid out.

    Attributes:
        origin: what legends call it, such as ``"network (N=512)"``.
        kind: ``"network"``, ``"theory"``, ``"static"`` (the static NTK) or ``"networks"`` (a mean over finite networks).
        weights: module paths of weights l = 0..L.
        rows: of the probe, which samples the kernels are shown on, in the order in which they are shown: sorted by label.
        labels: of these samples: a class, or the first target; () without targets.
        train: whether the model is trained on them.
        samples: how many rows the probe has.
        network: of a prediction, the origin of the network that its deviations are of.
        facts: settings and plain facts: gamma0, width, depth, lr, optimizer, ...
        verdict: what the comparison says, sentence by sentence.
        plan: the table of the network's parameters, its head first.
        times: steps of the two-time kernels; () if there are none.
        pairs: whether these are kept for pairs of samples, beside their mean over equal samples.
        ntk: whether the NTK was recorded.
    """

    origin: str
    kind: str
    weights: tuple[str, ...]
    rows: tuple[int, ...]
    labels: tuple[float, ...] = ()
    train: tuple[bool, ...] = ()
    samples: int = 0
    network: str | None = None
    facts: Mapping[str, Fact] = field(default_factory=dict)
    verdict: tuple[str, ...] = ()
    plan: tuple[tuple[str, ...], ...] = ()
    times: tuple[int, ...] = ()
    pairs: bool = False
    ntk: bool = True

    @property
    def kernels(self) -> tuple[str, ...]:
        """Names of the kernels of one step in the order of the file: ``"Phi/0"``, ..., ``"NTK/all"``."""
        kinds = ("Phi", "G", "NTK") if self.ntk else ("Phi", "G")
        each = [f"{kind}/{weight}" for kind in kinds for weight in range(len(self.weights))]
        return (*each, "NTK/all") if self.ntk else tuple(each)

    @property
    def two_time_kernels(self) -> tuple[str, ...]:
        """Names of the two-time kernels in the order of their file; the NTK has none."""
        return tuple(f"{kind}/{weight}" for kind in ("Phi", "G") for weight in range(len(self.weights)))

    @property
    def triangle(self) -> int:
        """How many numbers tell a symmetric matrix over the samples."""
        return len(self.rows) * (len(self.rows) + 1) // 2

    def same_layout(self, other: About) -> bool:
        """Whether records of both can stand in one file."""
        mine, theirs = ((about.weights, about.rows, about.labels, about.ntk) for about in (self, other))
        return mine == theirs

    def as_json(self) -> dict[str, Any]:
        """Plain data, which ``from_json`` reads."""
        return asdict(self)

    @staticmethod
    def from_json(data: Any) -> About:
        """Read plain data.

        Raises:
            InvalidInputError: if it is not what ``as_json`` returns, or larger than anything that is written.
        """
        known = {each.name for each in fields(About)}
        if not isinstance(data, dict) or not {"origin", "kind", "weights", "rows"} <= data.keys() <= known:
            raise InvalidInputError("The first line must describe a run.", got=str(data)[:80])
        about = About(**{name: _frozen(value) for name, value in data.items()})
        lists: dict[str, type | tuple[type, ...]] = {
            "weights": str,
            "rows": int,
            "labels": (int, float),
            "train": bool,
            "verdict": str,
            "times": int,
        }
        for name, kind in lists.items():
            values = getattr(about, name)
            if not isinstance(values, tuple) or not all(isinstance(value, kind) for value in values):
                raise InvalidInputError(f"`{name}` must be a list of its kind.", got=str(values)[:80])
        rows = len(about.rows)
        fits = (
            isinstance(about.origin, str)
            and about.kind in KINDS
            and isinstance(about.network, str | None)
            and isinstance(about.facts, dict)
            and all(map(_is_fact, about.facts.values()))
            and all(map(_is_fact, about.labels))
            and isinstance(about.samples, int)
            and isinstance(about.ntk, bool)
            and isinstance(about.plan, tuple)
            and all(isinstance(line, tuple) and all(isinstance(cell, str) for cell in line) for line in about.plan)
            and len(about.labels) in (0, rows)
            and len(about.train) in (0, rows)
        )
        if not fits:
            raise InvalidInputError("The first line does not describe a run of this schema.", got=str(data)[:80])
        for size, most, what in (
            (rows, MOST_SAMPLES, "samples"),
            (len(about.weights), MOST_WEIGHTS, "weights"),
            (len(about.times), MOST_TIMES, "times"),
        ):
            if size > most:
                raise InvalidInputError(f"A run has at most {most} {what} here.", got=f"{size} {what}")
        return about


def _is_fact(value: Any) -> bool:
    """Whether a value can be sent to the page: JSON knows no numbers that are not finite."""
    return math.isfinite(value) if isinstance(value, float) else isinstance(value, str | int | None)


def _frozen(value: Any) -> Any:
    """Lists as tuples, at any depth."""
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
