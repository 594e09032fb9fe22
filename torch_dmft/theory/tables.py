"""Tables of embeddings: which of them theory knows, and how their rows start.

The row of a token is N(0, s^2) in every neuron, independent of other rows, as the weight that one-hot inputs of size sqrt(V)
meet in an ``nn.Linear`` of V inputs. Fields are sums over rows, whatever they stand for: tokens, positions, segments.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from torch_dmft.architecture import Layer, Vector
from torch_dmft.core.errors import Place
from torch_dmft.parameterization.start import shape_of

_SIGMAS = 6.0
"""Standard errors within which numbers are independent."""
_ROWS, _FEW = 256, 16
"""Rows that are looked at for this, and neurons that are too few to tell."""
_DRAW = "start it with nn.init.normal_ before you wrap the model"


def refused(layer: Layer, table: nn.Embedding, starts: Mapping[str, Tensor]) -> Iterator[Place]:
    """Why the rows of a table are not those that theory draws, or not trained by their gradients.

    Args:
        layer: the layer.
        table: the module.
        starts: parameters as they started, where the module's may be others by now.
    """
    if table.scale_grad_by_freq:
        reason = "scale_grad_by_freq divides gradients by counts in the batch, so that they are not those of the loss"
        yield Place(layer.path, reason, "turn it off")
    rows = starts.get(layer.weight, table.weight).detach()
    if rows.is_meta:  # a factory's, as it draws them
        return
    padding = table.padding_idx
    if padding is not None and bool(rows[padding].any()):
        yield Place(layer.path, f"row {padding} is padding, which is not trained, and not zero", "set it to zero")
    yield from _unlike(layer.path, rows, int(padding is not None))


def refused_rows(vector: Vector, rows: Tensor) -> Iterator[Place]:
    """The same of a parameter that belongs to no layer, as it started."""
    if vector.start is None and not rows.is_meta:
        yield from _unlike(vector.name, by_neuron(vector, rows.detach()), 0)


def by_neuron(vector: Vector, parameter: Tensor) -> Tensor:
    """A parameter that belongs to no layer as ``(row, neuron)``."""
    assert vector.place is not None
    return parameter.movedim(vector.place, -1).reshape(-1, parameter.shape[vector.place])


def as_it_is(vector: Vector, rows: Tensor, parameter: Tensor) -> Tensor:
    """Rows ``(row, neuron)`` in the shape of such a parameter."""
    assert vector.place is not None
    shape = [size for axis, size in enumerate(parameter.shape) if axis != vector.place]
    return rows.reshape(*shape, -1).movedim(-1, vector.place)


def _unlike(path: str, rows: Tensor, padding: int) -> Iterator[Place]:
    alive = rows.any(1)
    blank = int((~alive).sum()) - padding
    if bool(alive.any()) and blank > 0:
        yield Place(path, f"{blank} of its rows start at zero, and others do not", _DRAW)
        return
    shape = (shape_of(rows[alive].double()) or _order_of(rows[alive].double())) if bool(alive.any()) else None
    if shape not in (None, "uniform numbers"):
        yield Place(path, f"its rows start as {shape}", _DRAW)


def _order_of(rows: Tensor) -> str | None:
    """What rows are that are alike, or whose neighbouring numbers are, as those of sines; None of independent numbers."""
    unit = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    beside = (unit[:, 1:] * unit[:, :-1]).sum() * rows.shape[1] ** 0.5 / len(rows) ** 0.5
    cosines = (unit[:_ROWS] @ unit[:_ROWS].T).fill_diagonal_(0).abs().max() * rows.shape[1] ** 0.5
    if rows.shape[1] < _FEW or max(abs(float(beside)), float(cosines)) < _SIGMAS:
        return None
    return "numbers that depend on each other"


def without_padding(rows: Tensor, table: nn.Embedding) -> Tensor:
    """The rows ``(token, neuron)`` of a table as drawn, with that of the padding token at zero, where it stays."""
    if table.padding_idx is not None:
        rows[table.padding_idx] = 0
    return rows
