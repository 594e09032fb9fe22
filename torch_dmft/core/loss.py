"""Loss: what training minimises, any function of outputs and targets with its own reduction."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]
"""``loss(outputs, targets) -> scalar``."""


def default_loss(targets: Tensor | None) -> Loss:
    """``nn.CrossEntropyLoss()`` for integer classes, ``nn.MSELoss()`` for floats and where there are no targets."""
    classes = targets is not None and not targets.is_floating_point()
    return nn.CrossEntropyLoss() if classes else nn.MSELoss()
