r"""Factors: a kernel between all pairs of times, to a tolerance, by its vectors in few directions.

A kernel is a Gram matrix of vectors, K(t, s) = X(t) X(s)^T with a row of X for every sample (and output). During a run they
stay near a space of few directions: of X(t) are kept its k coordinates along them, Y(t),

.. math:: K(t, s) \approx Y(t)\, Y(s)^\top .

Two things are left out (``torch_dmft.measurement.compression``). Directions are found as the run goes on, and E(t), what has no
part along those that are known at t, is lost. In the end D(t), the coordinates along those that hardly any time needs, are
dropped. For t <= s then K(t, s) is off by E(t) X(s)^T + D(t) D(s)^T exactly, and by Cauchy and Schwarz, in the
Frobenius norm, by

.. math:: \epsilon(t)\, \lVert K(s, s) \rVert^{1/2} + \delta(t)\, \delta(s) \quad\text{at most, with}\quad
          \epsilon = \lVert E E^\top \rVert^{1/2}, \quad \delta = \lVert D D^\top \rVert^{1/2} .

The tolerance bounds this sum in units of (|K(t, t)| |K(s, s)|)^{1/2}, which is the most that |K(t, s)| can be. Memory is P k
numbers a time instead of P^2 T.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from torch_dmft.core.equality import by_value
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.numbers import require_number

SMALLEST = 1e-5
"""Smallest tolerance: beyond it float32 does not tell directions from rounding."""


def tolerance_of(two_time: object) -> float | None:
    """The tolerance that ``two_time=`` asks for; None where it is True or False.

    Raises:
        InvalidInputError: if it is a number beyond 1e-5..1.
    """
    if isinstance(two_time, bool):
        return None
    require_number(
        "two_time", two_time, at_least=SMALLEST, below=1, remedy="True, False, or a tolerance such as two_time=0.01"
    )
    return float(cast(float, two_time))


@by_value
@dataclass(frozen=True)
class Factors:
    """What a kernel between two times is made of: sum over parts p of w_p Y_p(t) Y_p(s)^T.

    Attributes:
        parts: of one network, or of every replica of a mean, ``(time, sample, direction)`` or
            ``(time, sample, output, direction)``.
        weights: w_p, one for each part.
        left_out: epsilon_p(t), ``(part, time)``.
        dropped: delta_p(t), ``(part, time)``.
    """

    parts: tuple[Tensor, ...]
    weights: tuple[float, ...]
    left_out: Tensor
    dropped: Tensor

    def __post_init__(self) -> None:
        """Refuse parts of different times and rows."""
        rows = {tuple(part.shape[:-1]) for part in self.parts}
        known = (len(self.parts), len(self.parts[0])) if self.parts else (0, 0)
        sizes = {tuple(self.left_out.shape), tuple(self.dropped.shape)}
        if len(rows) != 1 or len(self.weights) != known[0] or sizes != {known}:
            raise InvalidInputError(
                "The factors of a kernel must be of the same times and rows, with a weight each.",
                got=f"{sorted(rows)}, {len(self.weights)} weights, left_out {sorted(sizes)}",
                remedy="the kernel of a recorder or of a solver, as it was made",
            )

    @property
    def directions(self) -> int:
        """K, of all parts together."""
        return sum(part.shape[-1] for part in self.parts)

    def between(self, times: Tensor, others: Tensor) -> Tensor:
        """K between some times and others: ``(time, *row, other, *row)``, a row being (sample,) or (sample, output).

        Args:
            times: ``(time,)`` positions along the time axis.
            others: ``(other,)`` likewise.
        """
        total = torch.zeros((), device=self.left_out.device)
        for part, weight in zip(self.parts, self.weights, strict=True):
            left, right = part[times], part[others]
            product = left.flatten(0, -2) @ right.flatten(0, -2).T
            total = total + weight * product.reshape(*left.shape[:-1], *right.shape[:-1])
        return total

    def bound(self, time: int, other: int) -> float:
        """How far K between two times is off at most, in the Frobenius norm.

        Args:
            time: a position along the time axis.
            other: another.
        """
        pair = [time, other]
        left_out, dropped = self.left_out[:, pair].double(), self.dropped[:, pair].double()
        sizes = self._sizes(pair, left_out, dropped)
        # Which of the two is the earlier is not known any more, where only some times are kept.
        off = torch.maximum(left_out[:, 0] * sizes[:, 1], left_out[:, 1] * sizes[:, 0]) + dropped.prod(1)
        return float(off @ off.new_tensor(self.weights).abs())

    def _sizes(self, times: list[int], left_out: Tensor, dropped: Tensor) -> Float[Tensor, "part time"]:
        """At most |K_p(t, t)|^{1/2}: what was kept, and what was left out beside it."""
        kept = [
            torch.linalg.matrix_norm(rows @ rows.mT) for rows in (p[times].double().flatten(1, -2) for p in self.parts)
        ]
        return (torch.stack(kept) + left_out.square() + dropped.square()).sqrt()

    def at(self, index: Tensor) -> Factors:
        """Of a subset of the times."""
        parts = tuple(part[index] for part in self.parts)
        return replace(self, parts=parts, left_out=self.left_out[:, index], dropped=self.dropped[:, index])

    def at_rows(self, rows: Tensor) -> Factors:
        """Of a subset of the samples. Of them no more is left out than of all."""
        return replace(self, parts=tuple(part.index_select(1, rows.to(part.device)) for part in self.parts))

    def per_sample(self) -> Factors:
        """Averaged over equal outputs: the vectors of a sample's outputs end to end, over the root of their number."""
        parts = tuple(part.flatten(2) / part.shape[2] ** 0.5 for part in self.parts)
        return replace(self, parts=parts)

    def mixed(self, mix: Float[Tensor, "time known"]) -> Factors:
        """At times between the known ones, where vectors are weighted means of theirs, and so is what is left out, at most."""
        parts = tuple(torch.tensordot(mix.to(part), part, 1) for part in self.parts)
        left_out, dropped = (one @ mix.to(one).abs().T for one in (self.left_out, self.dropped))
        return replace(self, parts=parts, left_out=left_out, dropped=dropped)


def weighted(factors: Sequence[Factors | None], weights: Sequence[float]) -> Factors | None:
    """A sum of kernels with weights, by the factors of all; None if one has none. Nothing is copied."""
    known = [each for each in factors if each is not None]
    if len(known) < len(factors) or not known:
        return None
    return Factors(
        parts=tuple(part for each in known for part in each.parts),
        weights=tuple(weight * w for each, weight in zip(known, weights, strict=True) for w in each.weights),
        left_out=torch.cat([each.left_out for each in known]),
        dropped=torch.cat([each.dropped for each in known]),
    )
