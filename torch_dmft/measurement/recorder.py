"""Recorder: measures a network on a schedule while it trains, without changing the training by a single bit."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from torch_dmft.core.errors import InvalidInputError, NotRecordedError
from torch_dmft.core.kernel import Kernel
from torch_dmft.core.loss import Loss, as_the_loss_takes_them, default_loss, loss_name, loss_print
from torch_dmft.core.numbers import require_number
from torch_dmft.core.sight import NUMBERS, Sight, require_whole_plan
from torch_dmft.core.stability import curvatures
from torch_dmft.core.training import Training
from torch_dmft.core.trajectory import LayerKernels, Trajectory
from torch_dmft.measurement.fields import FieldMemory
from torch_dmft.measurement.gradient_check import TOLERANCE, gradient_error, is_due
from torch_dmft.measurement.gradients import Layouts
from torch_dmft.measurement.probe import Probe
from torch_dmft.measurement.record import LayerRecord, Record, reduce_snapshot
from torch_dmft.measurement.rows import RowsSeen, TrainingSet, all_rows, indexed
from torch_dmft.measurement.schedule import Schedule, at_steps
from torch_dmft.measurement.schedule import every as every_steps
from torch_dmft.measurement.snapshot import Snapshot, returns_one_number, snapshot
from torch_dmft.measurement.subject import subject_of
from torch_dmft.measurement.two_time import TwoTimeMemory
from torch_dmft.parameterization import Plan
from torch_dmft.parameterization.centered import Centered
from torch_dmft.parameterization.start import starts_of

if TYPE_CHECKING:
    from torch_dmft.theory import Problem

_TRAINED = 30.0
"""Mean square of the outputs, in units of its expectation for random readout weights, that these have once in ten million."""

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
        data: the training set, if the network is trained on other rows than those of the probe: ``(inputs, targets)``, or
            a data set of such pairs. ``batches(loader)`` brings its own.
        model: the module whose outputs are recorded, if it is not the plan's model but a wrapper:
            ``centered(plan.model)``.
        temperature: T of the Langevin noise that the loop brings into the gradients; they are not checked then.
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
        data: tuple[Tensor, Tensor] | Dataset[Any] | None = None,
        model: nn.Module | None = None,
        temperature: float = 0.0,
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
        require_number("temperature", temperature, at_least=0, remedy="temperature=0.0: no noise")
        self.probe = probe
        self.schedule: Schedule = schedule if callable(schedule) else at_steps(schedule)
        self.callbacks = tuple(callbacks)
        self.step = 0
        self.records: list[Record] = []
        self.subject = subject_of(plan_or_model, probe.inputs, run=model)
        self._loss = default_loss(probe.targets) if loss is None else loss
        self._data = None if data is None else TrainingSet(data)
        self._temperature = temperature
        self._sight: Sight | None = None
        self._rows = RowsSeen()
        self._starts: dict[str, str] = {}
        self._doubts: dict[int, float] = {}  # relative error of the gradients at the steps at which they were looked at
        self._steepest = 0.0
        self._notes: dict[str, None] = {}
        self._seconds = 0.0
        self._attached = False
        self._layouts: Layouts | None = None
        self._squeezed: bool | None = None
        self._targets: Tensor | None = None  # of the training rows, as the loss takes them
        chosen = None if isinstance(fields, bool) else fields if callable(fields) else at_steps(fields)
        is_chain = self.subject.architecture.is_chain
        self._fields = FieldMemory(chosen, is_chain=is_chain) if fields is not False else None
        self._two_time = [TwoTimeMemory() for _ in self.subject.architecture.layers] if two_time else []

    @contextmanager
    def attach(self, *optimizers: Optimizer) -> Iterator[Recorder]:
        """Record while the body trains with these optimizers.

        Records on entry if the current step is scheduled, then after each scheduled step. With several optimizers a step
        is over when each of them has stepped. Nothing stays attached afterwards, also if the body raises. A second
        ``attach`` goes on counting where the first stopped.

        Args:
            *optimizers: all optimizers that train parameters of the model.

        Raises:
            InvalidInputError: if they train none of them, the model was changed after it was wrapped, or the recorder is
                attached already.
        """
        if self._attached:
            raise InvalidInputError(
                "The recorder is attached already.", remedy="leave the first attach before the next"
            )
        if not optimizers or not all(isinstance(optimizer, Optimizer) for optimizer in optimizers):
            raise InvalidInputError(
                "A recorder is attached to optimizers.",
                got=", ".join(type(optimizer).__name__ for optimizer in optimizers) or "nothing",
                remedy="recorder.attach(optimizer), with every torch.optim optimizer that trains the model",
            )
        sight = Sight(self.subject.plan, optimizers)
        if self._sight is not None:
            sight.goes_on(self._sight)
        elif self.step == 0:
            self._starts = starts_of(self.subject.plan)
            if any(len(optimizer.state) for optimizer in optimizers):  # of momentum, or Adam's
                self._notes["optimizers that had taken steps before the first record"] = None
        self._sight = sight
        self.subject = replace(self.subject, frozen=frozenset(sight.frozen))
        _warn_of_odd_rates(Training.seen(sight), self.subject.plan)
        begun: set[int] = set()
        ended: set[int] = set()

        def before_step(number: int, *_: Any) -> None:
            if number in begun:  # again, before the others stepped
                self._notes["optimizers that step at different times"] = None
                finish()
            if not begun:
                sight.look()
                if self.step and any(map(_begins_anew, optimizers)):
                    self._notes["momentum that begins anew in the middle of the run"] = None
                self._check_gradients(optimizers, self._rows.step())
            begun.add(number)

        def after_step(number: int, *_: Any) -> None:
            ended.add(number)
            if len(ended) == len(optimizers):
                finish()

        def finish() -> None:
            begun.clear()
            ended.clear()
            self.step += 1
            if self.schedule(self.step):
                self.record()

        self._attached = True
        with ExitStack() as hooks:
            hooks.callback(setattr, self, "_attached", False)
            recorded = bool(self.records) and self.records[-1].step == self.step
            if not recorded and (self.step == 0 or self.schedule(self.step)):
                self.record()
                self._check_start()
            for number, optimizer in enumerate(optimizers):
                hooks.callback(optimizer.register_step_pre_hook(partial(before_step, number)).remove)
                hooks.callback(optimizer.register_step_post_hook(partial(after_step, number)).remove)
            yield self

    def batch(self, rows: Tensor | Sequence[int]) -> None:
        """Note which rows of the training set the next step sees; call it before ``optimizer.step()``.

        Args:
            rows: ``(row,)`` integers. Several calls before one step add up, as gradients do.
        """
        self._rows.note(rows)

    def batches(self, loader: DataLoader[Any]) -> Iterator[Any]:
        """The batches of a loader, one epoch of them, whose rows are noted as they pass; shuffling and workers included.

        The batches, their order and the random numbers drawn are those of the loader itself.

        Args:
            loader: a ``torch.utils.data.DataLoader`` over a data set with ``__getitem__``, which is the training set.

        Example:
            >>> for images, labels in recorder.batches(loader):  # doctest: +SKIP
            ...     loss(model(images), labels).backward()
        """
        numbered = indexed(loader)
        if self._data is None or self._data.dataset is not loader.dataset:
            if self._rows.noted:  # their numbers mean other rows in the new set
                self._notes["batches of more than one training set"] = None
            self._data = TrainingSet(loader.dataset)
        for rows, batch in numbered:
            self._rows.note(rows)
            try:
                yield batch
            except GeneratorExit:  # the loop was left before this batch was trained on
                self._rows.forget()
                raise

    def record(self) -> Record:
        """Measure now, as step ``recorder.step``, and keep the result."""
        started = time.perf_counter()
        require_whole_plan(self.subject.plan)
        record = self.keep(self.look())
        self._seconds += time.perf_counter() - started
        for callback in self.callbacks:
            callback(self.step, record)
        return record

    def look(self) -> Snapshot:
        """Measure now and keep nothing."""
        device = next(self.subject.run.parameters()).device
        return snapshot(self.subject, self.probe.inputs.to(device), layouts=self._layouts)

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

    @property
    def training(self) -> Training:
        """How the network was trained so far, as it was seen.

        Raises:
            NotRecordedError: if no optimizer was attached yet.
        """
        if self._sight is None:
            raise NotRecordedError(
                "No optimizer was seen yet.", remedy="train inside `with recorder.attach(optimizer):`"
            )
        known = self._rows.batches if self._rows.noted else None
        count = len(self._data) if self._data is not None else int(self.probe.train_rows.sum())
        off = {step: error for step, error in self._doubts.items() if error > TOLERANCE}
        checked = bool(self._doubts) or self.probe.targets is None or self._temperature > 0
        is_known = known is not None if self._rows.noted else checked and not off
        notes, targets, doubt = [*self._notes], self.probe.targets, ""
        if off:
            step, error = next(iter(off.items()))
            where = "the rows noted" if self._rows.noted else "all training rows"
            doubt = f"at step {step} the gradients were not those of {loss_name(self._loss)} on {where} (off by {error:.0%})"
        elif not is_known:
            doubt = "some steps were not noted" if self._rows.noted else "no gradients could be checked"
        if off and self._rows.noted:
            notes.append(doubt)
        outputs = self.records[0].outputs.shape[1] if self.records else self.subject.architecture.readout.out_features
        classes = targets is not None and not targets.is_floating_point()
        return Training.seen(
            self._sight,
            gamma0=self.subject.gamma0,
            scheme=self.subject.plan.scheme,
            starts=self._starts,
            loss=loss_name(self._loss) if targets is not None else "",
            loss_print=loss_print(self._loss, outputs, classes=classes) if targets is not None else (),
            batches=all_rows(known, count),
            batches_known=is_known,
            doubt=doubt,
            temperature=self._temperature,
            notes=tuple(notes),
        )

    def problem(
        self,
        data: tuple[Tensor, Tensor] | Dataset[Any] | None = None,
        *,
        batches: int | Sequence[Tensor] | None = None,
        assume_gaussian: bool = False,
        generator: torch.Generator | None = None,
    ) -> Problem:
        """The run that was recorded, as a question to the theory: its data, loss, rates, steps and batches, on the probe.

        Args:
            data: the training set, if the recorder does not know it: ``(inputs, targets)``, or a data set of such pairs.
            batches: of a run whose batches nobody noted, others in their place: a size, for rows drawn at random in epochs,
                or index tensors. The prediction is then for other batches than the network's, and says so.
            assume_gaussian: predict a network whose weights start as Gaussian numbers of their size, where they do not.
            generator: draws the batches; None for a fresh one with seed 0.

        Returns:
            The problem; ``solve(problem, record=measured.steps)`` answers it.

        Raises:
            InvalidInputError: if something of the run is not known, or was no training that theory can be asked about.
            UnsupportedProblemError: if the parameterization has no limit.
        """
        from torch_dmft.theory.posing import problem_of_run  # one floor up, taken only when it is called

        return problem_of_run(
            self.subject,
            self.training,
            self.probe,
            self._loss,
            self._data if data is None else TrainingSet(data),
            batches=batches,
            assume_gaussian=assume_gaussian,
            generator=generator,
        )

    def trajectory(self, origin: str | None = None) -> Trajectory:
        """What was recorded so far.

        Args:
            origin: how legends name this run; default the plan's origin, such as ``"network (N=512)"``.

        Returns:
            A ``Trajectory`` on the CPU. ``metadata["seconds"]`` is the time spent measuring.

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
        training = self.training if self._sight is not None else Training.unseen(records[-1].step, subject.plan)
        ntk = _stack(record.ntk for record in records)
        return Trajectory(
            steps=torch.tensor([record.step for record in records], device=outputs.device),
            outputs=outputs,
            losses=outputs.new_tensor([record.loss for record in records]),
            layers=layers,
            ntk=ntk,
            origin=subject.plan.origin if origin is None else origin,
            training=training,
            train=self.probe.train_rows,
            targets=None if targets is None else targets.cpu(),
            curvature=None if targets is None else curvatures(outputs, ntk, self.probe.train_rows, self._loss_on_train),
            metadata={
                "width": subject.width,
                "gamma0": subject.gamma0,
                "scheme": subject.plan.scheme,
                "centered": isinstance(subject.run, Centered),
                "seconds": self._seconds,
            },
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything recorded so far as plain containers of tensors, for a checkpoint beside the model's."""
        return {
            "step": self.step,
            "sight": None if self._sight is None else self._sight.state_dict(),
            "rows": self._rows.state_dict(),
            "starts": dict(self._starts),
            "doubts": dict(self._doubts),
            "notes": list(self._notes),
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
        self.step, self._seconds, self._starts = state["step"], state["seconds"], dict(state["starts"])
        self._doubts, self._notes = dict(state["doubts"]), dict.fromkeys(state["notes"])
        self._rows.load_state_dict(state["rows"])
        if state["sight"] is not None:
            self._sight = Sight.saved(self.subject.plan, state["sight"])
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
        with torch.no_grad():
            return float(self._loss_on_train(outputs[self.probe.train_rows.to(outputs.device)]))

    def _loss_on_train(self, outputs: Tensor) -> Tensor:
        """The loss of outputs ``(train, output)`` of the training rows, in the shapes that the user's loop hands to it."""
        if self._squeezed is None:
            self._squeezed = returns_one_number(self.subject.run, self.probe.inputs)
        shown = outputs.squeeze(1) if self._squeezed else outputs
        if self._targets is None or self._targets.device != outputs.device:
            assert self.probe.targets is not None  # asked for where there are targets
            targets = self.probe.targets[self.probe.train_rows.to(self.probe.targets.device)].to(outputs.device)
            targets = targets.to(outputs.dtype) if targets.is_floating_point() else targets
            self._targets = as_the_loss_takes_them(self._loss, shown.detach(), targets)
        return self._loss(shown, self._targets)

    def _check_start(self) -> None:
        """Note a network whose outputs at step 0 are not those of a random readout: it was trained before."""
        subject, record = self.subject, self.records[-1]
        lazy = any(getattr(module, "keeps_what_it_reveals", False) for module in subject.model.modules())
        readout = subject.architecture.readout
        at = next(i for i, layer in enumerate(subject.architecture.layers) if layer is readout)
        if self.step or lazy or subject.run is not subject.model or readout.kind != "linear":
            return
        weight = subject.model.get_parameter(readout.weight).detach()
        random = float(weight.double().square().mean()) * readout.fan_in * record.layers[at].forward.diagonal()
        ratio = float((record.outputs.square().mean(1) / random.to(record.outputs)).mean())
        if ratio > _TRAINED:
            self._notes[
                f"outputs that at step 0 are {ratio**0.5:.0f} times those of a random readout: it was trained before"
            ] = None

    def _check_gradients(self, optimizers: tuple[Optimizer, ...], rows: Tensor | None) -> None:
        """Hold the gradients that wait for the optimizer against those of the loss."""
        targets = self.probe.targets
        unknown = self._sight is not None and self._sight.optimizer not in NUMBERS
        if (
            unknown
            or self._temperature
            or not is_due(self.step)
            or targets is None
            or (rows is None and self._rows.noted)
        ):
            return
        if self._data is not None:
            inputs, given = self._data.rows(rows)
        else:
            train = self.probe.train_rows
            inputs, given = self.probe.inputs[train.to(self.probe.inputs.device)], targets[train.to(targets.device)]
            if rows is not None:
                if int(rows.max()) >= len(inputs):
                    return  # rows of a training set that is not known
                inputs, given = inputs[rows.to(inputs.device)], given[rows.to(given.device)]
        found = gradient_error(self.subject, optimizers, self._loss, inputs, given)
        if found is None:
            return
        difference, size = found
        self._steepest = max(self._steepest, size)
        if size > 1e-3 * self._steepest:  # smaller ones are rounded to something else
            self._doubts[self.step] = difference / size


def _stack(arrays: Iterable[Tensor]) -> Kernel:
    return Kernel(torch.stack(list(arrays)))


def _begins_anew(optimizer: Optimizer) -> bool:
    """Whether an optimizer with a memory of earlier gradients is about to step a parameter that it remembers nothing of."""
    return any(
        parameter.grad is not None and not optimizer.state.get(parameter)
        for group in optimizer.param_groups
        if group.get("momentum") or "betas" in group
        for parameter in group["params"]
    )


def _warn_of_odd_rates(training: Training, plan: Plan) -> None:
    """Say that an optimizer was built from other groups than its plan's."""
    if not training.exceptions or plan.scheme == "standard" or training.optimizer not in NUMBERS:
        return
    lr = training.rate
    kind = training.optimizer.lower()
    warnings.warn(
        f"The optimizer's settings are not those of plan.param_groups(lr, optimizer={kind!r}): with the base rate {lr}, "
        f"{training.traits['groups']}. Measured and predicted are these settings as they are.",
        stacklevel=4,
    )
