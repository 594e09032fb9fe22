"""What a sampled prediction will cost, told before it starts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch_dmft.architecture import Role
from torch_dmft.core.activation import activation
from torch_dmft.theory.infinite.widen import rows_per_sample
from torch_dmft.theory.problem import Problem

_PEAK, _PER_ROW = 8e10, 2e9
"""Operations per second of one core of a current CPU in single precision: its peak, and that of products with one row, which
wait for memory; n rows are n times faster until they meet the peak."""


@dataclass(frozen=True)
class Cost:
    """Estimate of the cost of training infinite-width twins; print it.

    Attributes:
        rank: directions per basis of the larger side of a hidden matrix at the end.
        saturated: whether that meets the number of neurons, so that the sample is no more than a wide network.
        memory: bytes of one replica: bases, images, and what is recorded.
        flops: floating-point operations of all replicas.
        seconds: time on one CPU core.
    """

    rank: int
    saturated: bool
    memory: int
    flops: float
    seconds: float

    def __str__(self) -> str:
        full = ", meets the number of neurons" if self.saturated else ""
        return (
            f"estimate: rank {self.rank}{full}, {self.memory / 2**30:.2g} GiB, {self.flops:.1e} flops, "
            f"{_duration(self.seconds)} on one CPU core"
        )


def twin_cost(problem: Problem, *, neurons: int, replicas: int, recorded: int) -> Cost:
    """Estimate the cost of ``replicas`` twins of a problem's network.

    With n rows, C outputs and T steps, gradients explore about n C (2 log(1 + T) + 1) directions through smooth
    activations and 10 n C log(1 + T) through others, features n (2 log(1 + T) + 1) and n (3 log(1 + T) + 1), as
    measured at the default tolerance; never more than there are neurons or vectors. The pixels of a convolution are
    rows. One step costs 2 S n [(2 k + k') + B (2 k' + k)] operations per hidden matrix: coordinates, image and
    learned part, forward and in B backward passes: one for each output in steps that are recorded, and one for the
    update, which a recorded step of a chain need not repeat. A convolution has an image for each of its taps. Finding
    the directions costs 4 S (k + k')^2 in all. Minibatches and momentum explore up to three times more.

    Args:
        problem: the problem.
        neurons: S.
        replicas: independent twins.
        recorded: number of recorded steps.
    """
    matrices, smooth = _hidden_matrices(problem)
    outputs, steps, element = problem.outputs, problem.steps, problem.inputs.element_size()
    time = math.log1p(steps)
    per_gradient, per_feature = (2 * time + 1, 2 * time + 1) if smooth else (10 * time, 3 * time + 1)
    share = recorded / max(steps, 1)
    backward_passes = 1 + (outputs - 1) * share if problem.chain else 1 + outputs * share
    rank, full = 0, False
    memory = 4 * (len(matrices) + 2) * recorded * (problem.samples * outputs) ** 2 * element
    flops = 6.0 * problem.samples * problem.inputs[0].numel() * (steps + 1)
    for matrix in matrices:
        read, written = problem.samples * matrix.read, problem.samples * matrix.written
        gradients = min(neurons, written * outputs * (steps + 1), math.ceil(written * outputs * per_gradient))
        features = min(neurons, read * (steps + 1), math.ceil(read * per_feature))
        rank = max(rank, gradients, features)
        full = full or rank >= neurons // 2
        held = neurons * (features + gradients) * (1 + 2 * matrix.taps)  # the populations know the images too
        memory += (2 * held + matrix.taps * features * gradients) * element  # room doubles when it is full
        forward = features * read + (matrix.taps * features + gradients) * written
        backward = gradients * written + (matrix.taps * gradients + features) * read
        flops += 2.0 * (forward + backward_passes * backward) * (steps + 1) + 4.0 * (features + gradients) ** 2
    flops *= neurons * replicas
    rows = problem.samples * min((matrix.read for matrix in matrices), default=1)
    speed = min(_PEAK, _PER_ROW * rows) * 4 / element
    return Cost(rank, full, memory, flops, flops / speed)


@dataclass(frozen=True)
class _Matrix:
    """A weight between widths: rows per sample that it reads and writes, and kernel taps."""

    read: int
    written: int
    taps: int


def _hidden_matrices(problem: Problem) -> tuple[list[_Matrix], bool]:
    """The matrices between widths, and whether all activations are smooth."""
    if problem.chain is not None:
        smooth = all(activation(layer.activation).smooth for layer in problem.chain.hidden)
        return [_Matrix(1, 1, 1)] * (problem.chain.depth - 1), smooth
    assert problem.network is not None  # a problem without a chain has a network
    architecture = problem.network.architecture
    rows = rows_per_sample(problem.network.model, architecture, problem.inputs[:1])
    named = [layer.activation for layer in architecture.layers if layer.activation is not None]
    hidden = [layer for layer in architecture.layers if layer.role is Role.HIDDEN]
    return [_Matrix(*rows[layer.path], layer.taps) for layer in hidden], all(activation(name).smooth for name in named)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"about {max(seconds, 1):.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
