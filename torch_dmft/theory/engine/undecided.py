"""Output biases whose first gradient is zero, of which Adam makes a step of the full rate, up or down by chance."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from torch_dmft.architecture import Role
from torch_dmft.core.listed import listed
from torch_dmft.parameterization import Plan
from torch_dmft.theory.engine.course import named_rules
from torch_dmft.theory.problem import Problem

_ROUNDING = 100
"""Units of rounding within which a sum over rows is zero."""


def warn_of_chance(problem: Problem, plan: Plan, error: Tensor) -> None:
    """Warn where the first step of an output bias has no limit.

    f(0) is zero in the limit, so the gradient of the bias is a sum over targets, and vanishes where these balance. In a network
    of width N it is of order 1/sqrt(N) and of either sign, and Adam divides by its size.

    Args:
        problem: what is trained on.
        plan: the twin, with the gradients of the first step.
        error: the error signal of this step, ``(row, output)``.
    """
    training, scale = problem.training, float(error.abs().sum())
    small = _ROUNDING * torch.finfo(error.dtype).eps * scale
    if not bool(error.any(0).all()):  # an output that the loss does not see has no gradient at any width
        return
    found = []
    for rule, name in named_rules(problem.network, plan):
        gradient = plan.model.get_parameter(rule.name).grad
        by_adam = rule.role is Role.OUTPUT_BIAS and training.kind(name) in ("Adam", "AdamW")
        if by_adam and name not in training.frozen and gradient is not None and bool((gradient.abs() <= small).any()):
            found.append(name)
    if found:
        warnings.warn(
            f"The first gradient of {listed(found)} is zero where classes or targets balance. Adam makes a step of the full "
            "rate of what is left of it at finite width, up or down by chance: outputs of networks scatter by that at every "
            "width, and the prediction has one sign, or none. Take bias=False in the readout, or compare with "
            "solvers.WideEnsemble(), which averages over both signs.",
            stacklevel=2,
        )
