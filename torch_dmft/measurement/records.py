"""Records: everything that a recorder keeps of a run, and the trajectory that it becomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch_dmft.core.errors import InvalidInputError, NotRecordedError
from torch_dmft.core.factors import tolerance_of
from torch_dmft.core.layer_kernels import LayerKernels
from torch_dmft.core.stability import curvatures
from torch_dmft.core.training import Training
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.measurement.compression import CompressedMemory
from torch_dmft.measurement.conditions import Conditions
from torch_dmft.measurement.fields import FieldMemory
from torch_dmft.measurement.probe import Probe
from torch_dmft.measurement.probe_loss import ProbeLoss
from torch_dmft.measurement.record import joined, plain, record_of, restored
from torch_dmft.measurement.snapshot import Snapshot
from torch_dmft.measurement.subject import Subject
from torch_dmft.measurement.two_time import TwoTimeMemory


class Records:
    """The records of a run, one trajectory of one time for each, and what is kept beside them.

    Args:
        subject: the network.
        probe: the rows that are recorded.
        loss: of the run, on the probe.
        two_time: whether Phi and G between pairs of times are kept, or to which tolerance.
        fields: keeps the fields of single neurons; None for none.

    Attributes:
        each: the records, in order.
        seconds: time spent measuring.
    """

    def __init__(
        self, subject: Subject, probe: Probe, loss: ProbeLoss, *, two_time: bool | float, fields: FieldMemory | None
    ) -> None:
        self.each: list[Trajectory] = []
        self.seconds = 0.0
        self._subject, self._probe, self._loss, self._fields = subject, probe, loss, fields
        self._conditions = Conditions(subject)
        self._tolerance = tolerance_of(two_time)
        layers, per_output = subject.architecture.layers, subject.wanted.per_output
        self._two_time: list[TwoTimeMemory | CompressedMemory] = []
        if self._tolerance is not None:
            self._two_time = [CompressedMemory(self._tolerance, per_output=per_output) for _ in layers]
        elif two_time:
            self._two_time = [TwoTimeMemory(per_output=per_output) for _ in layers]

    def has(self, step: int) -> bool:
        """Whether the last record is of this step."""
        return bool(self.each) and int(self.each[-1].steps) == step

    def add(self, taken: Snapshot, step: int) -> Trajectory:
        """Keep a snapshot as the record of a step.

        Raises:
            InsufficientMemoryError: if what is kept beside it would not fit.
        """
        memories = list(zip(self._two_time, taken.layers, strict=False))
        for memory, layer in memories:
            memory.require_room(layer.stream)
        like = self.each[0] if self.each else None
        record = record_of(self._subject, self._probe, taken, step, self._loss.number(taken.outputs), like=like)
        record = self._conditions.seen(taken, record, like or record)
        if self._fields is not None:
            self._fields.add(step, [layer.stream for layer in taken.layers])
        self.each.append(record)
        for memory, layer in memories:
            memory.add(layer.stream)
        return record

    def trajectory(self, training: Training | None) -> Trajectory:
        """All records as one run.

        Args:
            training: how the network was trained; None if nobody saw it.

        Raises:
            NotRecordedError: if nothing was recorded.
        """
        self._require_any()
        run = joined(self.each)
        return replace(
            self._trained(run, training),
            layers=tuple(self._with_memory(layer, index) for index, layer in enumerate(run.layers)),
            metadata={"seconds": self.seconds, **self._conditions.facts},
        )

    def latest(self, training: Training | None) -> Trajectory:
        """The last record, likewise, at equal times."""
        self._require_any()
        run = self._trained(self.each[-1], training)
        if self._fields is None:
            return run
        layers = enumerate(run.layers)
        return replace(run, layers=tuple(replace(layer, fields=self._fields.latest(index)) for index, layer in layers))

    def _require_any(self) -> None:
        if not self.each:
            raise NotRecordedError(
                "Nothing was recorded yet.", got="no record", remedy="train inside `with recorder.attach(optimizer):`"
            )

    def _trained(self, run: Trajectory, training: Training | None) -> Trajectory:
        """Records with how the network was trained, and how much the loss bends along the NTK."""
        curvature = None
        if run.targets is not None and run.ntk is not None and run.is_per_output:
            # brings the targets into their form, which must not be done inside transforms
            self._loss.number(run.outputs[-1])
            curvature = curvatures(run.outputs, run.ntk, self._probe.train_rows, self._loss)
        unseen = Training.unseen(int(run.steps[-1]), self._subject.plan)
        return replace(run, training=unseen if training is None else training, curvature=curvature)

    def _with_memory(self, layer: LayerKernels, index: int) -> LayerKernels:
        """The kernels of a weight with its fields and, if they are kept, between two times."""
        if self._two_time:
            layer = self._two_time[index].completed(layer)
        return layer if self._fields is None else replace(layer, fields=self._fields.fields(index))

    @property
    def _settings(self) -> dict[str, Any]:
        """Which kernels, of which rows."""
        wanted, rows = self._subject.wanted, self._subject.kernel_rows
        settings = {"ntk": wanted.ntk, "per_output": wanted.per_output, "rows": None if rows is None else list(rows)}
        return settings if self._tolerance is None else {**settings, "tolerance": self._tolerance}

    def state_dict(self) -> dict[str, Any]:
        """Everything kept, as plain containers of tensors."""
        return {
            "seconds": self.seconds,
            "conditions": self._conditions.state_dict(),
            "records": [plain(record) for record in self.each],
            "fields": None if self._fields is None else self._fields.state_dict(),
            "two_time": [memory.state_dict() for memory in self._two_time],
            "recorded": self._settings,
        }

    def refuse_other(self, state: Mapping[str, Any]) -> None:
        """Refuse what was kept of another model or by other settings.

        Raises:
            InvalidInputError: saying which.
        """
        paths = [layer.path for layer in self._subject.architecture.layers]
        found = [layer["name"] for record in state["records"][:1] for layer in record["layers"]]
        settings = state.get("recorded", self._settings)
        if (found and found != paths) or len(state["two_time"]) != len(self._two_time) or settings != self._settings:
            shown = ", ".join(f"{name}={value}" for name, value in settings.items())
            raise InvalidInputError(
                "The recorder's checkpoint does not fit this recorder.",
                got=f"layers {found}, two_time={bool(state['two_time'])}, {shown}",
                remedy="build the recorder for the same model with the same settings before loading",
            )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` saved, which is not refused."""
        self.seconds = state["seconds"]
        self._conditions.load_state_dict(state["conditions"])
        self.each = [restored(self._subject, self._probe, record) for record in state["records"]]
        if self._fields is not None and state["fields"] is not None:
            self._fields.load_state_dict(state["fields"])
        layers = self._subject.architecture.layers
        for memory, layer, saved in zip(self._two_time, layers, state["two_time"], strict=False):
            memory.load_state_dict(saved, layer, self._subject.gamma0)
