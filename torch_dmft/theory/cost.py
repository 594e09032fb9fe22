"""What a prediction will cost, and how precise it will be, told before it starts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from torch_dmft.architecture import Role
from torch_dmft.core.activation import activation
from torch_dmft.core.errors import UnsupportedProblemError
from torch_dmft.core.factors import tolerance_of
from torch_dmft.core.memory import require_memory
from torch_dmft.theory.coverage import rows_per_sample
from torch_dmft.theory.held import LITTLE_FIRST_USE, OWN_MEMORY, Held, Lags, answer_memory, on_the_process
from torch_dmft.theory.network import ChainNetwork
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.rank import directions_per_row

_PEAK, _PER_ROW = 8e10, 2e9
"""Operations per second of one core of a current CPU in single precision: its peak, and that of products with one row, which
wait for memory; n rows are n times faster until they meet the peak."""
_CALL = 4e-5
"""Least number of seconds that a call of torch takes."""
_FIRST_USE = 2.0
"""Seconds that PyTorch needs to load what it loads the first time that something is trained."""
_STEP, _RECORD, _PAIR, _LAGS = 14, 16, 4, 20
"""Calls of torch per weight: of a step of training, of a record, of one pair of records for kernels at two times, and of a
record for those to a tolerance."""
_TWIN_ERROR, _NETWORK_ERROR = 1.5, 2.2
"""Relative error of the worst kernel times the root of the number of neurons: in matched samples of smooth activations; in
those of others and in plain networks."""


_ENTRY, _COPIES = 1e-9, 5
"""Seconds that Adam takes for an entry of a whole weight in single precision, in one pass over the copies that there are."""


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


def deterministic_cost(
    problem: Problem,
    recorded: int,
    *,
    two_time: bool | float,
    work: int | float,
    calls: int | float,
    numbers: int | float,
    copies: int = 1,
    first_use: int = LITTLE_FIRST_USE,
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
        copies: answers that are held at the same time, in the problem's precision; most of one is also held in float64.
        first_use: bytes of what is loaded the first time, on the CPU.
        error: see ``Cost``.

    Raises:
        UnsupportedProblemError: for two-time kernels to a tolerance, as these methods have no vectors of neurons to compress.
    """
    if tolerance_of(two_time) is not None:
        raise UnsupportedProblemError(
            "Two-time kernels to a tolerance are those of sampled neurons.",
            got=f"two_time={two_time}",
            remedy="solvers.InfiniteWidth(), or two_time=True with fewer recorded steps (record=...)",
        )
    answer = answer_memory(problem, recorded, two_time=two_time, rows=problem.samples)
    double = answer * 8 // problem.dtype.itemsize
    speed = min(_PEAK, _PER_ROW * problem.samples) / 2
    held = int(0.7 * double + copies * answer + 8 * numbers)
    return Cost(
        held + first_use * (problem.device.type == "cpu"), work, work / speed + calls * _CALL + _FIRST_USE, error
    )


def networks_cost(
    problem: Problem,
    widths: Sequence[int],
    *,
    count: int,
    recorded: int,
    two_time: bool | float,
    error: float | None,
    pairs: bool = False,
) -> Cost:
    """Estimate the cost of ``count`` plain networks at each width: 6 N^2 operations per row, step and hidden matrix.

    Gradients of every output, in steps that are recorded, cost 2 N^2 more each. Beside what ``ensemble_memory`` counts, four
    copies of the weights are held (start, present, gradient, momentum).

    Args:
        problem: the problem.
        widths: N of the last hidden layer.
        count: networks of every width.
        recorded: number of recorded steps.
        two_time: whether kernels are kept at pairs of times.
        error: see ``Cost``.
        pairs: whether each counts for two that are averaged at once, see ``ensemble_memory``.
    """
    matrices, smooth = _hidden_matrices(problem)
    element, steps, load = problem.dtype.itemsize, problem.steps + 1, _Load.of(problem, recorded)
    row_passes = 6 * load.trained + 2 * (load.apart + problem.outputs) * load.measured * recorded / steps
    per_row = sum(matrix.written * matrix.taps for matrix in matrices)
    thin, tables = _thin(problem) + problem.outputs, _table_rows(problem)
    networks = (2 if pairs else 1) * count
    flops = row_passes * networks * steps * sum(width**2 * per_row + width * thin for width in widths)
    weights = max(width**2 * sum(matrix.taps for matrix in matrices) + width * (thin + tables) for width in widths)
    lags = lags_of(problem, max(widths), max(widths) * count, recorded, smooth=smooth, two_time=two_time)
    held = Held.of(problem, max(widths), load.most, _populations(matrices), recorded, two_time=two_time, lags=lags)
    memory = ensemble_memory(held, count, len(widths), pairs=pairs) + 4 * weights * element
    gram = _gram_flops(problem, load, matrices, recorded, two_time=two_time) + lags.flops * recorded
    gram *= networks * sum(widths)
    speed = min(_PEAK, _PER_ROW * load.most) * 4 / element
    calls = len(widths) * networks * _calls(problem, load, recorded, two_time=two_time)
    seconds = (flops + gram) / speed + calls * _CALL + _FIRST_USE
    return Cost(on_the_process(problem, memory), flops + gram, seconds, error)


def ensemble_memory(held: Held, count: int, widths: int, *, pairs: bool) -> int:
    """Bytes of ``count`` runs at each of several widths and of what is made of them.

    All runs of a width are kept, with their fields; pairs of networks without, as their mean, which leaves a hole of its size
    in the heap where the records of the two were, unless arrays are so large that they have memory of their own. Of every
    width there are mean and standard error in the end, and the limit, its error and its residual are made of those in float64.
    """
    own = held.answer + (held.fields if not pairs else held.answer if held.largest < OWN_MEMORY else 0)
    lags = widths * count * (2 if pairs else 1) * held.lags.kept
    earlier = 2 * (widths - 1) * held.answer
    run = held.run + (held.answer + held.fields if pairs else 0)
    limit = (2 + 3) * held.answer + 6 * widths * held.largest if pairs else 0
    return lags + count * own + earlier + max(run, held.average(count), limit)


def extrapolation_error(widths: Sequence[int], pairs: int) -> float:
    """Relative error of the limit of a + b / N, fitted with weights N to ``pairs`` of networks at every width.

    A pair counts as one network, as the kernels of both are much the same.
    """
    n = np.array(sorted(set(widths)), dtype=float)
    normal = np.array([[(n ** (1 - i - j)).sum() for j in range(2)] for i in range(2)])
    return float(_NETWORK_ERROR * np.sqrt(np.linalg.inv(normal)[0, 0] / pairs))


def twin_cost(
    problem: Problem, *, neurons: int, replicas: int, recorded: int, two_time: bool | float = False, whole: bool = False
) -> Cost:
    """Estimate the cost of ``replicas`` twins of a problem's network.

    One step costs 4 S n (1 + B) (k + k') operations per hidden matrix with ``directions`` k and k': coordinates in both
    bases, image and learned part, forward and in B backward passes: one for each output in steps that are recorded, and one
    for the update, which a recorded step of a chain need not repeat. A convolution has an image for each of its taps.
    Finding the directions costs 4 S (k + k')^2 in all.

    All runs are kept with their fields, beside one twin: of S numbers for each direction itself, its latent for each tap in
    the matrix and in the population that knows it, and of the matrices between directions, present, gradient, velocity
    (with room for half as many more) and what is known of the start.

    Where what is learned is kept entry by entry, it is passed beside, as in a plain network: 2 S operations more per row,
    forward, for each backward pass and for the gradient, and ``_ENTRY`` seconds for the step of each entry, of which there
    are four copies, present, gradient and Adam's two moments, beside a new gradient.

    Args:
        problem: the problem.
        neurons: S.
        replicas: independent twins.
        recorded: number of recorded steps.
        two_time: whether kernels are kept at pairs of times, for which the fields of all records are.
        whole: whether what is learned is kept entry by entry.
    """
    matrices, smooth = _hidden_matrices(problem)
    outputs, steps, element = problem.outputs, problem.steps, problem.dtype.itemsize
    share = recorded / max(steps, 1)
    backward_passes = 1 + (outputs - 1) * share if problem.chain else 1 + outputs * share
    rank, full = 0, False
    load = _Load.of(problem, recorded)
    lags = lags_of(problem, neurons, neurons * replicas, recorded, smooth=smooth, two_time=two_time, whole=whole)
    held = Held.of(problem, neurons, load.most, _populations(matrices), recorded, two_time=two_time, lags=lags)
    twin = 0.0
    passed = load.trained + load.apart * load.measured * share  # rows in a step, on average
    flops = 6.0 * passed * _thin(problem) * (steps + 1)
    twin += _COPIES * neurons * _table_rows(problem) * element
    per_row = directions_per_row(problem, neurons * replicas, smooth=smooth, whole=whole)
    for matrix in matrices:
        seen, sent = load.met * matrix.read, load.met * matrix.written
        gradients = min(neurons, math.ceil(sent * outputs * per_row.gradients))
        if not smooth:  # the fuller a basis is, the less of a vector is outside of it
            gradients = math.ceil(neurons * -math.expm1(-sent * outputs * per_row.gradients / neurons))
        features = min(neurons, math.ceil(seen * per_row.features))
        rank = max(rank, gradients, features)
        full = full or rank >= neurons // 2
        twin += neurons * (features + gradients) * (1 + 2 * matrix.taps) * element
        twin += (_COPIES * neurons**2 if whole else 9 * features * gradients) * matrix.taps * element
        read, written = passed * matrix.read, passed * matrix.written
        both = matrix.taps * (features * written + gradients * read)
        forward = features * read + both + gradients * written
        backward = gradients * written + both + features * read
        flops += 2.0 * (forward + backward_passes * backward) * (steps + 1) + 4.0 * (features + gradients) ** 2
        flops += whole * 2.0 * neurons * matrix.taps * written * (2 + backward_passes) * (steps + 1)
    flops += _gram_flops(problem, load, matrices, recorded, two_time=two_time) + lags.flops * recorded
    flops *= neurons * replicas
    rows = load.most * min((matrix.read for matrix in matrices), default=1)
    speed = min(_PEAK, _PER_ROW * rows) * 4 / element
    seconds = flops / speed + replicas * _calls(problem, load, recorded, two_time=two_time) * _CALL + _FIRST_USE
    entries = neurons**2 * sum(matrix.taps for matrix in matrices) if whole else 0
    seconds += _ENTRY * element / 4 * entries * replicas * steps
    memory: int | float = replicas * (held.answer + held.fields + lags.kept)
    memory += max(
        held.run - held.answer - held.fields + twin, held.average(replicas), held.modes(replicas) if replicas > 1 else 0
    )
    error = (_TWIN_ERROR if smooth and not full else _NETWORK_ERROR) / math.sqrt(neurons * replicas)
    return Cost(on_the_process(problem, memory), flops, seconds, error, rank, full)


def _populations(matrices: Sequence[_Matrix]) -> list[int]:
    """Rows per sample of every population of neurons: what each matrix reads, and what the last one writes."""
    return [*(matrix.read for matrix in matrices), matrices[-1].written if matrices else 1]


def _calls(problem: Problem, load: _Load, recorded: int, *, two_time: bool | float) -> float:
    """Calls of torch in the training of one network and its records."""
    weights, pairs = len(problem.network.paths), recorded**2 / 2 if two_time is True else 0.0
    record = _RECORD + (_LAGS if two_time and two_time is not True else 0)
    return weights * (_STEP * (problem.steps + 1 + load.apart * recorded) + record * recorded + _PAIR * pairs)


def _gram_flops(
    problem: Problem, load: _Load, matrices: Sequence[_Matrix], recorded: int, *, two_time: bool | float
) -> float:
    """Operations, per neuron, of the inner products of features and of gradients, of each record or of all pairs of them."""
    pairs = recorded**2 / 2 if two_time is True else recorded
    rows = sum((load.measured * read) ** 2 for read in _populations(matrices))
    return 2.0 * pairs * rows * (1 + problem.outputs**2)


def lags_of(
    problem: Problem,
    neurons: int,
    draws: int,
    recorded: int,
    *,
    smooth: bool,
    two_time: bool | float,
    whole: bool = False,
) -> Lags:
    """What two-time kernels to a tolerance hold of one network: for 1% about as many directions as a twin's bases have.

    A tenth of the tolerance needs half as many more.

    Args:
        problem: the problem.
        neurons: N of the widest population.
        draws: neurons times networks.
        recorded: number of recorded steps.
        smooth: whether no activation has a kink.
        two_time: whether kernels are kept at pairs of times.
        whole: see ``directions_per_row``.
    """
    tolerance = tolerance_of(two_time)
    if tolerance is None:
        return Lags()
    per_row = directions_per_row(problem, draws, smooth=smooth, whole=whole)
    finer = max(0.5, 1 + 0.5 * math.log10(0.01 / tolerance))
    return Lags.of(problem, neurons, finer * per_row.features, finer * per_row.gradients * problem.outputs, recorded)


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
        trained = min(problem.train_samples, size * max(problem.steps, 1))
        apart = 0 if problem.probe is None else int((problem.probe >= trained).sum())
        return cls(size, measured, 1, max(measured, trained + apart) if problem.probe is not None else problem.samples)

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


def _thin(problem: Problem) -> int:
    """Numbers per sample that meet weights of the input; tokens pick a row instead."""
    return problem.tensor[0].numel() if problem.tensor.is_floating_point() else 0


def _table_rows(problem: Problem) -> int:
    """Rows of all embeddings, each of which has a number per neuron."""
    plan = problem.network.plan
    layers = () if plan is None else plan.architecture.layers
    return sum(layer.in_features for layer in layers if layer.kind == "embedding")


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
