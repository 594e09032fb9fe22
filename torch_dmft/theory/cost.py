"""What a prediction will cost, and how precise it will be, told before it starts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from torch_dmft.architecture import Role
from torch_dmft.core.activation import activation
from torch_dmft.core.memory import require_memory
from torch_dmft.theory.coverage import rows_per_sample
from torch_dmft.theory.network import ChainNetwork
from torch_dmft.theory.problem import Problem

_PEAK, _PER_ROW = 8e10, 2e9
"""Operations per second of one core of a current CPU in single precision: its peak, and that of products with one row, which
wait for memory; n rows are n times faster until they meet the peak."""
_CALL = 4e-5
"""Least number of seconds that a call of torch takes."""
_TWIN_ERROR, _NETWORK_ERROR = 1.5, 2.2
"""Relative error of the worst kernel times the root of the number of neurons: in matched samples of smooth activations; in
those of others and in plain networks."""


@dataclass(frozen=True)
class Cost:
    """Estimate of what a solver needs for a problem; print it.

    Attributes:
        memory: largest number of bytes in use at one time, the answer included.
        flops: floating-point operations.
        seconds: time on one CPU core.
        error: relative error of the worst kernel by sampling; 0.0 for what is exact, None where it depends on how far features
            move, see ``theory.movement``.
        rank: of a twin, the directions per basis of the larger side of a hidden matrix at the end.
        saturated: whether that meets the number of neurons, so that the sample amounts to a wide network.
        most: whether operations and time are upper bounds.
    """

    memory: int
    flops: float
    seconds: float
    error: float | None = None
    rank: int | None = None
    saturated: bool = False
    most: bool = False

    def __str__(self) -> str:
        full = " (meets the number of neurons)" if self.saturated else ""
        parts = [
            "" if self.rank is None else f"rank {self.rank}{full}",
            f"{self.memory / 2**30:.2g} GiB",
            f"{self.flops:.1e} flops",
            f"{_duration(self.seconds)} on one CPU core",
            f"kernels within {self.error:.1%}" if self.error else "",
        ]
        return f"estimate{' at most' if self.most else ''}: {', '.join(part for part in parts if part)}"

    def admit(self, problem: Problem, *, remedy: str | Callable[[], str] = "") -> None:
        """Let work begin only if the memory is there.

        Args:
            problem: what is going to be solved.
            remedy: how to need less, or what finds that out.

        Raises:
            InsufficientMemoryError: if more is needed than is free where the problem's data are.
        """
        require_memory(self.memory, problem.device, what="This solution", remedy=remedy)


def answer_memory(problem: Problem, recorded: int, *, two_time: bool, rows: int | None = None) -> int:
    """Bytes of a trajectory: for L + 1 weights n^2 numbers forward, (n C)^2 backward and in the NTK, at every record.

    Args:
        problem: the problem.
        recorded: number of recorded steps.
        two_time: whether kernels are kept at pairs of times.
        rows: n; None for those of the probe.
    """
    layers, samples = len(problem.network.paths), len(problem.kept) if rows is None else rows
    features, gradients = samples**2, (samples * problem.outputs) ** 2
    entries = layers * (features + 2 * gradients) + gradients
    return entries * (recorded**2 if two_time else recorded) * problem.dtype.itemsize


def deterministic_cost(
    problem: Problem,
    recorded: int,
    *,
    two_time: bool,
    work: int | float,
    calls: int | float,
    numbers: int | float,
    copies: int = 1,
    error: float | None = 0.0,
) -> Cost:
    """The cost of a method for chains, which all compute in float64.

    Args:
        problem: the problem.
        recorded: number of recorded steps.
        two_time: whether kernels are kept at pairs of times.
        work: floating-point operations.
        calls: calls of torch, in which small problems spend their time.
        numbers: how many are held beside the answer.
        copies: answers that are held at the same time.
        error: see ``Cost``.
    """
    answer = answer_memory(problem, recorded, two_time=two_time, rows=problem.samples)
    double = answer * 8 // problem.dtype.itemsize
    speed = min(_PEAK, _PER_ROW * problem.samples) / 2
    return Cost(double + copies * answer + int(8 * numbers), work, work / speed + calls * _CALL, error)


def networks_cost(
    problem: Problem, widths: Sequence[int], *, count: int, recorded: int, two_time: bool, error: float | None
) -> Cost:
    """Estimate the cost of ``count`` plain networks at each width: 6 N^2 operations per row, step and hidden matrix.

    Gradients of every output, in steps that are recorded, cost 2 N^2 more each.

    Args:
        problem: the problem.
        widths: N of the last hidden layer.
        count: networks of every width.
        recorded: number of recorded steps.
        two_time: whether kernels are kept at pairs of times.
        error: see ``Cost``.
    """
    matrices, _ = _hidden_matrices(problem)
    element, steps, load = problem.dtype.itemsize, problem.steps + 1, _Load.of(problem, recorded)
    row_passes = 6 * load.trained + 2 * (load.apart + problem.outputs) * load.measured * recorded / steps
    per_row = sum(matrix.written * matrix.taps for matrix in matrices)
    thin = problem.tensor[0].numel() + problem.outputs
    flops = row_passes * count * steps * sum(width**2 * per_row + width * thin for width in widths)
    weights = max(width**2 * sum(matrix.taps for matrix in matrices) + width * thin for width in widths)
    fields = max(widths) * load.most * (1 + problem.outputs) * (recorded if two_time else 2)
    fields *= sum(matrix.read + matrix.written for matrix in matrices) + 2
    kept = (count + 2 * len(widths) + 3) * answer_memory(problem, recorded, two_time=two_time)
    speed = min(_PEAK, _PER_ROW * load.most) * 4 / element
    calls = 40 * (len(matrices) + 2) * len(widths) * count * steps
    return Cost(kept + (4 * weights + fields) * element, flops, flops / speed + calls * _CALL, error)


def extrapolation_error(widths: Sequence[int], pairs: int) -> float:
    """Relative error of the limit of a + b / N, fitted with weights N to ``pairs`` of networks at every width.

    A pair counts as one network, as the kernels of both are much the same.
    """
    n = np.array(sorted(set(widths)), dtype=float)
    normal = np.array([[(n ** (1 - i - j)).sum() for j in range(2)] for i in range(2)])
    return float(_NETWORK_ERROR * np.sqrt(np.linalg.inv(normal)[0, 0] / pairs))


def twin_cost(problem: Problem, *, neurons: int, replicas: int, recorded: int, two_time: bool = False) -> Cost:
    """Estimate the cost of ``replicas`` twins of a problem's network.

    With n rows, C outputs and T steps, gradients explore about n C (2 log(1 + T) + 1) directions through smooth
    activations and 10 n C log(1 + T) through others, features n (2 log(1 + T) + 1) and n (3 log(1 + T) + 1), as
    measured at the default tolerance; with Muon, whose steps do not shrink with the gradient, as many as through others.
    They are never more than there are neurons or vectors. The pixels of a convolution are
    rows. One step costs 4 S n (1 + B) (k + k') operations per hidden matrix: coordinates in both bases, image and
    learned part, forward and in B backward passes: one for each output in steps that are recorded, and one for the
    update, which a recorded step of a chain need not repeat. A convolution has an image for each of its taps. Finding
    the directions costs 4 S (k + k')^2 in all. Minibatches and momentum explore up to three times more.

    Args:
        problem: the problem.
        neurons: S.
        replicas: independent twins.
        recorded: number of recorded steps.
        two_time: whether kernels are kept at pairs of times, for which the fields of all records are.
    """
    matrices, smooth = _hidden_matrices(problem)
    outputs, steps, element = problem.outputs, problem.steps, problem.dtype.itemsize
    time = math.log1p(steps)
    few = smooth and "muon" not in problem.training.traits
    per_gradient, per_feature = (2 * time + 1, 2 * time + 1) if few else (10 * time, 3 * time + 1)
    share = recorded / max(steps, 1)
    backward_passes = 1 + (outputs - 1) * share if problem.chain else 1 + outputs * share
    rank, full = 0, False
    load = _Load.of(problem, recorded)
    memory = (replicas + 3) * answer_memory(problem, recorded, two_time=two_time)
    fields = neurons * load.most * (1 + outputs) * (recorded if two_time else 2)
    memory += fields * (sum(matrix.read + matrix.written for matrix in matrices) + 2) * element
    passed = load.trained + load.apart * load.measured * share  # rows in a step, on average
    flops = 6.0 * passed * problem.tensor[0].numel() * (steps + 1)
    for matrix in matrices:
        seen, sent = load.met * matrix.read, load.met * matrix.written
        gradients = min(neurons, sent * outputs * (steps + 1), math.ceil(sent * outputs * per_gradient))
        features = min(neurons, seen * (steps + 1), math.ceil(seen * per_feature))
        rank = max(rank, gradients, features)
        full = full or rank >= neurons // 2
        held = neurons * (features + gradients) * (1 + 2 * matrix.taps)  # the populations know the images too
        memory += (2 * held + matrix.taps * features * gradients) * element  # room doubles when it is full
        read, written = passed * matrix.read, passed * matrix.written
        both = matrix.taps * (features * written + gradients * read)
        forward = features * read + both + gradients * written
        backward = gradients * written + both + features * read
        flops += 2.0 * (forward + backward_passes * backward) * (steps + 1) + 4.0 * (features + gradients) ** 2
    flops *= neurons * replicas
    rows = load.most * min((matrix.read for matrix in matrices), default=1)
    speed = min(_PEAK, _PER_ROW * rows) * 4 / element
    seconds = flops / speed + 40 * (len(matrices) + 2) * replicas * (steps + 1) * _CALL
    error = (_TWIN_ERROR if smooth and not full else _NETWORK_ERROR) / math.sqrt(neurons * replicas)
    return Cost(memory, flops, seconds, error, rank, full)


@dataclass(frozen=True)
class _Load:
    """How many rows pass.

    Attributes:
        trained: in the update of a step.
        measured: in a measurement.
        apart: 1 if a measurement has a pass of its own, 0 if it shares that of the update.
        met: different ones in the whole run.
    """

    trained: int
    measured: int
    apart: int
    met: int

    @classmethod
    def of(cls, problem: Problem, recorded: int) -> _Load:
        together = problem.batches is None and problem.probe is None
        if together:
            return cls(problem.samples, problem.samples, 0, problem.samples)
        size = problem.train_samples if problem.batches is None else max((len(b) for b in problem.batches), default=1)
        measured = len(problem.kept)
        return cls(size, measured, 1, min(problem.train_samples, size * max(problem.steps, 1)) + measured)

    @property
    def most(self) -> int:
        """Rows of the largest pass."""
        return max(self.trained, self.measured)


@dataclass(frozen=True)
class _Matrix:
    """A weight between widths: rows per sample that it reads and writes, and kernel taps."""

    read: int
    written: int
    taps: int


def _hidden_matrices(problem: Problem) -> tuple[list[_Matrix], bool]:
    """The matrices between widths, and whether all activations are smooth."""
    if isinstance(problem.network, ChainNetwork):
        chain = problem.network.chain
        smooth = all(activation(layer.activation).smooth for layer in chain.hidden)
        return [_Matrix(1, 1, 1)] * (chain.depth - 1), smooth
    plan = problem.network.plan
    architecture = plan.architecture
    rows = rows_per_sample(plan.model, architecture, problem.tensor[:1])
    named = [layer.activation for layer in architecture.layers if layer.activation is not None]
    hidden = [layer for layer in architecture.layers if layer.role is Role.HIDDEN]
    return [_Matrix(*rows[layer.path], layer.taps) for layer in hidden], all(activation(name).smooth for name in named)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"about {max(seconds, 1):.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
