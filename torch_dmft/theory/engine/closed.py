"""A trained twin applied to rows that it has not met, each as if it came alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from torch_dmft.core.errors import Place, UnsupportedModelError
from torch_dmft.theory.engine.layers import InfiniteLinear
from torch_dmft.theory.engine.lazy_layer import LazyLayer


@contextmanager
def closed(model: nn.Module) -> Iterator[None]:
    """Let a twin learn of no new inputs in the body: outputs do not depend on which rows are asked for together, or before.

    Each row has the law it has in the field theory with that row as a further sample; rows together do not have their joint
    law, as the parts that are new of all of them are taken to be parallel. Nothing is stored, so any number of rows costs
    O(S k) each.

    Args:
        model: of a plan of ``infinite_width``, with linear layers.

    Raises:
        UnsupportedModelError: for convolutions, which put together several rows of a sample.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, LazyLayer)]
    if not all(isinstance(layer, InfiniteLinear) for layer in layers):
        raise UnsupportedModelError(
            "Only linear layers can be applied row by row:",
            [
                Place(name, "it puts together several rows of a sample", "pose further samples as test_inputs")
                for name, layer in model.named_modules()
                if isinstance(layer, LazyLayer) and not isinstance(layer, InfiniteLinear)
            ],
        )
    for layer in layers:
        layer.matrix.closed = True
    try:
        yield
    finally:
        for layer in layers:
            layer.matrix.closed = False
