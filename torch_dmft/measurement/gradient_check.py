"""Whether an optimizer is given the gradients of the loss on the rows that a step is said to see."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.optim import Optimizer

from torch_dmft.core.loss import Loss, as_the_loss_takes_them
from torch_dmft.core.torch_private import has_backward_hooks
from torch_dmft.core.undisturbed import undisturbed
from torch_dmft.measurement.subject import Subject

TOLERANCE = 0.03
"""Relative difference of gradients that are the same: training in bfloat16 rounds them by a percent."""


def is_due(step: int) -> bool:
    """Whether gradients are looked at before this step: 0, 1, 2, 4, 8, ... cost little in a long run."""
    return step & (step - 1) == 0


def gradient_error(
    subject: Subject, optimizers: tuple[Optimizer, ...], loss: Loss, inputs: Tensor, targets: Tensor
) -> tuple[float, float] | None:
    """By how much the gradients that wait for a step differ from those of the loss, and the size of the latter.

    The model is run once more, in the modes that its modules are in, and left as it was.

    Args:
        subject: the network.
        optimizers: about to step.
        loss: of the run.
        inputs: of the rows that the step sees.
        targets: of these rows, as they were given.

    Returns:
        Both norms over all parameters; None where it cannot be told: with randomness in training, closures, gradients in
        other units, or hooks on gradients.
    """
    stepped = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    parameters = [p for p in subject.model.parameters() if p.requires_grad and p.grad is not None and id(p) in stepped]
    scaled = any(getattr(optimizer, "grad_scale", None) is not None for optimizer in optimizers)
    hooked = any(has_backward_hooks(p) for p in parameters)
    random = bool(subject.architecture.train_differs) and any(module.training for module in subject.model.modules())
    if not parameters or scaled or hooked or random:
        return None
    modes = [(module, module.training) for module in subject.run.modules()]
    device = parameters[0].device
    with undisturbed(subject.run), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module, training in modes:
            module.training = training
        try:
            outputs = subject.run(inputs.to(device))
            given = as_the_loss_takes_them(loss, outputs, _like(targets.to(device), outputs))
            wanted = torch.autograd.grad(loss(outputs, given), parameters, allow_unused=True, materialize_grads=True)
        except Exception:
            return None
    # In units in which the gradients of all weights have one size: those of the readout would drown the others.
    names = {id(p): name for name, p in subject.model.named_parameters()}
    sizes = [subject.rate(names[id(p)]) ** 0.5 for p in parameters]
    pairs = zip(parameters, wanted, sizes, strict=True)
    both = [(size * p.grad.detach().flatten().double(), size * g.flatten().double()) for p, g, size in pairs]  # type: ignore[union-attr]
    found, known = (torch.cat(each) for each in zip(*both, strict=True))
    return float((found - known).norm()), float(known.norm())


def _like(targets: Tensor, outputs: Tensor) -> Tensor:
    return targets.to(outputs.dtype) if targets.is_floating_point() else targets
