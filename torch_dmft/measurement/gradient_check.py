"""Whether an optimizer is given the gradients of the loss on the rows that a step is said to see."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from torch_dmft.core.loss import Loss, as_the_loss_takes_them, aside
from torch_dmft.core.torch_private import modules_of, parameters_of, without_hooks
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


def gradient_error(
    subject: Subject, optimizers: Sequence[Optimizer], loss: Loss, inputs: Example, targets: Tensor
) -> tuple[float, float] | None:
    """By how much the gradients that wait for a step differ from those of the loss, and the size of the latter.

    The model is run once more without hooks, in the modes that its modules are in, and left as it was.

    Args:
        subject: the network.
        optimizers: about to step.
        loss: of the run.
        inputs: of the rows that the step sees.
        targets: of these rows, as they were given.

    Returns:
        Both norms over all parameters; None where it cannot be told: without gradients, with randomness in training, or
        where the loss or the model cannot be called with these rows.
    """
    scales = {
        id(p): getattr(optimizer, "grad_scale", None)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for p in group["params"]
    }
    names = {name: p for name, p in parameters_of(subject.model).items() if p.requires_grad and p.grad is not None}
    waiting = {name: p for name, p in names.items() if id(p) in scales}
    random = bool(subject.architecture.train_differs) and any(
        module.training for _, module in modules_of(subject.model)
    )
    planned = {rule.name for rule in subject.plan.rules}
    if not waiting or random or not waiting.keys() <= planned:  # a model that was changed is refused at the next record
        return None
    loss = aside(loss)
    modes = [(module, module.training) for _, module in modules_of(subject.run)]
    device = next(iter(waiting.values())).device
    # Leaves of their own: hooks on the gradients of the parameters do not see them.
    leaves = {id(p): p.detach().requires_grad_() for p in waiting.values()}
    parameters = {name: leaves.get(id(p), p) for name, p in parameters_of(subject.run).items()}
    with undisturbed(subject.run), without_hooks(subject.run), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module, training in modes:
            module.training = training
        try:
            outputs = called_with(subject.run, parameters, moved(inputs, device))
            given = as_the_loss_takes_them(loss, outputs, _like(targets.to(device), outputs))
            slopes = torch.autograd.grad(
                loss(outputs, given), list(leaves.values()), allow_unused=True, materialize_grads=True
            )
        except Exception:
            return None
    # In units in which the gradients of all weights have one size: those of the readout would drown the others.
    norms = []
    for (name, p), slope in zip(waiting.items(), slopes, strict=True):
        assert p.grad is not None  # it waits
        scale = scales[id(p)]
        gradient = p.grad.detach() if scale is None else p.grad.detach() / scale
        both = torch.stack([(gradient - slope).norm(), slope.norm()])
        norms.append(both.to(device, torch.float64) * subject.rate(name) ** 0.5)
    gap, size = torch.stack(norms).norm(dim=0).tolist()
    return gap, size


def _like(targets: Tensor, outputs: Tensor) -> Tensor:
    return targets.to(outputs.dtype) if targets.is_floating_point() else targets
