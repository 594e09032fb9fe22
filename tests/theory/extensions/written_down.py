"""Lazily sampled matrices that are known in full, so that a twin is one network that can be trained by brute force."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from torch_dmft.theory.engine import matrix
from torch_dmft.theory.engine.matrix import GaussianMatrix, Side


class Drawn(dict[GaussianMatrix, Tensor]):
    """Matrices that are drawn when they are first asked for."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def __missing__(self, lazy: GaussianMatrix) -> Tensor:
        sizes = lazy.backward_side.population.size, lazy.forward_side.population.size
        self[lazy] = lazy.scale * torch.randn(sizes, generator=self.generator, dtype=lazy.core.dtype)
        return self[lazy]


def write_down(
    monkeypatch: pytest.MonkeyPatch, known: dict[GaussianMatrix, Tensor] | None = None
) -> dict[GaussianMatrix, Tensor]:
    """Put into the answer what a matrix is, ``(S_out, S_in)``: what it reveals are then its images."""
    known = {} if known is None else known
    plain = GaussianMatrix._extend

    def extend(lazy: GaussianMatrix, directions: Tensor, side: Side, other: Side) -> None:
        images = directions @ (known[lazy].T if side is lazy.forward_side else known[lazy])
        with monkeypatch.context() as patch:
            patch.setattr(side.latent_population, "draw", lambda count: images / lazy.scale)
            plain(lazy, directions, side, other)

    def all_directions(residual: Tensor, squares: Tensor, basis: Tensor, *_: Any, **__: Any) -> Tensor:
        units = residual / squares.sqrt()[:, None]
        _, values, directions = torch.linalg.svd(units - (units @ basis.T) @ basis, full_matrices=False)
        room = len(basis.T) - len(basis)
        directions = directions[values > 1e-13][:room]
        directions = directions - (directions @ basis.T) @ basis
        return torch.linalg.qr(directions.T)[0].T

    monkeypatch.setattr(GaussianMatrix, "_extend", extend)
    monkeypatch.setattr(matrix, "new_directions", all_directions)
    return known
