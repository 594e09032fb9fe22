"""What a sampled prediction will cost, told before it starts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch_dmft.core.activation import activation
from torch_dmft.theory.problem import Problem

_FLOPS_PER_SECOND = 2e10
"""What one core of a current CPU reaches on the engine's thin matrix products."""


@dataclass(frozen=True)
class Cost:
    """Estimate of the cost of training infinite-width twins; print it.

    Attributes:
        rank: directions per basis of the larger side of a hidden matrix at the end.
        saturated: whether that meets the number of neurons, so that the sample is no more than a wide network.
        memory: bytes of one replica: bases, images, and what is recorded.
        flops: floating-point operations of all replicas.
    """

    rank: int
    saturated: bool
    memory: int
    flops: float

    @property
    def seconds(self) -> float:
        """Time on one CPU core."""
        return self.flops / _FLOPS_PER_SECOND

    def __str__(self) -> str:
        full = ", meets the number of neurons" if self.saturated else ""
        return (
            f"estimate: rank {self.rank}{full}, {self.memory / 2**30:.2g} GiB, {self.flops:.1e} flops, "
            f"{_duration(self.seconds)} on one CPU core"
        )


def twin_cost(problem: Problem, *, neurons: int, replicas: int, recorded: int) -> Cost:
    """Estimate the cost of ``replicas`` twins of a problem's network.

    With n rows, C outputs and T steps, gradients explore about n C (3 log(1 + T) + 1) directions through smooth activations
    and 0.4 n C T through others, features half as many; never more than there are neurons or vectors. One step costs
    2 S n [(3 k + k') + (1 + C) (3 k' + k)] operations per hidden matrix: coordinates, residual, image and learned part, forward
    and backward. Minibatches and momentum explore up to three times more.

    Args:
        problem: the problem.
        neurons: S.
        replicas: independent twins.
        recorded: number of recorded steps.
    """
    hidden, smooth = _hidden_matrices(problem)
    rows, outputs, steps = problem.samples, problem.outputs, problem.steps
    per_row = 3 * math.log1p(steps) + 1 if smooth else 0.4 * steps + 1
    wide = min(neurons, rows * outputs * (steps + 1), math.ceil(rows * outputs * per_row))
    narrow = min(wide, math.ceil(0.6 * rows * per_row))
    element = problem.inputs.element_size()
    recorded_bytes = 4 * (hidden + 2) * recorded * (rows * outputs) ** 2 * element
    memory = 2 * hidden * neurons * (narrow + wide) * element * 2 + recorded_bytes  # the populations know them too
    passes = 3 * narrow + wide + (1 + outputs * recorded / max(steps, 1)) * (3 * wide + narrow)
    flops = 2.0 * neurons * rows * passes * hidden * (steps + 1) * replicas
    dense = 6.0 * neurons * rows * problem.inputs[0].numel() * (steps + 1) * replicas
    return Cost(wide, wide >= neurons // 2, memory, flops + dense)


def _hidden_matrices(problem: Problem) -> tuple[int, bool]:
    """How many matrices lie between widths, and whether all activations are smooth."""
    if problem.chain is not None:
        return problem.chain.depth - 1, all(activation(layer.activation).smooth for layer in problem.chain.hidden)
    assert problem.network is not None  # a problem without a chain has a network
    layers = problem.network.architecture.layers
    named = [layer.activation for layer in layers if layer.activation is not None]
    return max(len(layers) - 2, 0), all(activation(name).smooth for name in named)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"about {max(seconds, 1):.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
