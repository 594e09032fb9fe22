"""Single numbers whose first gradient is zero in the limit, of which Adam makes a step of the full rate, by chance."""

from __future__ import annotations

import math
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
_SOME = 2.0
"""How far the derivative of f by a number that multiplies it may exceed f, as that of exp(t) f does not."""


def warn_of_chance(problem: Problem, plan: Plan, outputs: Tensor, error: Tensor) -> None:
    """Warn where the first step of a single number has no limit.

    The gradient of a number that features are computed with is an average over neurons of a product with the readout, which is
    independent of them. In a network of width N it is of order 1/sqrt(N) and of either sign, and Adam divides by its size. That
    of one behind the readout that multiplies f is as small as f(0). ``balanced`` has what vanishes with sums of targets.

    Args:
        problem: what is trained on.
        plan: the twin, with the gradients of the first step.
        outputs: f(0) of the rows of this step, ``(row, output)``.
        error: the error signal of this step, ``(row, output)``.
    """
    training, scale = problem.training, float(error.abs().sum())
    small = _ROUNDING * torch.finfo(error.dtype).eps * scale
    if not bool(error.any(0).all()):  # an output that the loss does not see has no gradient at any width
        return
    below = {Role.INNER: math.inf, Role.OUTER: small + _SOME * scale * float(outputs.abs().max())}
    if not bool(plan.model.get_parameter(plan.architecture.readout.weight).any()):
        return
    found = []
    for rule, name in named_rules(problem.network, plan):
        gradient = plan.model.get_parameter(rule.name).grad
        if rule.role not in below or name in training.frozen or training.kind(name) not in ("Adam", "AdamW"):
            continue
        if gradient is not None and bool((gradient.abs() <= below[rule.role]).any()):
            found.append(name)
    if found:
        warnings.warn(
            f"The first gradient of {listed(found)} is zero in the limit, as outputs are. Adam makes a step of the full "
            "rate of what is left of it at finite width, up or down by chance: networks scatter by that at every width, and "
            "the prediction is a mean over the signs that its replicas happened to have. Freeze such numbers, or compare with "
            "solvers.WideEnsemble(), which averages over both signs.",
            stacklevel=2,
        )
