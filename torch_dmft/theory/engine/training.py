"""Train a model on a problem, step by step, and record it: the loop that all sampled predictions share.

What is looked at in a step is a ``View``: one pass for measurement and update alike where the probe is what is trained on, or
one of each. The optimizers' part is the ``Course``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.optim import Optimizer

from torch_dmft.architecture import Architecture
from torch_dmft.core.random_state import random_state_kept
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.measurement import Probe, Recorder, Snapshot
from torch_dmft.measurement.gradients import Layouts
from torch_dmft.measurement.snapshot import snapshot
from torch_dmft.parameterization import Plan, learning_rule
from torch_dmft.theory.engine.course import Course
from torch_dmft.theory.engine.lazy_layer import LazyLayer
from torch_dmft.theory.engine.passes import Passes
from torch_dmft.theory.engine.undecided import warn_of_chance
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.stepping import require_finite
from torch_dmft.uses.outputs import moved, output_rows, rows


@dataclass(frozen=True, eq=False)
class Moment:
    """A model before the update of a step.

    Attributes:
        outputs: f of the rows that were looked at.
        update: sets the gradients of the step.
        taken: what was measured, if it was asked for.
    """

    outputs: Tensor
    update: Callable[[], None]
    taken: Snapshot | None = None


@runtime_checkable
class View(Protocol):
    """How a model is measured while it is trained."""

    def __call__(self, step: int, *, measured: bool, trained: bool) -> Moment:
        """Pass the model before the update of a step; ``measured`` and ``trained`` say what will be needed of the pass."""


def train(
    problem: Problem,
    plan: Plan,
    view: View,
    steps: Iterable[int],
    *,
    last: int,
    kept: Iterable[int] = (),
    keep: Callable[[int, Snapshot], None] | None = None,
    noise: Callable[[int], None] | None = None,
    generator: torch.Generator | None = None,
) -> None:
    """Run a problem's training on a model.

    Args:
        problem: data, loss and training.
        plan: the model and its learning rates.
        view: how it is looked at.
        steps: 0..problem.steps, possibly wrapped in a progress bar.
        last: the state to stop at.
        kept: the steps to measure.
        keep: what to do with a measurement.
        noise: what moves the parameters at random after each step.
        generator: source of the backward weights of a learning rule, of which twins have their own, and of what a model draws
            in train mode (dropout).

    Raises:
        ConvergenceError: if the outputs stop being finite.
    """
    training = problem.training
    rule = learning_rule(plan, training.rule, rho=training.rho, generator=generator)
    with rule, _masks_drawn(plan, generator):
        _train(problem, plan, view, steps, last=last, kept=kept, keep=keep, noise=noise)


def _masks_drawn(plan: Plan, generator: torch.Generator | None) -> AbstractContextManager[None]:
    """The random state that a model draws from in train mode (dropout), a function of the generator; put back afterwards."""
    if not plan.architecture.train_differs:
        return nullcontext()
    source = generator or torch.Generator().manual_seed(0)
    seed = int(torch.randint(2**62, (1,), generator=source, device=source.device))
    return random_state_kept({parameter.device for parameter in plan.model.parameters()}, seed=seed)


def _train(
    problem: Problem,
    plan: Plan,
    view: View,
    steps: Iterable[int],
    *,
    last: int,
    kept: Iterable[int],
    keep: Callable[[int, Snapshot], None] | None,
    noise: Callable[[int], None] | None,
) -> None:
    """The body of ``train``."""
    course, lazy, wanted = Course(problem, plan), lazy_layers(plan), frozenset(kept)
    directions = rows_at_once(problem) * (2 + problem.outputs)
    for step in steps:
        if step > last:
            break
        make_room(lazy, course.optimizers, directions)
        moment = view(step, measured=step in wanted, trained=step < last)
        require_finite(problem, moment.outputs, step)
        if step in wanted and keep is not None:
            assert moment.taken is not None  # asked for
            keep(step, moment.taken)
        if step < last:  # a progress bar ends at 100 %
            moment.update()
            if step == 0 and plan.is_limit:
                rows, f = problem.rows_of(0), moment.outputs
                f = f if len(f) == len(rows) else f[rows]
                warn_of_chance(problem, plan, f, problem.error_on(f, rows))
            course.step(step)
            if noise is not None:
                noise(step)


def train_and_record(
    problem: Problem,
    plan: Plan,
    record: Tensor,
    *,
    two_time: bool | float,
    steps: Iterable[int],
    noise: Callable[[int], None] | None = None,
    view: Callable[[Problem, Recorder], View] | None = None,
    generator: torch.Generator | None = None,
) -> Trajectory:
    """Run the problem's training on a model and record it on the problem's probe.

    Args:
        problem: data, loss and training.
        plan: the model and its learning rates.
        record: ``(time,)`` steps to keep.
        two_time: whether to keep kernels at pairs of times.
        steps: 0..problem.steps, possibly wrapped in a progress bar.
        noise: what moves the parameters at random after each step.
        view: how the model is looked at; None for its own forward pass.
        generator: see ``train``.

    Raises:
        ConvergenceError: if the outputs stop being finite.
    """
    recorder = Recorder(
        plan,
        probe_of(problem),
        schedule=record.tolist(),
        two_time=two_time,
        outputs=problem.selection,
        batch_norm=problem.network.batch_norm,
    )

    def keep(step: int, taken: Snapshot) -> None:
        recorder.step = step
        recorder.keep(taken)

    look = (view or own_view)(problem, recorder)
    last, kept = int(record[-1]), record.tolist()
    train(problem, plan, look, steps, last=last, kept=kept, keep=keep, noise=noise, generator=generator)
    return finished(problem, recorder.trajectory())


def own_view(problem: Problem, recorder: Recorder, alike: dict[str, Layouts] | None = None) -> View:
    """The cheapest view of a model that is trained by its own forward pass; ``alike`` as of ``Passes``."""
    everything = problem.batches is None and problem.probe is None
    by_gradient = problem.training.rule == "gradient"  # which is what is measured
    together = everything and by_gradient and _is_one_function(recorder.subject.architecture)
    return (Together if together else Apart)(problem, recorder, alike)


def _is_one_function(architecture: Architecture) -> bool:
    """Whether a pass in train mode is one in eval mode, so that it can be measured."""
    return architecture.row_independent and not architecture.train_differs


class Together:
    """One pass for measurement and update alike, of a probe that holds all training rows in full batches."""

    def __init__(self, problem: Problem, recorder: Recorder, alike: dict[str, Layouts] | None = None) -> None:
        self._problem, self._passes = problem, Passes(recorder.subject, alike=alike)

    def __call__(self, step: int, *, measured: bool, trained: bool) -> Moment:
        """Pass all rows, or only those that are trained on."""
        problem = self._problem
        one = self._passes(problem.tensor if measured else problem.tensor[: problem.train_samples], measured=measured)
        if measured:
            require_finite(problem, one.outputs, step)  # of NaN nobody can tell which sample they are of
        snapshot = one.measure() if measured else None
        return Moment(one.outputs, lambda: one.backward(problem.error(one.outputs, step)), snapshot)


class Apart:
    """A pass of the probe for the measurement, and one of the rows of the batch for the update.

    Models that differ in train mode (BatchNorm, dropout) are measured in eval mode and trained in train mode.
    """

    def __init__(self, problem: Problem, recorder: Recorder, alike: dict[str, Layouts] | None = None) -> None:
        self._problem, self._recorder, alike = problem, recorder, {} if alike is None else alike
        self._passes = Passes(recorder.subject, by_autograd=problem.training.rule != "gradient", alike=alike)
        self._measures, self._rows = Passes(recorder.subject, alike=alike), problem.kept
        self._is_one_function = _is_one_function(recorder.subject.architecture)

    def __call__(self, step: int, *, measured: bool, trained: bool) -> Moment:
        """Pass the probe, then the batch."""
        problem, snapshot = self._problem, None
        if measured and self._is_one_function:
            probe = self._measures(problem.tensor[self._rows], measured=True)
            require_finite(problem, probe.outputs, step)
            snapshot = probe.measure()
        elif measured:
            snapshot = self._recorder.look()
        if not trained:
            assert snapshot is not None  # the last state is looked at for its measurement
            return Moment(snapshot.outputs, lambda: None, snapshot)
        rows = problem.rows_of(step)
        one = self._passes(problem.tensor[rows], measured=False)
        return Moment(one.outputs, lambda: one.backward(problem.error_on(one.outputs, rows)), snapshot)


class Looked:
    """A look of the recorder for the measurement, as at any module, and a pass of the rows of the batch for the update.

    Args:
        problem: what the model is trained on.
        recorder: looks at it.
        alike: looks at networks alike, whose knowledge of where samples are is this one's; it is added to.
    """

    def __init__(self, problem: Problem, recorder: Recorder, alike: list[Snapshot]) -> None:
        self._problem, self._recorder, self._alike = problem, recorder, alike
        self._inputs = moved(recorder.probe.inputs, next(recorder.subject.run.parameters()).device)

    def __call__(self, step: int, *, measured: bool, trained: bool) -> Moment:
        """Look, then pass the batch in train mode."""
        problem, subject = self._problem, self._recorder.subject
        taken = self._look() if measured else None
        if not trained:
            assert taken is not None  # the last state is looked at for its measurement
            return Moment(taken.outputs, lambda: None, taken)
        batch = problem.rows_of(step)
        attached = output_rows(subject.run(rows(problem.inputs, batch)), len(batch))
        outputs = attached.detach()

        def update() -> None:
            subject.model.zero_grad()
            attached.backward(gradient=-problem.error_on(outputs, batch))

        return Moment(outputs, update, taken)

    def _look(self) -> Snapshot:
        layouts = self._alike[0].layouts if self._alike else None
        taken = snapshot(self._recorder.subject, self._inputs, layouts=layouts)
        self._alike[:] = [taken]
        return taken


def finished(problem: Problem, recorded: Trajectory) -> Trajectory:
    """The recorded trajectory of a problem, completed by loss, targets and training, which the recorder does not know."""
    losses = torch.stack([problem.kept_loss(f) for f in recorded.outputs])
    return replace(
        recorded,
        training=problem.training,
        train=problem.train[problem.kept].cpu(),
        targets=known_targets(problem),
        losses=losses.to(recorded.losses),
    )


def known_targets(problem: Problem) -> Tensor | None:
    """Targets of the probe's rows as floats, if every one is known."""
    rows = problem.kept
    return problem.target_values[rows].cpu() if bool((rows < problem.train_samples).all()) else None


def probe_of(problem: Problem) -> Probe:
    """The rows that are measured; the problem adds their targets afterwards."""
    train = problem.train[problem.kept].cpu()
    return Probe(rows(problem.inputs, problem.kept), train=train if bool(train.any()) else None)


def lazy_layers(plan: Plan) -> list[LazyLayer]:
    """The layers of a model whose weights are sampled lazily."""
    return [layer for layer in plan.model.modules() if isinstance(layer, LazyLayer)]


def make_room(layers: Sequence[LazyLayer], optimizers: Sequence[Optimizer], directions: int) -> None:
    """Make room in the infinite layers for the new directions of one step."""
    for layer in layers:
        needed = max(layer.rank) + directions * layer.positions
        if any(min(needed, size) > room for size, room in zip(layer.sizes, layer.core.shape, strict=False)):
            layer.reserve(2 * needed, optimizers)


def rows_at_once(problem: Problem) -> int:
    """Rows that pass between two checks of the free room: those of the probe and of the largest batch."""
    if problem.batches is None and problem.probe is None:
        return problem.samples
    largest = (
        problem.train_samples if problem.batches is None else max((len(rows) for rows in problem.batches), default=0)
    )
    return len(problem.kept) + largest
