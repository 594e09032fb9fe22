r"""First gradients that vanish at infinite width only, of which Adam makes steps of the full rate, up or down by chance.

f(0) is zero in the limit, so that the first gradient of a parameter that moves f alike on all rows,

.. math:: \frac{\partial \mathcal{L}}{\partial b_i} = - w_i \sum_\mu \Delta_\mu ,

is a sum of targets, and vanishes where these balance: that of a bias of the readout, of the shift of a norm or a bias from
which the way to the outputs is linear, of a token that balanced rows have in one place. In a network of width N it is of order
1/sqrt(N) and of either sign, and Adam divides by its size. A twin, whose f(0) is zero, would make no step.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from torch_dmft.architecture import Role
from torch_dmft.core.errors import UnsupportedProblemError
from torch_dmft.core.listed import listed
from torch_dmft.parameterization import Plan
from torch_dmft.theory.engine.course import named_rules
from torch_dmft.theory.engine.posed import rotated, twin_of
from torch_dmft.theory.problem import Problem
from torch_dmft.uses.outputs import Runs, output_rows

_ALONE = (Role.OUTPUT_BIAS, Role.OUTER)
"""Roles of parameters whose entries belong to single outputs."""
_NEURONS = 64
"""Of the twin that is looked at: what vanishes does so at every size."""
_ROWS = 256
"""Rows of a pass."""
_ROUNDING = 30
"""Units of rounding, in units of the gradient of error signals of one sign, within which one is zero."""
_LEAST = 8
"""Entries of a line, of which a few are zero by coincidence."""


def require_unbalanced(problem: Problem) -> None:
    """Refuse a training by Adam whose first step has no limit.

    Raises:
        UnsupportedProblemError: naming the parameters that are moved by chance.
    """
    found = _by_chance(problem) if "adam" in problem.training.traits and problem.steps else []
    if found:
        raise UnsupportedProblemError(
            "The first step of Adam must have a limit: gradients that vanish in the limit alone, as targets balance, make "
            "steps of the full rate in networks, up or down by chance.",
            got=f"a first gradient of zero of {listed(found)}",
            remedy="solvers.WideEnsemble(), which averages over both signs; or bias=False there, or SGD",
        )


def _by_chance(problem: Problem) -> list[str]:
    """The names of the parameters whose first gradient vanishes in the limit alone."""
    training = problem.training
    first = next((step for step in range(problem.steps) if training.at("lr", step) > 0), 0)
    posed, generator = rotated(problem), torch.Generator(problem.device).manual_seed(0)
    twin = twin_of(posed, _NEURONS, tolerance=0.01, generator=generator, law="network", responses=True)
    rules = [
        (rule, name)
        for rule, name in named_rules(problem.network, twin)
        if rule.lr and training.kind(name) in ("Adam", "AdamW") and not rule.name.endswith("initial_scale")
    ]
    parameters, model = [twin.model.get_parameter(rule.name) for rule, _ in rules], Runs(twin.model, problem.selection)
    rows = problem.rows_of(first)
    error = problem.error_on(torch.cat([_start(twin, model, posed.tensor[some]) for some in rows.split(_ROWS)]), rows)
    other = error.abs() * (0.5 + torch.rand(len(rows), 1, generator=generator, dtype=error.dtype, device=error.device))
    balanced, usual = ([torch.zeros_like(parameter) for parameter in parameters] for _ in range(2))
    for some, *errors in zip(rows.split(_ROWS), error.split(_ROWS), other.split(_ROWS), strict=True):
        outputs = output_rows(model(posed.tensor[some]), len(some))
        for sums, signal in zip((balanced, usual), errors, strict=True):
            found = torch.autograd.grad(outputs, parameters, signal, retain_graph=True, allow_unused=True)
            for total, part in zip(sums, found, strict=True):
                total += 0.0 if part is None else part
    return [
        name
        for (rule, name), mine, others in zip(rules, balanced, usual, strict=True)
        if _vanishes(mine, others, alone=rule.role in _ALONE)
    ]


@torch.no_grad()
def _start(twin: Plan, model: Runs, inputs: Tensor) -> Tensor:
    """f(0) in the limit: ``(row, output)``, what the twin puts out where its readout is zero."""
    readouts = [twin.model.get_parameter(rule.name) for rule in twin.rules if rule.role is Role.READOUT]
    model(inputs)  # draws the readout
    kept = [readout.clone() for readout in readouts]
    for readout in readouts:
        readout.zero_()
    outputs = output_rows(model(inputs), len(inputs)).clone()
    for readout, value in zip(readouts, kept, strict=True):
        readout.copy_(value)
    return outputs


def _vanishes(balanced: Tensor, usual: Tensor, *, alone: bool) -> bool:
    """Whether a gradient is zero, up to rounding, along a line of a parameter where another one is not, or in one entry."""
    known = usual != 0  # elsewhere it is zero at every width: a token that is not met, a unit that rests
    zero = known & (balanced.abs() <= _ROUNDING * torch.finfo(usual.dtype).eps * usual.abs())
    if alone or not zero.ndim:
        return bool(zero.any())
    return any(bool(((2 * few > many) & (many >= _LEAST)).any()) for few, many in _counted(zero, known))


def _counted(zero: Tensor, known: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Numbers of entries along every line of the first and of the last axis."""
    for axis in {0, zero.ndim - 1}:
        yield tuple(each.movedim(axis, -1).reshape(-1, each.shape[axis]).sum(-1) for each in (zero, known))  # type: ignore[misc]
