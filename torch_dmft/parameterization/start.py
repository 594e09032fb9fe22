"""How the weights of a model start: as the Gaussian numbers that theory draws, as zeros, or otherwise."""

from __future__ import annotations

import math

from torch import Tensor

from torch_dmft.architecture import Role
from torch_dmft.parameterization.plan import Plan

_SIGMAS = 6.0
"""Standard errors beyond which a statistic is not that of Gaussian numbers; some hundred weights are looked at in a model."""
_ROWS = 256
"""Rows whose angles are looked at; an orthogonal matrix shows itself in any of them."""


def starts_of(plan: Plan) -> dict[str, str]:
    """The weights of a model that do not start as independent Gaussian numbers: parameter name -> what they are instead.

    Zeros are ``"zero"``. Of others the mean, the fourth moment and the angles between rows and between columns are compared
    with those of Gaussian numbers of the same size, each within six standard errors. Size itself is not judged: that is the
    parameterization's. An infinite-width twin starts as the theory has it.

    Args:
        plan: the model as it is now, before its first step.
    """
    if any(getattr(module, "keeps_what_it_reveals", False) for module in plan.model.modules()):
        return {}
    found = {}
    for rule in plan.rules:
        if rule.role in (Role.INPUT, Role.HIDDEN, Role.READOUT):
            start = _start(plan.model.get_parameter(rule.name).detach())
            if start is not None:
                found[rule.name] = start
    return found


def _start(weight: Tensor) -> str | None:
    """What a weight is if not Gaussian numbers."""
    rows = weight.reshape(len(weight), -1).double()
    size = float(rows.square().mean().sqrt())
    if size == 0:
        return "zero"
    rows, n = rows / size, rows.numel()
    mean, fourth = float(rows.mean()), float(rows.pow(4).mean())
    if abs(mean) > _SIGMAS / math.sqrt(n):
        return f"numbers with mean {mean:.2g} of their size"
    if n >= 64 and abs(fourth - 3) > _SIGMAS * math.sqrt(96 / n):  # the variance of x^4 is 96
        return (
            "uniform numbers"
            if abs(fourth - 1.8) < 0.1
            else f"numbers with a fourth moment of {fourth:.2g} instead of 3"
        )
    for name, vectors in (("rows", rows), ("columns", rows.T)):
        angles = _squared_angles(vectors)
        if angles is not None and abs(angles[0] - 1) > _SIGMAS * angles[1]:
            return f"a matrix whose {name} are {'orthogonal' if angles[0] < 0.1 else 'not independent'}"
    return None


def _squared_angles(vectors: Tensor) -> tuple[float, float] | None:
    """The mean squared inner product of different vectors, times their length, which is 1 for Gaussians, and its error."""
    some = vectors[:_ROWS]
    count, length = some.shape
    pairs = count * (count - 1) / 2
    if pairs < 100 or length < 16:
        return None
    gram = some @ some.T / length
    squares = (gram.square().sum() - gram.diagonal().square().sum()) / (2 * pairs) * length
    # Every pair has a variance of two, and all share the lengths of the vectors, whose squares scatter by 2 / length.
    return float(squares), math.sqrt(2 / pairs + 8 / (length * count) + 2 / length**2)
