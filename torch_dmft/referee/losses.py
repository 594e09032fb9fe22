"""The loss of a batch: the user's own, or what follows from the batch's form."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.users_functions import called
from torch_dmft.uses.outputs import arguments, select

BatchLoss = Callable[[nn.Module, Any], Tensor]
"""``(model, batch)`` -> scalar."""

_FORM = "loss(model, batch) -> scalar, for a batch as the data give it: (inputs, targets) where they are random"


def loss_on_batches(model: nn.Module, loss: Any) -> tuple[BatchLoss, tuple[str, ...]]:
    """The loss of a batch, and what is to be said of it.

    Args:
        model: whose own ``training_step`` (Lightning) is taken where no loss is given.
        loss: the user's; None: cross-entropy for targets that are integers, squared error for others, or what a model returns.
    """
    if loss is None and has_step(model):
        return _checked(_of_step), ("loss: the model's own training_step",)
    if loss is None:
        said = "loss: the model's own for a mapping, else cross-entropy for classes and squared error for numbers"
        return _checked(_usual), (said,)
    return (of_outputs(loss) if takes_outputs(loss) else _checked(loss)), ()


def has_step(model: nn.Module) -> bool:
    """Whether a model is one of Lightning, which takes the loss of a batch itself."""
    return callable(getattr(model, "training_step", None))


def takes_outputs(loss: Any) -> bool:
    """Whether a loss is one of torch, of (outputs, targets), and not of (model, batch)."""
    return isinstance(loss, nn.Module) or getattr(loss, "__module__", "") == "torch.nn.functional"


def of_outputs(loss: Callable[..., Tensor]) -> BatchLoss:
    """The loss of a batch ``(inputs, targets)`` from one of (outputs, targets)."""

    def of_batch(model: nn.Module, batch: Any) -> Tensor:
        inputs, targets = _pair(batch)
        outputs = _outputs(model, inputs)
        if not targets.is_floating_point() and outputs.ndim > 2 and outputs.shape[:-1] == targets.shape:
            outputs, targets = outputs.flatten(0, -2), targets.flatten()  # of tokens
        return loss(outputs, targets)

    return _checked(of_batch)


def _usual(model: nn.Module, batch: Any) -> Tensor:
    """The loss that a model returns for a mapping; cross-entropy or squared error of ``(inputs, targets)``."""
    if isinstance(batch, Mapping):
        returned = model(**batch)
        value = returned.get("loss") if isinstance(returned, Mapping) else getattr(returned, "loss", None)
        if value is None:
            raise InvalidInputError(
                "A loss must be given, as the model returns none for this batch.",
                got=f"a batch with {', '.join(map(str, batch))}",
                remedy="labels in the batch for a model of transformers, or " + _FORM,
            )
        return value
    inputs, targets = _pair(batch)
    return usual_loss(_outputs(model, inputs), targets)


def usual_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of classes, along the last axis or along axis 1; squared error of numbers of the outputs' shape."""
    if targets.is_floating_point():
        if targets.numel() != outputs.numel():
            raise InvalidInputError(
                "Targets must have the shape of the outputs.",
                got=f"targets {tuple(targets.shape)}, outputs {tuple(outputs.shape)}",
                remedy=_FORM,
            )
        return F.mse_loss(outputs, targets.reshape(outputs.shape))
    if outputs.shape[:-1] == targets.shape:
        return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())
    return F.cross_entropy(outputs, targets)


def _pair(batch: Any) -> tuple[Any, Tensor]:
    if not isinstance(batch, tuple | list) or len(batch) != 2 or not isinstance(batch[1], Tensor):
        parts = ", ".join(type(part).__name__ for part in batch) if isinstance(batch, tuple | list) else ""
        raise InvalidInputError(
            "Without a loss of (model, batch), a batch must be (inputs, targets).",
            got=f"{type(batch).__name__} of {parts}" if parts else type(batch).__name__,
            remedy=_FORM,
        )
    return batch[0], batch[1]


def _outputs(model: nn.Module, inputs: Any) -> Tensor:
    args, kwargs = arguments(inputs)
    return select(model(*args, **kwargs), None)


def _of_step(model: Any, batch: Any) -> Any:
    """The loss among what Lightning's ``training_step`` returns."""
    takes_number = "batch_idx" in inspect.signature(model.training_step).parameters
    returned = model.training_step(batch, *([0] if takes_number else []))
    return returned["loss"] if isinstance(returned, Mapping) else returned


def _checked(loss: Callable[[nn.Module, Any], Any]) -> BatchLoss:
    """A loss that is one real number, or refused."""

    def of_batch(model: nn.Module, batch: Any) -> Tensor:
        value = called("loss", loss, model, batch, remedy=_FORM)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
            shape = f"shape {tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            raise InvalidInputError("The loss must return one number.", got=shape, remedy=_FORM)
        return value.reshape(())

    return of_batch
