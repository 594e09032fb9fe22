"""Whether an optimizer is given the gradients of the loss on the rows that a step is said to see."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor
from torch.optim import Optimizer

from torch_dmft.core.loss import Loss, as_the_loss_takes_them, aside
from torch_dmft.core.spread import gathered, whole
from torch_dmft.core.threads import own_turn
from torch_dmft.core.torch_private import backward_pass, modules_of, parameters_of, without_hooks
from torch_dmft.core.undisturbed import undisturbed
from torch_dmft.measurement.functional import called_with
from torch_dmft.measurement.subject import Subject
from torch_dmft.uses.outputs import Example, moved

TOLERANCE = 0.03
"""Relative difference of gradients that are the same: training in bfloat16 rounds them by a percent."""
_GOLDEN = (math.sqrt(5) - 1) / 2
_APART = 16
"""Steps between two checks at recorded steps, at least; later a quarter of the steps so far."""


def is_due(step: int, *, last: int, recorded: bool) -> bool:
    """Whether gradients are looked at before a step: 0 to 2, then about twice an octave, and when it is recorded.

    A check costs one pass over the rows of the step. At recorded steps, which cost more, there is one in 16 steps at most, and
    later three an octave.

    Args:
        step: the step.
        last: the step of the last check.
        recorded: whether the network is measured before this step.
    """
    # Multiples of the golden ratio fall everywhere, so that the steps share no period with what a loop does.
    return step < 3 or math.modf(step * _GOLDEN)[0] < 3 / step or (recorded and step - last >= max(_APART, step / 4))


class GradientCheck:
    """The gradients of the loss on the rows of a step, and by how much those differ that optimizers are given.

    The model is run once more without hooks, in the modes that its modules are in, and left as it was. Under a learning rule
    only the readout has the gradients of the loss.

    Args:
        subject: the network.
        slopes: the gradients of the loss, by the names of the parameters; None where they cannot be told.
    """

    def __init__(self, subject: Subject, slopes: Mapping[str, Tensor] | None) -> None:
        self._subject, self._slopes = subject, slopes
        self._norms: list[Tensor] = []

    @classmethod
    def of_loss(
        cls, subject: Subject, optimizers: Sequence[Optimizer], loss: Loss, inputs: Example, targets: Tensor
    ) -> GradientCheck:
        """Take the gradients of the loss.

        They cannot be told without parameters to step, with randomness in training, or where the loss or the model cannot be
        called with these rows.

        Args:
            subject: the network.
            optimizers: about to step.
            loss: of the run.
            inputs: of the rows that the step sees.
            targets: of these rows, as they were given.
        """
        return cls(subject, _slopes(subject, optimizers, loss, inputs, targets))

    def meet(self, optimizers: Sequence[Optimizer]) -> None:
        """Compare with the gradients that wait for optimizers."""
        for optimizer, name, p in _waiting(self._subject, optimizers):
            if self._slopes is None or name not in self._slopes or not self._is_of_loss(name):
                continue
            slope, scale = self._slopes[name], getattr(optimizer, "grad_scale", None)
            assert p.grad is not None  # it waits
            gradient = gathered(p.grad.detach())
            if scale is not None:
                gradient = gradient / scale
            # In units in which the gradients of all weights have one size: those of the readout would drown the others.
            both = torch.stack([(gradient - slope).norm(), slope.norm()])
            self._norms.append(both.to(slope.device, torch.float64) * self._subject.rate(name) ** 0.5)

    def _is_of_loss(self, name: str) -> bool:
        """Whether a parameter learns by the gradient."""
        readout = self._subject.architecture.readout
        return self._subject.plan.learns_by[0] == "gradient" or name in (readout.weight, readout.bias)

    def error(self) -> tuple[float, float] | None:
        """By how much the gradients differ from those of the loss, and the size of the latter.

        Both are norms over all parameters that were compared; None if there are none.
        """
        if not self._norms:
            return None
        device = self._norms[0].device
        gap, size = torch.stack([norms.to(device) for norms in self._norms]).norm(dim=0).tolist()
        return gap, size


def _waiting(
    subject: Subject, optimizers: Sequence[Optimizer], *, with_gradient: bool = True
) -> list[tuple[Optimizer, str, Tensor]]:
    """The parameters that optimizers step, with their names."""
    names = {id(p): name for name, p in parameters_of(subject.model).items() if p.requires_grad}
    stepped = {id(p): (optimizer, p) for optimizer in optimizers for g in optimizer.param_groups for p in g["params"]}
    return [
        (optimizer, names[key], p)
        for key, (optimizer, p) in stepped.items()
        if key in names and (p.grad is not None or not with_gradient)
    ]


def _slopes(
    subject: Subject, optimizers: Sequence[Optimizer], loss: Loss, inputs: Example, targets: Tensor
) -> dict[str, Tensor] | None:
    # Within a backward pass the gradients of others are still to come.
    waiting = [name for _, name, _ in _waiting(subject, optimizers, with_gradient=backward_pass() is None)]
    random = bool(subject.architecture.train_differs) and any(
        module.training for _, module in modules_of(subject.model)
    )
    planned = {rule.name for rule in subject.plan.rules}
    if (
        not waiting or random or not planned.issuperset(waiting)
    ):  # a model that was changed is refused at the next record
        return None
    loss = aside(loss)
    with own_turn(), whole(subject.run), warnings.catch_warnings(), ExitStack() as stack:
        modes = [(module, module.training) for _, module in modules_of(subject.run)]
        stack.enter_context(undisturbed(subject.run))
        stack.enter_context(without_hooks(subject.run))
        warnings.simplefilter("ignore")
        for module, training in modes:
            module.training = training
        # Leaves of their own: hooks on the gradients of the parameters do not see them.
        weights = {name: subject.model.get_parameter(name) for name in waiting}
        leaves = {id(p): p.detach().requires_grad_() for p in weights.values()}
        parameters = {name: leaves.get(id(p), p) for name, p in subject.run.named_parameters()}
        device = next(iter(leaves.values())).device
        try:
            outputs = called_with(subject.run, parameters, moved(inputs, device))
            given = as_the_loss_takes_them(loss, outputs, _like(targets.to(device), outputs))
            slopes = torch.autograd.grad(
                loss(outputs, given), list(leaves.values()), allow_unused=True, materialize_grads=True
            )
        except Exception:
            return None
    return dict(zip(weights, slopes, strict=True))


def _like(targets: Tensor, outputs: Tensor) -> Tensor:
    return targets.to(outputs.dtype) if targets.is_floating_point() else targets
