"""Under which conditions a network was measured: precision, statistics, hooks; and whether what came out is finite."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from torch_dmft.core.divergence import is_exploded, not_finite
from torch_dmft.core.listed import listed
from torch_dmft.core.torch_private import foreign_hooks
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.measurement.batch_norm import norms_in
from torch_dmft.measurement.moment import Snapshot
from torch_dmft.measurement.subject import Subject

_DIVERGED = "diverged: "


class Conditions:
    """What is to be known of the records of one network; each is warned of once.

    Args:
        subject: the network.
    """

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._facts: dict[str, str] = {}
        self._notes: dict[str, None] = {}

    @property
    def facts(self) -> dict[str, str]:
        """For the metadata of a trajectory: precision, and statistics of BatchNorm if there is any."""
        return dict(self._facts)

    def seen(self, taken: Snapshot, record: Trajectory, first: Trajectory) -> Trajectory:
        """The record with all that is to be known of it among its notes.

        Args:
            taken: the snapshot.
            record: what is kept of it.
            first: the first record.
        """
        self._facts["precision"] = str(taken.precision).removeprefix("torch.")
        if norms_in(self._subject.run):
            self._facts["batch norm"] = f"statistics of the {self._subject.batch_norm}"
        notes = (*record.notes, *self._hooks(), *self._divergence(record, first))
        for text in notes:
            if text not in self._notes:
                self._notes[text] = None
                warnings.warn(f"{self._subject.plan.origin}: {text}.", stacklevel=5)
        return replace(record, notes=notes)

    def _hooks(self) -> Iterator[str]:
        hooked = [path or "(model)" for path in foreign_hooks(self._subject.model)]
        if hooked:
            yield f"hooks on {listed(hooked)} are called while the network is measured, too"

    def _divergence(self, record: Trajectory, first: Trajectory) -> Iterator[str]:
        if any(text.startswith(_DIVERGED) for text in self._notes):
            return
        step, loss, first_loss = int(record.steps[0]), float(record.losses[0]), float(first.losses[0])
        bad = not_finite(record, 0)
        if bad:
            shown = " and ".join(bad[:2]) + (f" and {len(bad) - 2} more" if len(bad) > 2 else "")
            yield f"{_DIVERGED}at step {step} {shown} {'are' if len(bad) > 1 else 'is'} not finite"
            return
        size, before = _size(record.outputs), _size(first.outputs)
        if is_exploded(size, before, 1.0 if record.targets is None else _size(record.targets), loss, first_loss):
            times = size / max(before, 1e-30)
            yield f"{_DIVERGED}at step {step} its outputs are {times:.3g} times as large as at the first record"

    def state_dict(self) -> dict[str, Any]:
        """As plain containers."""
        return {"facts": dict(self._facts), "notes": list(self._notes)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what was seen before."""
        self._facts, self._notes = dict(state["facts"]), dict.fromkeys(state["notes"])


def _size(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt())
