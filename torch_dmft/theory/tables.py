"""Tables of embeddings: which of them theory knows, and how their rows start.

The row of a token is N(0, s^2) in every neuron, independent of other rows, as the weight that one-hot inputs of size sqrt(V)
meet in an ``nn.Linear`` of V inputs. Fields are sums over rows, whatever they stand for: tokens, positions, segments.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from torch_dmft.architecture import Layer
from torch_dmft.core.errors import Place
from torch_dmft.parameterization.start import shape_of

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
    alive = rows.any(1)
    blank = int((~alive).sum()) - (padding is not None)
    if bool(alive.any()) and blank > 0:
        yield Place(layer.path, f"{blank} of its rows start at zero, and others do not", _DRAW)
        return
    shape = shape_of(rows[alive].double()) if bool(alive.any()) else None
    if shape not in (None, "uniform numbers"):
        yield Place(layer.path, f"its rows start as {shape}", _DRAW)


def without_padding(rows: Tensor, table: nn.Embedding) -> Tensor:
    """The rows ``(token, neuron)`` of a table as drawn, with that of the padding token at zero, where it stays."""
    if table.padding_idx is not None:
        rows[table.padding_idx] = 0
    return rows
