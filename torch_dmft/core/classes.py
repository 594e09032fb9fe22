"""Targets that are classes: one for each sample, or one for each of several places of it (the next token at every token).

Outputs of places stand side by side, f = ``(sample, place * class)``: ``out.flatten(1)`` of ``(sample, place, class)``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_dmft.core.errors import InvalidInputError


def are_classes(targets: Tensor | None) -> bool:
    """Whether there are targets, and these are no numbers to be fitted."""
    return targets is not None and not targets.is_floating_point()


def places_in(targets: Tensor | None) -> int:
    """How many places of a sample have a class of their own; 0 for other targets, or a class for the whole sample."""
    return targets.shape[1] if targets is not None and are_classes(targets) and targets.ndim == 2 else 0


def is_column(targets: Tensor) -> bool:
    """Whether classes, one for each sample, stand in a column, which most losses take for something else."""
    return are_classes(targets) and targets.ndim == 2 and targets.shape[1] == 1


def one_hot_rows(targets: Tensor, outputs: int | None) -> Tensor:
    """One for the class that is right and zero for all others: ``(sample, output)`` integers.

    Args:
        targets: ``(sample,)`` or ``(sample, place)`` classes.
        outputs: C, of all places together; None for as many classes as the largest needs.

    Raises:
        InvalidInputError: if a class has no output.
    """
    places = places_in(targets) or 1
    classes = -1 if outputs is None else outputs // places
    if outputs is not None and (outputs % places or int(targets.max()) >= classes):
        of = f" at each of {places} places" if places > 1 else ""
        raise InvalidInputError(
            "Every class needs an output.",
            got=f"class {int(targets.max())}{of} of a model with {outputs} outputs",
            remedy="classes 0, 1, ... at every place; outputs= that selects all (out.flatten(1)); one-hot rows as floats",
        )
    return F.one_hot(targets, classes).flatten(1)


class PlacesCrossEntropy(nn.Module):
    """``nn.CrossEntropyLoss()`` over all places of all samples, of outputs ``(sample, place * class)``."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean over samples and places of classes ``(sample, place)``."""
        return F.cross_entropy(outputs.reshape(targets.numel(), -1), targets.flatten())


def some_classes(rows: int, outputs: int, places: int) -> Tensor:
    """Classes to try a loss with: ``(row,)``, or ``(row, place)``."""
    if not places:
        return torch.arange(rows, device="cpu") % outputs
    return torch.arange(rows * places, device="cpu").reshape(rows, places) % max(1, outputs // places)
