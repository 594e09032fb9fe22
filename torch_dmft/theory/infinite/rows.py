"""A set of vectors that grows: rows of length S, with amortised appends and orthonormal completion."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

_SOME = range(5, 40)
"""Numbers of vectors for which ``basis @ vectors.T`` is the faster order, by up to a factor of two."""

_SMALL = 0.1
"""Squared singular value below which what rounding leaves along a basis is worth another projection."""


class Rows(nn.Module):
    """``count`` vectors of length ``size``; ``rows`` is the ``(count, size)`` view of all of them.

    Storage doubles when it is full, so that n appends cost O(n size). A module, so that ``.to(device)`` moves it and
    ``state_dict`` holds the rows.
    """

    keeps_what_it_reveals = True  # measuring a lazily sampled model must not make it forget (core.undisturbed)
    storage: Tensor

    def __init__(self, size: int, *, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self.count = 0
        self.register_buffer("storage", torch.empty(0, size, dtype=dtype, device=device), persistent=False)

    @property
    def rows(self) -> Tensor:
        """All vectors, ``(count, size)``."""
        return self.storage[: self.count]

    def append(self, new: Float[Tensor, "new size"]) -> None:
        """Add vectors at the end."""
        needed = self.count + len(new)
        if needed > len(self.storage):
            storage = self.storage.new_empty(max(needed, 2 * len(self.storage), 32), self.storage.shape[1])
            storage[: self.count] = self.rows
            self.storage = storage
        self.storage[self.count : needed] = new
        self.count = needed

    def get_extra_state(self) -> Tensor:
        """The rows, for ``state_dict``."""
        return self.rows.clone()

    def set_extra_state(self, state: Any) -> None:
        """Restore the rows from a ``state_dict``."""
        self.storage = state.to(self.storage, copy=True)
        self.count = len(state)


def inner(vectors: Float[Tensor, "m size"], basis: Float[Tensor, "k size"]) -> Float[Tensor, "m k"]:
    """All inner products <v, q>."""
    return (basis @ vectors.T).T if len(vectors) in _SOME else vectors @ basis.T


def project_off(vectors: Float[Tensor, "m size"], basis: Float[Tensor, "k size"]) -> Float[Tensor, "m size"]:
    """The part of each vector orthogonal to an orthonormal basis."""
    return torch.addmm(vectors, inner(vectors, basis), basis, alpha=-1) if len(basis) else vectors


def new_directions(
    residual: Float[Tensor, "m size"], basis: Float[Tensor, "k size"], tolerance: float
) -> Float[Tensor, "new size"]:
    """Orthonormal directions, orthogonal to ``basis``, that leave at most ``tolerance`` of any residual uncovered.

    The directions are the leading right singular vectors of the residual, found from its small Gram matrix in float64.
    Dividing by a small singular value magnifies what rounding left along the basis, which is then projected off once more.
    """
    eigenvalues, vectors = torch.linalg.eigh((residual @ residual.T).double())
    # More rows than dimensions have zero eigenvalues, which come out as rounding errors of the largest.
    rounding = len(residual) * torch.finfo(residual.dtype).eps * float(eigenvalues[-1])
    keep = eigenvalues > max(tolerance**2, rounding)
    directions = (vectors[:, keep] / eigenvalues[keep].sqrt()).T.to(residual.dtype) @ residual
    magnified = bool((eigenvalues[keep] < _SMALL).any())
    return orthonormal(directions, basis) if magnified else directions


def orthonormal(vectors: Float[Tensor, "m size"], basis: Float[Tensor, "k size"]) -> Float[Tensor, "m size"]:
    """The vectors made orthogonal to ``basis`` and, by symmetric whitening, orthonormal to each other.

    One round, exact to rounding for vectors that are mostly outside of the basis and not nearly parallel.
    """
    vectors = project_off(vectors, basis)
    eigenvalues, rotation = torch.linalg.eigh((vectors @ vectors.T).double())
    whiten = (rotation / eigenvalues.sqrt()) @ rotation.T
    return whiten.to(vectors.dtype) @ vectors
