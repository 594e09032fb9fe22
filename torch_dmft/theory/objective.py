"""What training minimises: the loss on training rows, and its gradient with respect to the outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_dmft.core.arguments import require_places
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.loss import Loss, loss_in


@dataclass(frozen=True, eq=False)
class Objective:
    """The loss of outputs on training rows.

    Attributes:
        loss: ``loss(outputs, targets) -> scalar``.
        targets: those of all training rows, as the loss takes them.
        outputs: C.
        device: where the loss is evaluated.
        dtype: of the problem, which a loss with tensors of its own (weights of classes) takes if it takes no other.
    """

    loss: Loss
    targets: Tensor
    outputs: int
    device: torch.device
    dtype: torch.dtype

    def on(self, outputs: Tensor, rows: Tensor) -> Tensor:
        """The loss of the outputs ``(row, output)`` of some training rows."""
        self._require_rows(rows)
        self.require_outputs(outputs, len(rows))
        return self._value(outputs, self.targets[rows])

    def among(self, outputs: Tensor, rows: Tensor | None = None) -> Tensor:
        """The loss on the training rows, or on ``rows`` of them: ``outputs`` is ``(sample, output)``, other rows ignored."""
        self.require_outputs(outputs, None)
        predictions = outputs[: len(self.targets)]
        if rows is None:
            return self._value(predictions, self.targets)
        self._require_rows(rows)
        return self.on(predictions[rows.to(predictions.device)], rows)

    def _value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss where the problem is, in the precision of the more precise: not every loss of torch takes them mixed."""
        if targets.is_floating_point():
            common = torch.promote_types(targets.dtype, outputs.dtype)
            outputs, targets = outputs.to(common), targets.to(common)
        return loss_in(self.dtype, self.loss, outputs.to(self.device), targets)

    def _require_rows(self, rows: Tensor) -> None:
        if rows.device.type == "cpu":  # elsewhere looking at them takes time, and torch refuses them
            require_places("rows", rows, len(self.targets))

    def require_outputs(self, outputs: Tensor, rows: int | None) -> None:
        """Refuse outputs that are not ``(row, output)``, of all training rows at least if no number of rows is told.

        Raises:
            InvalidInputError: if they are not.
        """
        fits = outputs.ndim == 2 and outputs.shape[1] == self.outputs
        if not fits or (len(outputs) < len(self.targets) if rows is None else len(outputs) != rows):
            wanted = f"at least {len(self.targets)}" if rows is None else rows
            raise InvalidInputError(
                "`outputs` must be (row, output).",
                got=f"shape {tuple(outputs.shape)}",
                remedy=f"shape ({wanted}, {self.outputs})",
            )


def descent(outputs: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """The direction in which the outputs lower a loss, -dL/df: of the shape of the outputs."""
    outputs = outputs.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(loss(outputs), outputs)
    return -gradient
