"""Train a model on a problem, step by step, and record it: the loop that all sampled predictions share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from torch_dmft.core.trajectory import Trajectory
from torch_dmft.measurement import Probe, Recorder, Snapshot
from torch_dmft.parameterization import Plan
from torch_dmft.parameterization.optimizer import OPTIMIZERS
from torch_dmft.theory.engine.lazy_layer import LazyLayer
from torch_dmft.theory.engine.passes import Pass, Passes
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.stepping import require_finite


def train_and_record(
    problem: Problem,
    plan: Plan,
    record: Tensor,
    *,
    two_time: bool,
    steps: Iterable[int],
    noise: Callable[[], None] | None = None,
) -> Trajectory:
    """Run the problem's training on a model and record it; one forward pass serves measurement and update alike.

    Args:
        problem: data, loss and schedule.
        plan: the model and its learning rates.
        record: ``(time,)`` steps to keep.
        two_time: whether to keep kernels at pairs of times.
        steps: 0..problem.steps, possibly wrapped in a progress bar.
        noise: what moves the parameters at random after each step.

    Raises:
        ConvergenceError: if the outputs stop being finite.
    """
    recorder = Recorder(plan, probe_of(problem), schedule=record.tolist(), two_time=two_time, loss=problem.loss)
    optimizer = optimizer_of(problem, plan)
    kept, last = set(record.tolist()), int(record[-1])
    passes, lazy = Passes(recorder.subject), lazy_layers(plan)
    for step in steps:
        if step > last:
            break
        make_room(lazy, optimizer, problem.samples * (2 + problem.outputs))
        recorder.step = step
        keep = step in kept
        if plan.architecture.row_independent:
            one = passes(problem.inputs if keep else problem.inputs[: problem.train_samples], measured=keep)
            if keep:
                recorder.keep(one.measure())
        else:
            one = _measured_apart(problem, recorder, passes, step, keep=keep)
        outputs = one.outputs
        require_finite(problem, outputs, step)
        if step == last:
            continue  # a progress bar ends at 100 %
        one.backward(problem.error(outputs, step))
        if problem.weight_decay and problem.optimizer == "sgd":
            with torch.no_grad():
                for group in optimizer.param_groups:
                    torch._foreach_mul_(group["params"], 1 - problem.lr * problem.weight_decay)
        optimizer.step()
        if noise is not None:
            noise()
    trajectory = recorder.trajectory()
    return replace(trajectory, lr=problem.lr, targets=known_targets(problem))


def optimizer_of(problem: Problem, plan: Plan) -> Optimizer:
    """The problem's optimizer of a model; SGD leaves the weight decay, which stands outside of its momentum, to the loop."""
    if problem.optimizer == "sgd":
        return SGD(plan.param_groups(problem.lr), lr=problem.lr, momentum=problem.momentum)
    groups = plan.param_groups(problem.lr, optimizer=problem.optimizer, weight_decay=problem.weight_decay)
    return OPTIMIZERS[problem.optimizer](groups)


def _measured_apart(problem: Problem, recorder: Recorder, passes: Passes, step: int, *, keep: bool) -> Pass:
    """Record in eval mode, then pass the rows that the step sees in train mode, as BatchNorm would mix them with others."""
    if keep:
        recorder.record()
    batch = problem.batch(step) if step < problem.steps else None
    rows = torch.arange(problem.train_samples, device=problem.inputs.device) if batch is None else batch
    return _Part(passes(problem.inputs[rows], measured=False), rows, problem.train_samples)


class _Part:
    """A pass of some of the training rows; the outputs of the others are zero."""

    def __init__(self, inner: Pass, rows: Tensor, samples: int) -> None:
        self._inner, self._rows = inner, rows
        self.outputs = inner.outputs.new_zeros(samples, inner.outputs.shape[1]).index_copy(0, rows, inner.outputs)

    def measure(self) -> Snapshot:
        return self._inner.measure()

    def backward(self, error: Tensor) -> None:
        self._inner.backward(error[self._rows])


def known_targets(problem: Problem) -> Tensor | None:
    """Targets as floats if every row has one."""
    return problem.target_values.cpu() if problem.samples == problem.train_samples else None


def probe_of(problem: Problem) -> Probe:
    """The problem's rows; targets of test rows are unknown and never read."""
    missing = problem.samples - problem.train_samples
    padding = problem.targets.new_zeros(missing, *problem.targets.shape[1:])
    return Probe(problem.inputs, torch.cat([problem.targets, padding]), train=problem.train)


def lazy_layers(plan: Plan) -> list[LazyLayer]:
    """The layers of a model whose weights are sampled lazily."""
    return [layer for layer in plan.model.modules() if isinstance(layer, LazyLayer)]


def make_room(layers: Sequence[LazyLayer], optimizer: Optimizer, directions: int) -> None:
    """Let the infinite layers take as many new directions as one step can bring."""
    for layer in layers:
        needed = max(layer.rank) + directions * layer.positions
        if any(min(needed, size) > room for size, room in zip(layer.sizes, layer.core.shape, strict=False)):
            layer.reserve(2 * needed, optimizer)
