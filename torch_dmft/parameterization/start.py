"""How the parameters of a model start: as the Gaussian numbers that theory draws, as zeros, or otherwise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torch_dmft.architecture import Role
from torch_dmft.core.prints import some_entries
from torch_dmft.parameterization.plan import Plan
from torch_dmft.parameterization.rules import ParameterRule
from torch_dmft.parameterization.uniform import UNIFORM, bound_of, own_bound, root_mean_square, size_of, size_of_rows

_SIGMAS = 6.0
"""Standard errors beyond which a statistic is not that of Gaussian numbers; some hundred weights are looked at in a model."""
_ROWS = 256
"""Rows whose angles are looked at; an orthogonal matrix shows itself in any of them."""
_STORED = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Precisions in which a checkpoint may have been stored since."""
_FEW = 12
"""Entries that do not tell whether two weights resemble each other."""
_MATRICES = (Role.INPUT, Role.HIDDEN, Role.READOUT, Role.CODE)
_KEPT = 1e-4
"""Relative change of the size of a parameter that keeps its own start, above which it was changed after it was wrapped."""


def starts_of(plan: Plan, *, untrained: bool) -> dict[str, str]:
    """The parameters of a model that do not start as theory starts them: parameter name -> what they are instead.

    Zeros are ``"zero"``, and uniform numbers, as torch draws them, ``"uniform"``: biases, and weights that were kept. Of other
    weights the size, mean, fourth moment and the angles between rows and between columns are compared with those of Gaussian
    numbers N(0, std^2), std that of the plan, each within six standard errors. Of biases it is mean and fourth moment; gains
    and shifts of norm layers are one and zero, output biases zero. A weight that resembles what it was when it was wrapped,
    and is not the same, was trained or changed since. An infinite-width twin starts as the theory has it.

    Args:
        plan: the model as it is now.
        untrained: whether no step was taken yet for certain. If not, only what training does not change is judged.
    """
    if any(getattr(module, "keeps_what_it_reveals", False) for module in plan.model.modules()):
        return {}
    starts = {}
    for rule in plan.rules:
        start = _start(plan, rule, plan.model.get_parameter(rule.name).detach().double(), untrained=untrained)
        if start is not None:
            starts[rule.name] = start
    return starts


def _start(plan: Plan, rule: ParameterRule, value: Tensor, *, untrained: bool) -> str | None:
    """What a parameter is if not as theory starts it."""
    if rule.role in _MATRICES:
        parameter = plan.model.get_parameter(rule.name)
        shape = UNIFORM if _is_uniform(plan, rule, parameter) else shape_of(value)
        if shape in (None, UNIFORM) and untrained:
            return _size(value, rule) or _changed(plan.drawn.get(rule.name), parameter) or shape
        return shape
    scale = next((one.start for one in plan.architecture.vectors if one.name == rule.name and not one.is_norm), None)
    if rule.role is Role.EMBEDDING or (rule.name in plan.architecture.bare and scale is None):
        return _rows(value if rule.role is Role.EMBEDDING else value.reshape(-1, 1), rule, untrained=untrained)
    own = next((own_bound(layer.fan_in) for layer in plan.architecture.layers if layer.bias == rule.name), None)
    own = None if own is None else own * rule.start
    size = root_mean_square(value) if own is None else size_of(value, own=own)
    if rule.role is Role.OUTPUT_BIAS:
        return f"numbers of size {size:.3g} instead of zero" if size and untrained else None
    if rule.role is not Role.VECTOR and scale is None:
        return None
    usual = (float(rule.name.rpartition(".")[2] == "weight") if scale is None else scale) * rule.start
    is_norm = all(rule.name != layer.bias for layer in plan.architecture.layers)
    if not math.isclose(size, rule.std, rel_tol=_KEPT, abs_tol=1e-12):
        if untrained:
            return f"numbers of size {size:.3g}, which were {rule.std:.3g} when the plan was made"
        return f"{rule.std:.3g} instead of {usual:g}" if is_norm and abs(rule.std - abs(usual)) > _KEPT else None
    if is_norm:
        off = bool((value - usual).abs().max() > _KEPT)
        return f"numbers up to {float(value.max()):.3g} instead of {usual:g}" if off else None
    return UNIFORM if bound_of(value, own=own) is not None else _bias(value, root_mean_square(value))


def _rows(value: Tensor, rule: ParameterRule, *, untrained: bool) -> str | None:
    """What rows of neurons are, those of an embedding, if they were changed since the model was wrapped, or are uniform."""
    value = value[value.any(1)] / rule.start
    size = size_of_rows(value) * rule.start
    if not math.isclose(size, rule.std, rel_tol=_KEPT, abs_tol=1e-12):
        return f"numbers of size {size:.3g}, which were {rule.std:.3g} when the plan was made" if untrained else None
    return UNIFORM if bound_of(value) is not None else None


def _is_uniform(plan: Plan, rule: ParameterRule, weight: Tensor) -> bool:
    """Whether a weight of a kind that theory draws is uniform; what the plan drew, and nobody touched since, is not."""
    if rule.role is Role.CODE or plan.wrapping.init == "untouched":
        return False
    drawn, now = plan.drawn.get(rule.name), some_entries(weight)
    is_ours = plan.wrapping.init == "normal" and rule.lr > 0
    if is_ours and drawn is not None and torch.equal(drawn.to(now), now):
        return False
    return bound_of(weight) is not None


def is_fresh(weight: Tensor) -> bool:
    """Whether a weight looks like a random draw of independent numbers, Gaussian or uniform ones, or is zero.

    Uniform numbers end at sqrt(3) of their size; training moves some beyond.
    """
    shape = shape_of(weight)
    if shape != "uniform numbers":
        return shape in (None, "zero")
    size = float(weight.square().mean().sqrt())
    return float(weight.abs().max()) <= math.sqrt(3) * size * (1 + _SIGMAS / math.sqrt(weight.numel()))


def shape_of(weight: Tensor) -> str | None:
    """What a weight is if not Gaussian numbers of any size."""
    rows = weight.reshape(len(weight), -1)
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


def _size(weight: Tensor, rule: ParameterRule) -> str | None:
    """What the size of a Gaussian weight is if not the plan's."""
    ratio = float(weight.square().mean().sqrt()) / rule.std if rule.std else 1.0
    # Of n Gaussian numbers the cube root of the mean square is nearly Gaussian itself (Wilson and Hilferty 1931).
    spread = 2 / (9 * weight.numel())
    off = ratio > 0 and abs(ratio ** (2 / 3) - (1 - spread)) > _SIGMAS * math.sqrt(spread)
    return f"numbers {ratio:.3g} times as large as the plan has them" if off else None


def _changed(before: Tensor | None, weight: Tensor) -> str | None:
    """What a weight is that changed since it was wrapped, if it still resembles what it was."""
    now = some_entries(weight).cpu()
    if before is None or len(before) != len(now) or len(now) < _FEW:
        return None
    before = before.cpu().to(now.dtype)
    cosine = float(torch.nn.functional.cosine_similarity(now.double(), before.double(), dim=0))
    resembles = cosine > min(0.9, _SIGMAS / math.sqrt(len(now)))  # of independent numbers it is 0 +- 1 / sqrt(n)
    kept = any(now.equal(before.to(dtype).to(now.dtype)) for dtype in _STORED)
    return "numbers that were changed since the model was wrapped" if resembles and not kept else None


def _bias(bias: Tensor, size: float) -> str | None:
    """What a bias is if not independent numbers about zero."""
    n = bias.numel()
    if not size or n < 2:
        return None
    mean, fourth = float(bias.mean()) / size, float((bias / size).pow(4).mean())
    if abs(mean) > min(_SIGMAS / math.sqrt(n), 1 - _KEPT):
        return f"numbers with mean {mean:.2g} of their size"
    if n >= 64 and (fourth < 1.4 or fourth > 3 + _SIGMAS * math.sqrt(96 / n)):  # uniform numbers have 1.8
        return f"numbers with a fourth moment of {fourth:.2g} instead of 3"
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
