"""Recorder: measures a network on a schedule while it trains, without changing the training by a single bit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torch_dmft.core.errors import InvalidInputError, NotRecordedError
from torch_dmft.core.kernel import Kernel
from torch_dmft.core.trajectory import LayerKernels, Trajectory
from torch_dmft.measurement.gradients import Layouts
from torch_dmft.measurement.memory import require_memory
from torch_dmft.measurement.normal_form import Stream, backward_gram, forward_gram
from torch_dmft.measurement.probe import Probe
from torch_dmft.measurement.record import FieldRecord, Record, field_records, join_fields, join_times, reduce_snapshot
from torch_dmft.measurement.schedule import Schedule, at_steps
from torch_dmft.measurement.schedule import every as every_steps
from torch_dmft.measurement.snapshot import Snapshot, snapshot, squeeze_outputs
from torch_dmft.measurement.subject import Subject, subject_of

if TYPE_CHECKING:
    from torch_dmft.parameterization import Plan

Loss = Callable[[Tensor, Tensor], Tensor]
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
        keep_fields: keep the single-neuron fields of the first and the last record.
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
        keep_fields: bool = True,
        model: nn.Module | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        if every is not None and schedule is not None:
            raise InvalidInputError("A recorder has one schedule.", got="both every and schedule", remedy="give one")
        if schedule is None:
            schedule = every_steps(1 if every is None else every)
        self.probe = probe
        self.schedule: Schedule = schedule if callable(schedule) else at_steps(schedule)
        self.two_time, self.keep_fields = two_time, keep_fields
        self.callbacks = tuple(callbacks)
        self.step = 0
        self.records: list[Record] = []
        self._subject = subject_of(plan_or_model, probe.inputs, run=model)
        self._loss = _default_loss(probe) if loss is None else loss
        self._lr = math.nan
        self._seconds = 0.0
        self._attached = False
        self._layouts: Layouts | None = None
        self._first_fields: list[FieldRecord] = []
        self._last_fields: list[FieldRecord] = []
        self._past = [_Past() for _ in self._subject.architecture.layers]

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
            self._lr = base_rate(self._subject, optimizer)

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
        model = self._subject.run
        device = next(model.parameters()).device
        taken = snapshot(self._subject, self.probe.inputs.to(device), layouts=self._layouts)
        self._layouts = taken.layouts
        record = reduce_snapshot(taken, self.step, self._loss_of(taken.outputs))
        self.records.append(record)
        if self.keep_fields:
            self._last_fields = field_records(taken)
            self._first_fields = self._first_fields or self._last_fields
        if self.two_time:
            self._remember(taken)
        self._seconds += time.perf_counter() - started
        for callback in self.callbacks:
            callback(self.step, record)
        return record

    def trajectory(self, origin: str | None = None) -> Trajectory:
        """What was recorded so far.

        Args:
            origin: how legends name this run; default ``"network (N=512)"`` with the width of the readout.

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
        records, subject = self.records, self._subject
        layers = []
        for index, past in enumerate(self._past):
            kept = [record.layers[index] for record in records]
            layers.append(
                LayerKernels(
                    name=kept[0].name,
                    forward=join_times(past.forward) if self.two_time else _stack(k.forward for k in kept),
                    backward=join_times(past.backward) if self.two_time else _stack(k.backward for k in kept),
                    ntk=_stack(k.ntk for k in kept),
                    fields=join_fields(
                        (records[0].step, records[-1].step), self._first_fields[index], self._last_fields[index]
                    )
                    if self.keep_fields
                    else None,
                )
            )
        outputs = torch.stack([record.outputs for record in records])
        targets = self.probe.target_values(outputs.shape[2])
        return Trajectory(
            steps=torch.tensor([record.step for record in records]),
            outputs=outputs,
            losses=torch.tensor([record.loss for record in records], dtype=outputs.dtype),
            layers=tuple(layers),
            ntk=_stack(record.ntk for record in records),
            origin=f"network (N={subject.width})" if origin is None else origin,
            lr=self._lr,
            train=self.probe.train_rows,
            targets=None if targets is None else targets.cpu(),
            metadata={
                "width": subject.width,
                "gamma0": subject.gamma0,
                "scheme": subject.scheme,
                "seconds": self._seconds,
            },
        )

    def _loss_of(self, outputs: Tensor) -> float:
        if self.probe.targets is None:
            return math.nan
        train = self.probe.train_rows
        targets = self.probe.targets[train.to(self.probe.targets.device)].to(outputs.device)
        if targets.is_floating_point():
            targets = targets.to(outputs.dtype)
        with torch.no_grad():
            return float(self._loss(outputs[train.to(outputs.device)], targets))

    def _remember(self, taken: Snapshot) -> None:
        for past, layer in zip(self._past, taken.layers, strict=True):
            past.add(layer.stream)


@dataclass
class _Past:
    """Streams of earlier records of one layer, and the blocks of its two-time kernels so far."""

    streams: list[Stream] = field(default_factory=list)
    forward: list[list[Tensor]] = field(default_factory=list)
    backward: list[list[Tensor]] = field(default_factory=list)

    def add(self, stream: Stream) -> None:
        tensors = [*stream.inputs, *stream.gradients]
        require_memory(
            sum(tensor.numel() * tensor.element_size() for tensor in tensors),
            tensors[0].device,
            what=f"Keeping the fields of record {len(self.streams)} of layer {stream.layer.path} for two-time kernels",
            remedy="fewer records (schedule=log_spaced(20)), a smaller probe, or two_time=False",
        )
        self.streams.append(stream)
        self.forward.append([forward_gram(stream, earlier).cpu() for earlier in self.streams])
        self.backward.append([squeeze_outputs(backward_gram(stream, earlier)).cpu() for earlier in self.streams])


def base_rate(subject: Subject, optimizer: Optimizer) -> float:
    """The base learning rate eta of an optimizer whose rates are eta times the plan's multipliers, else NaN.

    Raises:
        InvalidInputError: if the optimizer trains no parameter of the model.
    """
    names = {parameter: name for name, parameter in subject.model.named_parameters()}
    rates = {
        names[parameter]: float(group.get("initial_lr", group["lr"]))
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter in names
    }
    if not rates:
        raise InvalidInputError(
            "The optimizer trains none of the recorded model's parameters.",
            remedy="build it from plan.param_groups(lr) of the same plan",
        )
    for multipliers in (subject.multipliers, subject.adam_multipliers):
        found = {name: rate / multipliers[name] for name, rate in rates.items() if multipliers[name] > 0}
        if found and _agree(found):
            return next(iter(found.values()))
    return math.nan


def _agree(values: Mapping[str, float]) -> bool:
    low, high = min(values.values()), max(values.values())
    return math.isclose(low, high, rel_tol=1e-9)


def _stack(arrays: Iterable[Tensor]) -> Kernel:
    return Kernel(torch.stack(list(arrays)))


def _default_loss(probe: Probe) -> Loss:
    classes = probe.targets is not None and not probe.targets.is_floating_point()
    return nn.CrossEntropyLoss() if classes else nn.MSELoss()
