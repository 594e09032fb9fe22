"""What solutions hold in memory, piece by piece: answers, fields, runs while they are recorded, and averages of them."""

from __future__ import annotations

from dataclasses import dataclass

from torch_dmft.measurement.fields import MOST
from torch_dmft.theory.problem import Problem

FIRST_USE = 118 * 2**20
"""Bytes that PyTorch and SciPy load the first time that something is trained, on the CPU."""
LITTLE_FIRST_USE = 90 * 2**20
"""The same where no network is trained."""
OWN_MEMORY = 32 * 2**20
"""Bytes of an array from which on the C library takes it from the system and gives it back, whatever came before."""
_RECORD = 2**13
"""Bytes of the Python objects of one record, while its tensors are not joined yet."""
_FRAGMENTS = 1.25
"""What the allocator holds, beside what is in use, of tensors that come and go in many sizes."""


def on_the_process(problem: Problem, held: int | float) -> int:
    """Bytes by which a process grows that holds so many: fragments of the heap and what is loaded on first use come on top.

    On an accelerator the one is the allocator's to give back, and the other is not there.
    """
    return int(_FRAGMENTS * held) + (FIRST_USE if problem.device.type == "cpu" else 0)


def answer_memory(problem: Problem, recorded: int, *, two_time: bool | float, rows: int | None = None) -> int:
    """Bytes of a trajectory's arrays: for L + 1 weights n^2 numbers forward, (n C)^2 backward and in the NTK, at every record.

    Args:
        problem: the problem.
        recorded: number of recorded steps.
        two_time: whether kernels are kept at pairs of times; to a tolerance they are beside the arrays, see ``Lags``.
        rows: n; None for those of the probe.
    """
    layers, samples = len(problem.network.paths), len(problem.kept) if rows is None else rows
    features, gradients = samples**2, (samples * problem.outputs) ** 2
    entries = layers * (features + 2 * gradients) + gradients
    return entries * (recorded**2 if two_time is True else recorded) * problem.dtype.itemsize


@dataclass(frozen=True)
class Lags:
    """What two-time kernels to a tolerance hold beside the arrays of equal times, in bytes.

    Attributes:
        kept: by the kernels of a finished run, in the directions that they need: about half of those met.
        running: while a network is recorded, all directions met and the records in them, and those of one kernel twice more
            when the run is over.
        flops: of finding directions, per record and neuron.
    """

    kept: int = 0
    running: int = 0
    flops: float = 0.0

    @classmethod
    def of(cls, problem: Problem, neurons: int, features: float, gradients: float, recorded: int) -> Lags:
        """For one network.

        Args:
            problem: the problem.
            neurons: N of the widest population.
            features: directions that each sample's features met, in all of the run.
            gradients: the same of gradients, over all outputs.
            recorded: number of recorded steps.
        """
        samples, outputs, weights = len(problem.kept), problem.outputs, len(problem.network.paths)
        most = min(neurons, samples * outputs * recorded)
        forward, backward = min(float(most), samples * features), min(float(most), samples * gradients)
        numbers = recorded * samples * (forward + outputs * backward)
        met = (weights + 1) * numbers + 1.5 * weights * neurons * (forward + backward)
        products = 8 * samples * (forward + outputs * backward) * weights
        size = problem.dtype.itemsize
        return cls(int(0.5 * weights * numbers * size), int(met * size), products)


@dataclass(frozen=True)
class Held:
    """The pieces, in bytes.

    Attributes:
        answer: A, the kernels of one answer, see ``answer_memory``.
        largest: a, the largest array in it, which is averaged in one piece.
        fields: F, h and g of single neurons at a handful of the records, five at most.
        passing: what is alive while one record is taken: x, h and g of every population twice over, as those of the last
            record are kept until it is known whether they will be, and g's on their way down; at pairs of times those of all
            records.
        objects: Python's, of the records.
        lags: what two-time kernels to a tolerance hold.
    """

    answer: int
    largest: int
    fields: int
    passing: int
    objects: int
    lags: Lags = Lags()

    @classmethod
    def of(
        cls,
        problem: Problem,
        neurons: int,
        rows: int,
        populations: list[int],
        recorded: int,
        *,
        two_time: bool | float,
        lags: Lags,
    ) -> Held:
        """For one network.

        Args:
            problem: the problem.
            neurons: N of the widest population.
            rows: those of the largest pass.
            populations: rows per sample of every population of neurons.
            recorded: number of recorded steps.
            two_time: whether kernels are kept at pairs of times.
            lags: what they hold where it is to a tolerance.
        """
        element, outputs, probe = problem.dtype.itemsize, problem.outputs, len(problem.kept)
        kept = sum(min(MOST, probe * p * neurons) + min(MOST, outputs * probe * p * neurons) for p in populations)
        streams = neurons * sum(populations) * (2 + outputs)
        passing = (2 * rows + probe * (recorded if two_time is True else 1)) * streams
        return cls(
            answer=answer_memory(problem, recorded, two_time=two_time),
            largest=(probe * outputs) ** 2 * (recorded**2 if two_time is True else recorded) * element,
            fields=min(5, recorded) * kept * element,
            passing=passing * element,
            objects=_RECORD * recorded,
            lags=lags,
        )

    @property
    def run(self) -> int:
        """A network's run while its records are joined: those, what becomes of them, and both of its fields."""
        return 2 * (self.answer + self.fields) + self.passing + self.objects + self.lags.running

    def average(self, runs: int) -> int:
        """Beside the runs, their mean and standard error, and the largest array of all runs stacked, also in float64.

        Of the stack the error makes eight arrays more in float64, see ``kernel_error``. One run is its own mean.
        """
        stacked = max(3 * runs + 1, 2 * runs + 16 if runs > 1 else 0)
        return 2 * self.answer + min(runs, 2) * self.fields + stacked * self.largest

    def modes(self, runs: int) -> int:
        """Beside the runs, what the errors of a limit's modes are found from: every NTK once more, and some in float64."""
        return 2 * self.answer + self.fields + (runs + 14) * self.largest
