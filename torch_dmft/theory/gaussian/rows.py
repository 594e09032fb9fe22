"""A set of vectors that grows: rows of length S, with amortised appends and orthonormal completion."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

_FIRST = 128
"""Number of vectors that the storage has room for at first; growing it copies everything."""

_SMALL = 0.1
"""Squared singular value below which what rounding leaves along a basis is worth another projection. (At 1e-3 time falls by up
to a thirtieth, and a basis that should span everything no longer does.)"""


class Rows(nn.Module):
    """``count`` vectors of length ``size``; ``rows`` is the ``(count, size)`` view of all of them.

    Storage doubles when it is full, so that n appends cost O(n size). A module, so that ``.to(device)`` moves it and
    ``state_dict`` holds the rows.
    """

    keeps_what_it_reveals = True  # measuring a lazily sampled model must not make it forget (core.undisturbed)
    storage: Tensor
    rows: Tensor

    def __init__(self, size: int, *, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self.register_buffer("storage", torch.empty(0, size, dtype=dtype, device=device), persistent=False)
        self._look(0)

    def _look(self, count: int) -> None:
        # A view made once and not at every look: each of a thousand looks would cost as much as a small product.
        self.count, self.rows = count, self.storage[:count]

    def append(self, new: Float[Tensor, "new size"]) -> None:
        """Add vectors at the end."""
        needed, room = self.count + new.shape[0], self.storage.shape[0]
        if needed > room:
            storage = self.storage.new_empty(max(needed, 2 * room, _FIRST), self.storage.shape[1])
            storage[: self.count] = self.rows
            self.storage = storage
        self.storage[self.count : needed] = new
        self._look(needed)

    def _apply(self, fn: Any, recurse: bool = True) -> Rows:
        super()._apply(fn, recurse)
        self._look(self.count)
        return self

    def get_extra_state(self) -> Tensor:
        """The rows, for ``state_dict``."""
        return self.rows.clone()

    def set_extra_state(self, state: Any) -> None:
        """Restore the rows from a ``state_dict``."""
        self.storage = state.to(self.storage, copy=True)
        self._look(len(state))


def inner(vectors: Float[Tensor, "m size"], basis: Float[Tensor, "k size"]) -> Float[Tensor, "m k"]:
    """All inner products <v, q>."""
    return vectors @ basis.T  # never slower than (basis @ vectors.T).T, and for ten vectors twice as fast


def project_off_(vectors: Float[Tensor, "m size"], basis: Float[Tensor, "k size"]) -> Float[Tensor, "m size"]:
    """The part of each vector orthogonal to an orthonormal basis; the vectors are overwritten."""
    return vectors.addmm_(inner(vectors, basis), basis, alpha=-1)


def new_directions(
    residual: Float[Tensor, "m size"],
    squares: Float[Tensor, " m"],
    basis: Float[Tensor, "k size"],
    tolerance: float,
    *,
    aligned: bool = False,
    jointly: bool = False,
) -> Float[Tensor, "new size"]:
    """Orthonormal directions, orthogonal to ``basis``, that leave at most ``tolerance`` of any vector uncovered.

    The directions are the leading right singular vectors of what is left of the vectors that are not covered yet, each in
    units of its length, largest first, found from the small Gram matrix in float64; never more than there are dimensions left.
    Dividing by a small singular value magnifies what rounding left along the basis, which is then projected off once more.

    Args:
        residual: what ``basis`` leaves of vectors.
        squares: squared lengths of the vectors.
        basis: orthonormal rows.
        tolerance: largest part of a vector that may stay uncovered.
        aligned: if every uncovered vector brings a direction, turn them so that each is as close as can be to its residual.
        jointly: leave at most ``tolerance`` of any combination of the vectors, too, in units of their lengths and its own.
    """
    products = (residual @ residual.T).double()
    uncovered = (products.diagonal() > (0.0 if jointly else tolerance**2) * squares).nonzero().flatten()
    if not len(uncovered):
        return residual[:0]
    units = squares[uncovered].double().rsqrt()
    eigenvalues, vectors = torch.linalg.eigh(products[uncovered[:, None], uncovered] * units * units[:, None])
    eigenvalues, vectors = eigenvalues.flip(-1), vectors.flip(-1)
    # The sign of an eigenvector is a matter of rounding: without a convention a seed would give another answer elsewhere.
    vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    # More rows than dimensions have zero eigenvalues, which come out as rounding errors of the largest.
    rounding = len(uncovered) * torch.finfo(residual.dtype).eps * float(eigenvalues[0])
    count = min(int((eigenvalues > max(tolerance**2, rounding)).sum()), basis.shape[1] - basis.shape[0])
    combinations = vectors[:, :count] / eigenvalues[:count].sqrt()
    if aligned and count == len(uncovered):
        combinations = combinations @ vectors.T
    weights = products.new_zeros(len(residual), count).index_copy(0, uncovered, combinations * units[:, None])
    directions = weights.T.to(residual.dtype) @ residual
    magnified = count > 0 and float(eigenvalues[count - 1]) < _SMALL
    return orthonormal_(directions, basis) if magnified else directions


def orthonormal_(vectors: Float[Tensor, "m size"], basis: Float[Tensor, "k size"]) -> Float[Tensor, "m size"]:
    """The vectors, which are overwritten, made orthogonal to ``basis`` and, by symmetric whitening, orthonormal to each other.

    One round, exact to rounding for vectors that are mostly outside of the basis and not nearly parallel.
    """
    vectors = project_off_(vectors, basis)
    eigenvalues, rotation = torch.linalg.eigh((vectors @ vectors.T).double())
    whiten = (rotation / eigenvalues.sqrt()) @ rotation.T
    return whiten.to(vectors.dtype) @ vectors
