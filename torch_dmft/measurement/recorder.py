"""Recorder: measures a network on a schedule while it trains, without changing the training by a single bit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from torch_dmft.core.arguments import checked
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.loss import Loss
from torch_dmft.core.materialised import require_materialised
from torch_dmft.core.numbers import require_number
from torch_dmft.core.sight import require_whole_plan
from torch_dmft.core.spread import whole
from torch_dmft.core.steppers import outermost
from torch_dmft.core.training import Training
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.measurement.fields import FieldMemory
from torch_dmft.measurement.gradients import Layouts
from torch_dmft.measurement.observer import Observer
from torch_dmft.measurement.probe import Probe
from torch_dmft.measurement.probe_loss import ProbeLoss
from torch_dmft.measurement.projection import refuse_classes_of
from torch_dmft.measurement.records import Records
from torch_dmft.measurement.rows import TrainingSet
from torch_dmft.measurement.schedule import Asked, Schedule, at_steps
from torch_dmft.measurement.schedule import every as every_steps
from torch_dmft.measurement.snapshot import Snapshot, snapshot
from torch_dmft.measurement.subject import subject_of
from torch_dmft.measurement.wanted import Wanted
from torch_dmft.parameterization import Plan
from torch_dmft.uses.outputs import Example, Selection, moved

if TYPE_CHECKING:
    from torch_dmft.theory import Problem

Callback = Callable[[int, Trajectory], None]


@checked
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
        two_time: also record Phi and G between pairs of times: True for the arrays of all pairs, which keeps the fields of all
            records on the model's device, or a tolerance for long runs that are recorded densely (``two_time=0.01``), to which
            ``kernel.between(t, s)`` is right at any two recorded times (``torch_dmft.core.factors``); then fields are kept in
            the few directions that they need. The NTK stays at equal times.
        loss: ``loss(outputs, targets) -> scalar`` on the training rows; default ``nn.MSELoss()`` for float targets and
            ``nn.CrossEntropyLoss()`` for classes. Without targets the recorded loss is NaN.
        fields: where to keep the fields h, g and z of single neurons, for densities: True for the first record, the last
            and up to three between, False for none, or the steps themselves or a predicate ``step -> bool`` (of recorded
            steps). At most a million numbers are kept of each field, weight and step.
        data: the training set, if the network is trained on other rows than those of the probe: ``(inputs, targets)``, or
            a data set of such pairs. ``batches(loader)`` brings its own.
        model: the module whose outputs are recorded, if it is not the plan's model but a wrapper:
            ``centered(plan.model)``.
        outputs: which of what the model returns is f, ``(sample, output)``: a key, an index or a function of it. Default: the
            tensor itself, the first entry of a tuple, ``logits`` of a mapping. Of outputs per token or pixel choose one place
            (``lambda out: out.logits[:, -1]``), their mean (``lambda out: out.mean((2, 3))``) or all (``out.flatten(1)``); of a
            large vocabulary, ``Projection(8)``.
        batch_norm: whose statistics BatchNorm is measured with: ``"probe"``, the mean and variance over the probe's training
            rows, so that their outputs are those of train mode with these rows as the batch, or ``"run"``, the running averages
            of eval mode. Both are constants: samples do not interact. Norms that stand in eval mode while the model trains keep
            their running averages.
        ntk: whether the NTK is recorded; False for Phi and G alone.
        per_output: whether G and the NTK are recorded of all pairs (sample, output), or, if False, averaged over equal outputs,
            ``(sample, sample)``: exact (it is ``trajectory.per_sample()`` of the full record), without the array of all pairs
            or the gradients of more than one output at a time. ``fields`` and ``two_time`` keep those of all outputs still.
        rows: of which of the probe's rows everything is recorded, positions or a bool mask; default all. The training set, and
            the statistics of BatchNorm, are still those of the whole probe. ``recorder.probe`` holds these rows.
        temperature: T of the Langevin noise that the loop brings into the gradients; they are not checked then.
        callbacks: called with ``(step, record)`` after each record, the trajectory of this one step, outside the protection
            described above.

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
        two_time: bool | float = False,
        loss: Loss | None = None,
        fields: bool | Schedule | Iterable[int] = True,
        data: tuple[Example, Tensor] | Dataset[Any] | None = None,
        model: nn.Module | None = None,
        outputs: Selection | None = None,
        batch_norm: str = "probe",
        ntk: bool = True,
        per_output: bool = True,
        rows: Tensor | Sequence[int] | None = None,
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
        self.probe = probe if rows is None else probe.at_rows(rows)
        self.schedule: Schedule = Asked(schedule) if callable(schedule) else at_steps(schedule)
        self.callbacks = tuple(callbacks)
        self.step = 0
        refuse_classes_of(outputs, probe.targets)
        self.subject = subject_of(plan_or_model, probe.inputs, run=model, outputs=outputs, batch_norm=batch_norm)
        self.subject = replace(
            self.subject,
            trained_rows=probe.batch_rows,
            kernel_rows=None if rows is None else tuple(probe.places(rows).tolist()),
            wanted=Wanted(ntk=ntk, per_output=per_output, fields=fields is not False or two_time is not False),
        )
        self._whole = probe
        self._loss = ProbeLoss(self.subject, self.probe, loss)
        training_set = None if data is None else TrainingSet(data)
        self._observer = Observer(
            self.subject, probe, self._loss.loss, data=training_set, temperature=temperature, schedule=self.schedule
        )
        self._attached = False
        self._layouts: Layouts | None = None
        chosen = None if isinstance(fields, bool) else fields if callable(fields) else at_steps(fields)
        is_chain = self.subject.architecture.is_chain
        memory = FieldMemory(chosen, is_chain=is_chain) if fields is not False else None
        self._records = Records(self.subject, self.probe, self._loss, two_time=two_time, fields=memory)

    @property
    def records(self) -> list[Trajectory]:
        """What was recorded, one trajectory of one time for each record."""
        return self._records.each

    @contextmanager
    def attach(self, *optimizers: Optimizer) -> Iterator[Recorder]:
        """Record while the body trains with these optimizers.

        Records on entry if the current step is scheduled, then after each scheduled step. With several optimizers a step
        is over when each of them has stepped. Nothing stays attached afterwards, also if the body raises. A second
        ``attach`` goes on counting where the first stopped.

        Args:
            *optimizers: all optimizers that train parameters of the model; also as accelerate, Lightning and Fabric wrap
                them. Of an optimizer around another (sharpness-aware minimisation, Lookahead) the outer one.

        Raises:
            InvalidInputError: if they train none of them, the model was changed after it was wrapped, or the recorder is
                attached already.
            UnsupportedModelError: if no process has the parameters as a whole (tensor parallelism).
        """
        if self._attached:
            raise InvalidInputError(
                "The recorder is attached already.",
                got=f"a second attach at step {self.step}",
                remedy="leave the first attach before the next",
            )
        if not optimizers or not all(isinstance(optimizer, Optimizer) for optimizer in optimizers):
            raise InvalidInputError(
                "A recorder is attached to optimizers.",
                got=", ".join(type(optimizer).__name__ for optimizer in optimizers) or "nothing",
                remedy="recorder.attach(optimizer), with every torch.optim optimizer that trains the model",
            )
        if len(set(map(id, optimizers))) < len(optimizers):
            raise InvalidInputError(
                "A recorder is attached to each optimizer once.",
                got=f"{len(optimizers)} optimizers, some of them the same",
                remedy="recorder.attach(optimizer)",
            )
        stepping = outermost(optimizers)
        self._observer.meet(stepping, first=self.step == 0)
        self.subject = replace(self.subject, frozen=self._observer.frozen)

        def stepped() -> None:
            self.step += 1
            if self.schedule(self.step):
                self.record()

        self._attached = True
        with ExitStack() as stack:
            stack.callback(setattr, self, "_attached", False)
            if not self._records.has(self.step) and (self.step == 0 or self.schedule(self.step)):
                self.record()
            if self.step == 0 and self.records:
                self._observer.check_start(self.records[0].outputs[0], self._readout_size(self.records[0]))
            stack.enter_context(self._observer.watching(stepping, stepped))
            yield self

    def batch(self, rows: Tensor | Sequence[int]) -> None:
        """Note which rows of the training set the next step sees; call it before ``optimizer.step()``.

        Args:
            rows: ``(row,)`` integers. Several calls before one step add up, as gradients do.
        """
        self._observer.rows.note(rows)

    def batches(self, loader: DataLoader[Any]) -> Iterator[Any]:
        """The batches of a loader, one epoch of them, whose rows are noted as they pass; shuffling and workers included.

        The batches, their order and the random numbers drawn are those of the loader itself.

        Args:
            loader: a ``torch.utils.data.DataLoader`` over a data set with ``__getitem__``, which is the training set.

        Example:
            >>> for images, labels in recorder.batches(loader):  # doctest: +SKIP
            ...     loss(model(images), labels).backward()
        """
        yield from self._observer.rows.of_loader(loader)

    def forget(self) -> None:
        """The batches noted since the last step are not trained on: their step was skipped, or their gradients dropped."""
        self._observer.rows.forget()

    def record(self) -> Trajectory:
        """Measure now, as step ``recorder.step``, and keep the result.

        Raises:
            InvalidInputError: if this step was recorded already.
        """
        if self._records.has(self.step):
            raise InvalidInputError(
                f"Step {self.step} was recorded already.",
                got="a second record of it",
                remedy="recorder.look() measures and keeps nothing",
            )
        started = time.perf_counter()
        require_whole_plan(self.subject.plan)
        record = self.keep(self.look())
        self._records.seconds += time.perf_counter() - started
        for callback in self.callbacks:
            callback(self.step, record)
        return record

    def look(self, *, check: bool = False) -> Snapshot:
        """Measure now and keep nothing.

        Args:
            check: find out anew where the samples are, and hold the measurement against an ordinary backward pass and
                against samples that are run apart, as in the first record.

        Raises:
            UnsupportedModelError: if it does not agree, naming the layer.
        """
        require_materialised(self.subject.model)
        device = next(self.subject.run.parameters()).device
        layouts = None if check else self._layouts
        with whole(self.subject.run):
            return snapshot(self.subject, moved(self._whole.inputs, device), layouts=layouts)

    def keep(self, taken: Snapshot) -> Trajectory:
        """Keep a snapshot of the network on the probe, taken elsewhere, as the record of step ``recorder.step``."""
        record = self._records.add(taken, self.step)
        self._layouts = taken.layouts
        return record

    @property
    def training(self) -> Training:
        """How the network was trained so far, as it was seen.

        Raises:
            NotRecordedError: if no optimizer was attached yet.
        """
        outputs = self.records[0].outputs.shape[2] if self.records else self.subject.architecture.readout.out_features
        return self._observer.training(outputs)

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

        if data is not None:
            self._observer.tell(TrainingSet(data))
        self._observer.rows.require_data()
        return problem_of_run(
            self.subject,
            self.training,
            self._whole,
            self._loss.loss,
            self._observer.rows.data,
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
        run = self._records.trajectory(self._seen_training)
        return replace(run, origin=self.subject.plan.origin if origin is None else origin)

    def latest(self) -> Trajectory:
        """The last record with what a whole trajectory has beside it: the fields of its neurons, its curvature, the training.

        Raises:
            NotRecordedError: if nothing was recorded.
        """
        return self._records.latest(self._seen_training)

    def state_dict(self) -> dict[str, Any]:
        """Everything recorded so far as plain containers of tensors, for a checkpoint beside the model's."""
        return {
            "step": self.step,
            "observer": self._observer.state_dict(),
            **self._records.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint: the next ``attach`` continues its step count and its records.

        Raises:
            InvalidInputError: if the checkpoint is of another model or of other settings.
        """
        missing = {"step", "observer", "seconds", "conditions", "records", "fields", "two_time"} - set(state)
        if missing:
            raise InvalidInputError(
                "This is not a recorder's checkpoint.",
                got=f"no {', '.join(sorted(missing))}",
                remedy="what recorder.state_dict() made, by torch.load",
            )
        self._records.refuse_other(state)
        self._observer.load_state_dict(state["observer"])
        self._records.load_state_dict(state)
        self.step = state["step"]

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles have: they are attached to nothing."""
        return {**vars(self), "_attached": False}

    @property
    def _seen_training(self) -> Training | None:
        return self.training if self._observer.has_seen else None

    def _readout_size(self, record: Trajectory) -> float:
        """The mean diagonal of the readout's Phi."""
        return record.layer(self.subject.architecture.readout.path).forward.matrix().diagonal().mean().item()
