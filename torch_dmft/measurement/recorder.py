"""Recorder: measures a network on a schedule while it trains, without changing the training by a single bit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torch_dmft.core.errors import InvalidInputError, NotRecordedError
from torch_dmft.core.kernel import Kernel
from torch_dmft.core.loss import Loss, default_loss
from torch_dmft.core.trajectory import LayerKernels, Trajectory
from torch_dmft.measurement.fields import FieldMemory
from torch_dmft.measurement.gradients import Layouts
from torch_dmft.measurement.probe import Probe
from torch_dmft.measurement.record import LayerRecord, Record, reduce_snapshot
from torch_dmft.measurement.schedule import Schedule, at_steps
from torch_dmft.measurement.schedule import every as every_steps
from torch_dmft.measurement.snapshot import Snapshot, snapshot
from torch_dmft.measurement.subject import base_rate, optimizer_facts, subject_of
from torch_dmft.measurement.two_time import TwoTimeMemory
from torch_dmft.parameterization.centered import Centered

if TYPE_CHECKING:
    from torch_dmft.parameterization import Plan

Callback = Callable[[int, Record], None]


class Recorder:
    """Records outputs, loss and kernels of a network on a probe while it trains.

    Step t is recorded *before* update t, after update t-1 is done. The network is measured in eval mode with autocast
    off; its training flags, buffers, gradients and all random states are put back, so training goes on bit for bit as
    without a recorder. Each record is moved to the CPU once.

    Args:
        plan_or_model: what ``parameterize`` or ``infinite_width`` returned, or a bare module, which is taken as it is
            in the standard parameterization.
        probe: the data to record on.
        every: record every n-th step. The default, every step, suits runs that are compared to a theory; for long runs
            give a schedule such as ``log_spaced(50)``. ``recorder.trajectory().metadata["seconds"]`` tells what
            measuring cost.
        schedule: instead of ``every``: a predicate ``step -> bool``, or the steps themselves. Step 0 is always
            recorded.
        two_time: also record Phi and G between pairs of times. Keeps the fields of all records on the model's device.
            The NTK stays at equal times.
        loss: ``loss(outputs, targets) -> scalar`` on the training rows; default ``nn.MSELoss()`` for float targets and
            ``nn.CrossEntropyLoss()`` for classes. Without targets the recorded loss is NaN.
        fields: where to keep the fields h, g and z of single neurons, for densities: True for the first record, the last
            and up to three between, False for none, or the steps themselves or a predicate ``step -> bool`` (of recorded
            steps). At most a million numbers are kept of each field, weight and step.
        model: the module whose outputs are recorded, if it is not the plan's model but a wrapper:
            ``centered(plan.model)``.
        callbacks: called with ``(step, record)`` after each record, outside the protection described above.

    Raises:
        InvalidInputError: if both ``every`` and ``schedule`` are given, or the arguments do not fit.

    Example:
        >>> recorder = Recorder(plan, Probe(inputs, targets))  # doctest: +SKIP
        >>> with recorder.attach(optimizer):
        ...     train(model, optimizer)
        >>> measured = recorder.trajectory()
    """

    def __init__(
        self,
        plan_or_model: Plan | nn.Module,
        probe: Probe,
        *,
        every: int | None = None,
        schedule: Schedule | Iterable[int] | None = None,
        two_time: bool = False,
        loss: Loss | None = None,
        fields: bool | Schedule | Iterable[int] = True,
        model: nn.Module | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        if every is not None and schedule is not None:
            raise InvalidInputError("A recorder has one schedule.", got="both every and schedule", remedy="give one")
        if not isinstance(probe, Probe):
            raise InvalidInputError(
                "A recorder needs a probe.", got=type(probe).__name__, remedy="Probe(inputs, targets)"
            )
        if schedule is None:
            schedule = every_steps(1 if every is None else every)
        self.probe = probe
        self.schedule: Schedule = schedule if callable(schedule) else at_steps(schedule)
        self.callbacks = tuple(callbacks)
        self.step = 0
        self.records: list[Record] = []
        self.subject = subject_of(plan_or_model, probe.inputs, run=model)
        self._loss = default_loss(probe.targets) if loss is None else loss
        self._lr = math.nan
        self._optimizer: dict[str, str | float | bool] = {}
        self._seconds = 0.0
        self._attached = False
        self._layouts: Layouts | None = None
        chosen = None if isinstance(fields, bool) else fields if callable(fields) else at_steps(fields)
        is_chain = self.subject.architecture.is_chain
        self._fields = FieldMemory(chosen, is_chain=is_chain) if fields is not False else None
        self._two_time = [TwoTimeMemory() for _ in self.subject.architecture.layers] if two_time else []

    @contextmanager
    def attach(self, optimizer: Optimizer) -> Iterator[Recorder]:
        """Record while the body trains with this optimizer.

        Records on entry if the current step is scheduled, then after each scheduled call of ``optimizer.step()``.
        Nothing stays attached afterwards, also if the body raises. A second ``attach`` goes on counting where the first
        stopped.

        Args:
            optimizer: any ``torch.optim.Optimizer`` that trains parameters of the model.

        Raises:
            InvalidInputError: if the optimizer trains none of them, or the recorder is attached already.
        """
        if self._attached:
            raise InvalidInputError(
                "The recorder is attached already.", remedy="leave the first attach before the next"
            )
        if math.isnan(self._lr):
            self._lr = base_rate(self.subject, optimizer)
        self._optimizer = optimizer_facts(optimizer)

        def after_step(*_: Any) -> None:
            self.step += 1
            if self.schedule(self.step):
                self.record()

        handle = optimizer.register_step_post_hook(after_step)
        self._attached = True
        try:
            recorded = bool(self.records) and self.records[-1].step == self.step
            if not recorded and (self.step == 0 or self.schedule(self.step)):
                self.record()
            yield self
        finally:
            self._attached = False
            handle.remove()

    def record(self) -> Record:
        """Measure now, as step ``recorder.step``, and keep the result."""
        started = time.perf_counter()
        device = next(self.subject.run.parameters()).device
        record = self.keep(snapshot(self.subject, self.probe.inputs.to(device), layouts=self._layouts))
        self._seconds += time.perf_counter() - started
        for callback in self.callbacks:
            callback(self.step, record)
        return record

    def keep(self, taken: Snapshot) -> Record:
        """Keep a snapshot of the network on the probe, taken elsewhere, as the record of step ``recorder.step``."""
        self._layouts = taken.layouts
        record = reduce_snapshot(taken, self.step, self._loss_of(taken.outputs))
        self.records.append(record)
        if self._fields is not None:
            self._fields.add(self.step, [layer.stream for layer in taken.layers])
        for memory, layer in zip(self._two_time, taken.layers, strict=False):
            memory.add(layer.stream)
        return record

    def trajectory(self, origin: str | None = None) -> Trajectory:
        """What was recorded so far.

        Args:
            origin: how legends name this run; default the plan's origin, such as ``"network (N=512)"``.

        Returns:
            A ``Trajectory`` on the CPU. ``metadata["seconds"]`` is the time spent measuring; ``lr`` is NaN if the
            optimizer's rates are not one base rate times the plan's multipliers.

        Raises:
            NotRecordedError: if nothing was recorded.
        """
        if not self.records:
            raise NotRecordedError(
                "Nothing was recorded yet.", remedy="train inside `with recorder.attach(optimizer):`"
            )
        records, subject = self.records, self.subject
        layers = tuple(self._layer(index) for index in range(len(subject.architecture.layers)))
        outputs = torch.stack([record.outputs for record in records])
        targets = self.probe.target_values(outputs.shape[2])
        return Trajectory(
            steps=torch.tensor([record.step for record in records], device=outputs.device),
            outputs=outputs,
            losses=outputs.new_tensor([record.loss for record in records]),
            layers=layers,
            ntk=_stack(record.ntk for record in records),
            origin=subject.origin if origin is None else origin,
            lr=self._lr,
            train=self.probe.train_rows,
            targets=None if targets is None else targets.cpu(),
            metadata={
                "width": subject.width,
                "gamma0": subject.gamma0,
                "scheme": subject.scheme,
                "centered": isinstance(subject.run, Centered),
                **self._optimizer,
                "seconds": self._seconds,
            },
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything recorded so far as plain containers of tensors, for a checkpoint beside the model's."""
        return {
            "step": self.step,
            "lr": self._lr,
            "optimizer": self._optimizer,
            "seconds": self._seconds,
            "records": [asdict(record) for record in self.records],
            "fields": None if self._fields is None else self._fields.state_dict(),
            "two_time": [memory.state_dict() for memory in self._two_time],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint: the next ``attach`` continues its step count and its records.

        Raises:
            InvalidInputError: if the checkpoint is of another model or of other settings.
        """
        paths = [layer.path for layer in self.subject.architecture.layers]
        found = [layer["name"] for record in state["records"][:1] for layer in record["layers"]]
        if (found and found != paths) or len(state["two_time"]) != len(self._two_time):
            raise InvalidInputError(
                "The recorder's checkpoint does not fit this recorder.",
                got=f"layers {found}, two_time={bool(state['two_time'])}",
                remedy="build the recorder for the same model with the same settings before loading",
            )
        self.step, self._lr, self._seconds = state["step"], state["lr"], state["seconds"]
        self._optimizer = state["optimizer"]
        self.records = [
            Record(**{**record, "layers": tuple(LayerRecord(**layer) for layer in record["layers"])})
            for record in state["records"]
        ]
        if self._fields is not None and state["fields"] is not None:
            self._fields.load_state_dict(state["fields"])
        for memory, layer, saved in zip(
            self._two_time, self.subject.architecture.layers, state["two_time"], strict=False
        ):
            memory.load_state_dict(saved, layer, self.subject.gamma0)

    def _layer(self, index: int) -> LayerKernels:
        kept = [record.layers[index] for record in self.records]
        if self._two_time:
            forward, backward = self._two_time[index].kernels()
        else:
            forward, backward = _stack(layer.forward for layer in kept), _stack(layer.backward for layer in kept)
        fields = None if self._fields is None else self._fields.fields(index)
        return LayerKernels(kept[0].name, forward, backward, _stack(layer.ntk for layer in kept), fields)

    def _loss_of(self, outputs: Tensor) -> float:
        if self.probe.targets is None:
            return math.nan
        train = self.probe.train_rows
        targets = self.probe.targets[train.to(self.probe.targets.device)].to(outputs.device)
        if targets.is_floating_point():
            targets = targets.to(outputs.dtype)
        with torch.no_grad():
            return float(self._loss(outputs[train.to(outputs.device)], targets))


def _stack(arrays: Iterable[Tensor]) -> Kernel:
    return Kernel(torch.stack(list(arrays)))
