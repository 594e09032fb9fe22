"""Loss: what training minimises, any function of outputs and targets with its own reduction."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_dmft.core.classes import PlacesCrossEntropy, are_classes, places_in, some_classes
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.random_state import random_state_kept
from torch_dmft.core.threads import own_turn
from torch_dmft.core.users_functions import called

Loss = Callable[[Tensor, Tensor], Tensor]
"""``loss(outputs, targets) -> scalar``."""

_ROWS = 6
"""Rows of the fixed outputs and targets that tell losses apart."""


def default_loss(targets: Tensor | None) -> Loss:
    """``nn.CrossEntropyLoss()`` for integer classes, over places if these have their own; ``nn.MSELoss()`` for all else."""
    if places_in(targets):
        return PlacesCrossEntropy()
    return nn.CrossEntropyLoss() if are_classes(targets) else nn.MSELoss()


_ENTRY_BY_ENTRY = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)


def pairs_entries(loss: Loss) -> bool:
    """Whether this is a loss of torch that pairs outputs and targets entry by entry, and broadcasts what does not fit."""
    functions = (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss)
    return type(loss) in _ENTRY_BY_ENTRY or any(loss is function for function in functions)


def require_loss(loss: object) -> None:
    """Refuse anything but a function, or an instance of a module.

    Raises:
        InvalidInputError: for a class, a name or anything else that cannot be called.
    """
    if isinstance(loss, type) or not callable(loss):
        name = getattr(loss, "__name__", repr(loss))
        raise InvalidInputError("`loss` must be callable.", got=name, remedy="an instance: loss=nn.MSELoss()")


def loss_value(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss of some outputs.

    Raises:
        InvalidInputError: if it fails, or is not one real number.
    """
    form = "loss(outputs, targets) -> scalar, of outputs (sample, output) and the targets as they were given"
    value = called("loss", loss, outputs, targets, remedy=form)
    if not isinstance(value, Tensor) or value.ndim != 0 or not value.is_floating_point():
        shape = f"shape {tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise InvalidInputError("The loss must return one number.", got=shape, remedy=form)
    return value


def loss_in(dtype: torch.dtype, loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss in the precision of the outputs; of one whose own tensors (weights of classes) do not take that, in ``dtype``.

    Args:
        dtype: of the data that the loss was made for.
        loss: the loss.
        outputs: in any precision.
        targets: of these.
    """
    try:
        return loss(outputs, targets)
    except RuntimeError:
        if outputs.dtype == dtype:
            raise
        floats = targets.is_floating_point()
        return loss(outputs.to(dtype), targets.to(dtype) if floats else targets).to(outputs.dtype)


def aside(loss: Loss) -> Loss:
    """A loss to be called beside the training: a copy, as it may count its calls; those of torch count nothing."""
    if not isinstance(loss, nn.Module) or type(loss).__module__ == "torch.nn.modules.loss":
        return loss
    return copy.deepcopy(loss)


def loss_name(loss: Loss) -> str:
    """The name of a loss in errors."""
    return repr(loss) if isinstance(loss, nn.Module) else getattr(loss, "__qualname__", type(loss).__name__)


def loss_print(loss: Loss, outputs: int, targets: Tensor | None, *, rows: int = 0) -> tuple[float, ...]:
    """What a loss makes of a fixed set of outputs and targets: its value and the first two moments of its gradient.

    Two losses with one print are the same, whatever they are called; no print, ``()``, tells nothing.

    Args:
        loss: the loss.
        outputs: C.
        targets: of the training, which tell whether there are classes, and at how many places.
        rows: of the training set: a loss that takes no other number of rows (weights of its own) is printed on so many.
    """
    own = aside(loss)
    return _printed(own, outputs, _ROWS, targets) or _printed(own, outputs, rows, targets)


def _printed(loss: Loss, outputs: int, rows: int, like: Tensor | None) -> tuple[float, ...]:
    """The print of a loss on so many rows, () if it cannot be called."""
    row = torch.arange(rows, dtype=torch.float64, device="cpu")[:, None]
    column = torch.arange(outputs, dtype=torch.float64, device="cpu")
    f = (torch.sin(1.3 * row + 0.7 * column) * 0.9).requires_grad_()
    floats = 0.5 + 0.4 * torch.cos(0.9 * row + 0.4 * column)
    y = some_classes(rows, outputs, places_in(like)) if are_classes(like) else floats.squeeze(1)
    for dtype in (torch.float64, torch.float32):  # a loss with tensors of its own takes their dtype
        with suppress(Exception), own_turn(), warnings.catch_warnings(), random_state_kept(), torch.enable_grad():
            warnings.simplefilter("ignore")
            g = f.detach().to(dtype).requires_grad_()
            targets = y.to(dtype) if y.is_floating_point() else y
            value = loss(g, as_the_loss_takes_them(loss, g.detach(), targets))
            (slope,) = torch.autograd.grad(value, g)
            numbers = float(value), float(slope.square().sum()), float((slope * g).sum())
            if all(map(math.isfinite, numbers)):
                return numbers
    return ()


def as_the_loss_takes_them(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """Float targets ``(row,)`` or ``(row, 1)`` in the one of these shapes that a loss pairs with the outputs row by row.

    A loss that squeezes its outputs takes ``(row,)``, one that does not ``(row, 1)``; the other would be broadcast to
    ``(row, row)`` without a word. The right one is that in which the gradient by one row's output knows no other row's target.

    Args:
        loss: the loss.
        outputs: as the model returns them, ``(row,)`` or ``(row, output)``.
        targets: as they were given.

    Returns:
        The targets, reshaped if that is needed.
    """
    if not targets.is_floating_point() or targets.shape == outputs.shape or targets.numel() != outputs.numel():
        return targets
    reshaped = targets.reshape(outputs.shape)
    pairs = [_pairs(loss, outputs, each) for each in (targets, reshaped)]
    return reshaped if pairs[1] and not pairs[0] else targets


def _pairs(loss: Loss, outputs: Tensor, targets: Tensor) -> bool:
    """Whether a loss pairs outputs and targets row by row."""
    if len(outputs) < 2:
        return targets.shape == outputs.shape
    other = targets.clone()
    other[-1] += 0.25
    slopes = []
    with own_turn(), warnings.catch_warnings(), random_state_kept({outputs.device}), torch.enable_grad():
        warnings.simplefilter("ignore")
        for each in (targets, other):
            # Away from zero, where the gradient of a loss may not exist.
            f = (
                outputs.detach()
                + torch.linspace(0.1, 0.3, outputs.numel(), device=outputs.device).reshape(outputs.shape).to(outputs)
            ).requires_grad_()
            try:
                (slope,) = torch.autograd.grad(loss(f, each).sum(), f)
            except Exception:
                return False
            slopes.append(slope[:-1])
    return bool(torch.equal(*slopes))
