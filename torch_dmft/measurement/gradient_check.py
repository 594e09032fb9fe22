"""Whether an optimizer is given the gradients of the loss on the rows that a step is said to see."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import functional_call
from torch.optim import Optimizer

from torch_dmft.core.loss import Loss, as_the_loss_takes_them
from torch_dmft.core.torch_private import without_hooks
from torch_dmft.core.undisturbed import undisturbed
from torch_dmft.measurement.subject import Subject

TOLERANCE = 0.03
"""Relative difference of gradients that are the same: training in bfloat16 rounds them by a percent."""


def is_due(step: int) -> bool:
    """Whether gradients are looked at before this step: 0 to 8, then at four steps of every octave: 10, 12, 14, 16, 20, ...

    What goes wrong at some step and stays so for a quarter of the steps before it is seen, at a cost that falls as 1 / T.
    """
    return step % (1 << max(0, step.bit_length() - 3)) == 0


def gradient_error(
    subject: Subject, optimizers: Sequence[Optimizer], loss: Loss, inputs: Tensor, targets: Tensor
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
    names = {name: p for name, p in subject.model.named_parameters() if p.requires_grad and p.grad is not None}
    waiting = {name: p for name, p in names.items() if id(p) in scales}
    random = bool(subject.architecture.train_differs) and any(module.training for module in subject.model.modules())
    if not waiting or random:
        return None
    modes = [(module, module.training) for module in subject.run.modules()]
    device = next(iter(waiting.values())).device
    # Leaves of their own: hooks on the gradients of the parameters do not see them.
    leaves = {id(p): p.detach().requires_grad_() for p in waiting.values()}
    parameters = {name: leaves.get(id(p), p) for name, p in subject.run.named_parameters()}
    with undisturbed(subject.run), without_hooks(subject.run), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module, training in modes:
            module.training = training
        try:
            outputs = functional_call(subject.run, parameters, (inputs.to(device),))
            given = as_the_loss_takes_them(loss, outputs, _like(targets.to(device), outputs))
            slopes = torch.autograd.grad(
                loss(outputs, given), list(leaves.values()), allow_unused=True, materialize_grads=True
            )
        except Exception:
            return None
    # In units in which the gradients of all weights have one size: those of the readout would drown the others.
    gap = size = 0.0
    for (name, p), slope in zip(waiting.items(), slopes, strict=True):
        assert p.grad is not None  # it waits
        scale, unit = scales[id(p)], subject.rate(name)
        gradient = p.grad.detach().double() / (1.0 if scale is None else scale.double())
        gap += unit * float((gradient - slope.double()).square().sum())
        size += unit * float(slope.double().square().sum())
    return gap**0.5, size**0.5


def _like(targets: Tensor, outputs: Tensor) -> Tensor:
    return targets.to(outputs.dtype) if targets.is_floating_point() else targets
