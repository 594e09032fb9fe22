"""Kernel: a Gram matrix over time and data, with named axes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from torch_dmft.core.arguments import checked, require_places
from torch_dmft.core.equality import by_value
from torch_dmft.core.errors import InvalidInputError, NotRecordedError
from torch_dmft.core.factors import Factors
from torch_dmft.core.memory import require_memory
from torch_dmft.core.numbers import require_whole

_EQUAL_TIME = ("time", "sample", "sample")
_TWO_TIME = ("time", "sample", "time", "sample")
_EQUAL_TIME_OUTPUTS = ("time", "sample", "output", "sample", "output")
_TWO_TIME_OUTPUTS = ("time", "sample", "output", "time", "sample", "output")


@checked
@by_value
@dataclass(frozen=True)
class Kernel:
    """A Gram matrix K[(t, mu), (s, alpha)] over recorded times and data.

    Attributes:
        array: the entries. Its axes are one of

            - ``(time, sample, sample)``: equal times, K[t, mu, alpha] = K[(t, mu), (t, alpha)];
            - ``(time, sample, time, sample)``: two times;
            - ``(time, sample, output, sample, output)`` and ``(time, sample, output, time, sample, output)``:
              the same for backward kernels and NTKs of models with several outputs. With one output that axis is left out.

            The number of axes tells the four apart: 3, 4, 5 and 6.
        factors: beside an array of equal times, what K between any two of them is computed from to a tolerance
            (``core.factors``), if it was recorded.

    Two kernels are equal if their arrays and factors are, bit for bit (``core.equality``).
    """

    array: Tensor
    factors: Factors | None = None

    def __post_init__(self) -> None:
        """Refuse arrays whose shape is not that of a Gram matrix."""
        if self.array.ndim not in (3, 4, 5, 6):
            raise InvalidInputError(
                "A kernel's array must have 3 to 6 axes.",
                got=f"shape {tuple(self.array.shape)}",
                remedy="see the docstring of Kernel for the four layouts",
            )
        shape = self.array.shape
        row = 1 + self.has_outputs  # axes of a row beside time
        left, right = (
            (shape[: 1 + row], shape[1 + row :]) if self.is_two_time else (shape[1 : 1 + row], shape[1 + row :])
        )
        if left != right:
            raise InvalidInputError(
                "The two sides of a kernel must have equal shapes.",
                got=f"shape {tuple(shape)}",
                remedy="see the docstring of Kernel for the four layouts",
            )
        if self.factors is not None and (self.is_two_time or self.factors.parts[0].shape[:-1] != shape[: 1 + row]):
            raise InvalidInputError(
                "The factors of a kernel must be of its times and rows, beside an array of equal times.",
                got=f"factors of {tuple(self.factors.parts[0].shape[:-1])}, array {tuple(shape)}",
                remedy="the kernel of a recorder or of a solver, as it was made",
            )

    @property
    def is_two_time(self) -> bool:
        """Whether the array holds pairs of different times."""
        return self.array.ndim in (4, 6)

    @property
    def has_lags(self) -> bool:
        """Whether K between different times is known, from the array or from factors."""
        return self.is_two_time or self.factors is not None

    @property
    def has_outputs(self) -> bool:
        """Whether rows are (sample, output) pairs rather than samples."""
        return self.array.ndim in (5, 6)

    @property
    def axes(self) -> tuple[str, ...]:
        """The name of every axis of ``array``."""
        return {3: _EQUAL_TIME, 4: _TWO_TIME, 5: _EQUAL_TIME_OUTPUTS, 6: _TWO_TIME_OUTPUTS}[self.array.ndim]

    def __repr__(self) -> str:
        sizes = ", ".join(f"{axis} {size}" for axis, size in zip(self.axes, self.array.shape, strict=True))
        lags = "" if self.factors is None else f"; all lags, in {self.factors.directions} directions"
        return f"<Kernel: {sizes}; {str(self.array.dtype).removeprefix('torch.')}{lags}>"

    @property
    def values(self) -> Tensor:
        """The two-time array ``(time, sample, time, sample)`` (with output axes for several outputs), computed from factors.

        Raises:
            NotRecordedError: if only equal times were recorded.
            InsufficientMemoryError: if the array of all pairs does not fit; ``between`` gives single pairs.
        """
        self._require_lags()
        if self.factors is None:
            return self.array
        needed = 2 * self.array.numel() * len(self.array) * self.array.element_size()
        require_memory(
            needed,
            self.array.device,
            what=f"The array of all pairs of {len(self.array)} times",
            remedy="kernel.between(t, s), one pair at a time, or kernel.at(index), fewer times",
        )
        every = torch.arange(len(self.array), device=self.array.device)
        array, half = self.factors.between(every, every).to(self.array), self.array.ndim // 2 + 1
        array.diagonal(dim1=0, dim2=half).copy_(self.array.movedim(0, -1))
        return array

    def between(self, time: int, other: int) -> Tensor:
        """K between two recorded times, ``(sample, sample)`` or ``(sample, output, sample, output)``: rows of ``time`` first.

        From factors it is off by at most ``bound(time, other)``, and not at all at equal times.

        Args:
            time: t, a position along the time axis; -1 is the last.
            other: s, likewise.

        Raises:
            NotRecordedError: if only equal times were recorded.
        """
        t, s = self._place("time", time), self._place("other", other)
        if t == s:
            return self.equal_time[t]
        self._require_lags()
        if self.factors is None:
            return self.array[t].select(self.array.ndim // 2 - 1, s)
        one, two = torch.tensor([t], device=self.array.device), torch.tensor([s], device=self.array.device)
        found = self.factors.between(one, two).to(self.array)
        return found.reshape(self.array.shape[1:])

    def bound(self, time: int, other: int) -> float:
        """How far ``between`` is off at most, in the Frobenius norm; 0 of what was recorded as it is.

        Args:
            time: t, a position along the time axis; -1 is the last.
            other: s, likewise.

        Raises:
            NotRecordedError: if only equal times were recorded.
        """
        t, s = self._place("time", time), self._place("other", other)
        self._require_lags()
        return 0.0 if t == s or self.factors is None else self.factors.bound(t, s)

    @property
    def equal_time(self) -> Tensor:
        """The equal-time array ``(time, sample, sample)`` (with output axes for several outputs)."""
        if not self.is_two_time:
            return self.array
        diagonal = self.array.diagonal(dim1=0, dim2=self.array.ndim // 2)
        return diagonal.movedim(-1, 0)

    def matrix(self, time: int = -1) -> Tensor:
        """The square matrix at one recorded time, rows (sample) or (sample, output) flattened: ``(row, row)``."""
        at = self.equal_time[self._place("time", time)]
        rows = at.shape[: at.ndim // 2].numel()
        return at.reshape(rows, rows)

    def per_sample(self) -> Kernel:
        """The kernel over samples alone: summed over equal outputs, (sum over c of K[mu c, alpha c]) / C."""
        if not self.has_outputs:
            return self
        half = self.array.ndim // 2 if self.is_two_time else 2
        first = half - 1 if self.is_two_time else half
        last = self.array.ndim - 1
        factors = None if self.factors is None else self.factors.per_sample()
        return Kernel(self.array.diagonal(dim1=first, dim2=last).mean(-1), factors)

    def at(self, index: Tensor) -> Kernel:
        """The kernel at a subset of its recorded times: ``index`` is ``(kept,)``, positions along the time axis."""
        require_places("index", index, len(self.array))
        array = self.array[index]
        factors = None if self.factors is None else self.factors.at(index)
        return Kernel(array.index_select(self.array.ndim // 2, index) if self.is_two_time else array, factors)

    def at_rows(self, rows: Tensor) -> Kernel:
        """The kernel of a subset of its samples: ``rows`` is ``(kept,)``, positions along the sample axes."""
        require_places("rows", rows, self.array.shape[1])
        array = self.array
        for axis, name in enumerate(self.axes):
            if name == "sample":
                array = array.index_select(axis, rows.to(array.device))
        return Kernel(array, None if self.factors is None else self.factors.at_rows(rows))

    def _place(self, name: str, time: int) -> int:
        """A position along the time axis, from the front."""
        count = len(self.array)
        require_whole(
            name, time, at_least=-count, at_most=count - 1, remedy=f"a position in 0..{count - 1}, or -1, the last"
        )
        return int(time) % count

    def _require_lags(self) -> None:
        if not self.has_lags:
            raise NotRecordedError(
                "This kernel holds equal times only.",
                got=f"axes {self.axes}",
                remedy="record with two_time=True, or a tolerance, two_time=0.01; or use Kernel.equal_time",
            )


@checked
def movement(kernel: Kernel) -> Float[Tensor, " time"]:
    """How far a kernel has moved since the first recorded step.

    |K(t) - K(0)| / |K(0)|, at equal times: 0 throughout in the lazy limit, of order 1 when features are learned.

    Args:
        kernel: any layout; its first time is the reference.

    Returns:
        One float64 number per time.
    """
    rows = kernel.equal_time.detach().to("cpu", torch.float64).flatten(1)
    distances, size = (rows - rows[0]).norm(dim=1), rows[0].norm()
    return (distances / size).masked_fill((distances == 0) & (size == 0), 0.0)
