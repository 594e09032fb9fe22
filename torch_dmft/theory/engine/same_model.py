"""Whether a factory builds the model that was trained: held against the run's own model at the run's own width."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.listed import listed
from torch_dmft.core.multiplied import multiplied, multiply
from torch_dmft.core.training import DRAWN
from torch_dmft.core.undisturbed import undisturbed
from torch_dmft.parameterization import Plan
from torch_dmft.parameterization.plan import set_attributes
from torch_dmft.parameterization.rules import OWN_INIT
from torch_dmft.parameterization.start import shape_of, starts_of
from torch_dmft.theory.engine.built import Factory, built, start_of, wrapped_model
from torch_dmft.theory.network import outputs_of
from torch_dmft.theory.problem import Problem
from torch_dmft.uses.outputs import rows
from torch_dmft.uses.ownership import close

_SIGMAS = 6.0
"""Standard errors by which the sizes of two draws may differ."""
_WHAT = "The factory must build the model of the run."
_REMEDY = "the function that built the model which was wrapped, with the same settings"


def own_width(problem: Problem, factory: Factory, widths: Sequence[int]) -> int:
    """The width at which a factory builds the run's model, after it was held against that.

    Names and shapes of all parameters and buffers are those of the run; with the run's present weights the outputs on two rows
    are too; and what keeps its own start starts alike, as far as one draw of each tells.

    Args:
        problem: posed of a wrapped model.
        factory: builds the model.
        widths: widths that it takes.

    Raises:
        InvalidInputError: naming every difference by value.
    """
    plan = wrapped_model(problem)
    low, high = sorted(set(widths))[:: max(1, len(set(widths)) - 1)][:2]
    small, large = (_shapes(built(factory, width, plan, seed=0)) for width in (low, high))
    mine = _shapes(plan.model)
    _refuse([_other_names(mine, small)] if mine.keys() != small.keys() else [])
    width = _between(mine, (low, small), (high, large))
    model = built(factory, width, plan, seed=0)
    theirs = _shapes(model)
    _refuse(
        f"{name} of shape {tuple(mine[name])} in the run, {tuple(theirs[name])} in factory({width})"
        for name in mine
        if mine[name] != theirs[name]
    )
    kept = _kept(plan, model)
    grows = {name for name in mine if small[name] != large[name]}
    _refuse(
        said for name, value in kept.items() if name in grows and (said := _other_start(name, start_of(plan), value))
    )
    _require_same_function(problem, plan, model, width)
    return width


def require_same_starts(problem: Problem, made: Plan) -> None:
    """Refuse a network whose weights are as theory starts them where those of the run are not: a checkpoint that was loaded.

    Args:
        problem: of the run.
        made: a wrapped network of the factory, of the run's own width.

    Raises:
        InvalidInputError: naming the parameters and how they started.
    """
    theirs = starts_of(made, untrained=True)
    _refuse(
        f"{name} starts as {start} in the run, as the plan has it in the factory's"
        for name, start in problem.training.starts.items()
        if start not in DRAWN and name not in theirs
    )


def pair_of(widths: Sequence[int], factory: Factory, plan: Plan) -> tuple[int, int]:
    """Two widths that a factory takes: those given, or the one given and another."""
    some = sorted(set(widths))
    if len(some) > 1:
        return some[0], some[-1]
    (width,) = some
    shapes = _shapes(built(factory, width, plan, seed=0))
    failed: InvalidInputError | None = None
    for other in (2 * width, 4 * width, width // 2, width + 1):
        try:
            if other and _shapes(built(factory, other, plan, seed=0)) != shapes:
                return width, other
        except InvalidInputError as error:
            failed = error
    raise failed or InvalidInputError(
        "The factory must build the model at another width.",
        got=f"the same shapes at {width}, {2 * width} and {4 * width}",
        remedy="a function width -> model whose sizes depend on the width",
    )


def _refuse(differences: Sequence[str] | Iterator[str]) -> None:
    found = list(differences)
    if found:
        raise InvalidInputError(_WHAT, got=listed(found[:3]), remedy=_REMEDY)


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in (*model.named_parameters(), *model.named_buffers())}


def _other_names(mine: Mapping[str, object], theirs: Mapping[str, object]) -> str:
    here, there = (sorted(a.keys() - b.keys()) for a, b in ((mine, theirs), (theirs, mine)))
    parts = [f"only in the run: {listed(here)}"] * bool(here) + [f"only in the factory's: {listed(there)}"] * bool(
        there
    )
    return "; ".join(parts)


def _between(
    mine: Mapping[str, torch.Size],
    low: tuple[int, Mapping[str, torch.Size]],
    high: tuple[int, Mapping[str, torch.Size]],
) -> int:
    """The width of the run's model, by the sizes that grow, each linearly with the width."""
    for name, shape in mine.items():
        sizes = zip(shape, low[1][name], high[1][name], strict=False)
        for own, small, large in sizes:
            if small != large:
                return max(1, round(low[0] + (own - small) * (high[0] - low[0]) / (large - small)))
    raise InvalidInputError(
        "The factory must build the model at another width.",
        got=f"the same shapes at {low[0]} and {high[0]}",
        remedy="a function width -> model whose sizes depend on the width",
    )


def _kept(plan: Plan, model: nn.Module) -> dict[str, Tensor]:
    """What keeps its own start in a network of the factory."""
    keeps = plan.wrapping.init != "normal"
    names = {rule.name for rule in plan.rules if rule.role in OWN_INIT or rule.lr == 0 or keeps}
    parameters = {name: value for name, value in model.named_parameters() if name in names}
    return parameters | {name: value for name, value in model.named_buffers() if value.is_floating_point()}


def _other_start(name: str, start: Mapping[str, Tensor], theirs: Tensor) -> str | None:
    """In what the start of a parameter is another than the factory's, if it can be no other draw of the same numbers."""
    mine, theirs = start[name].detach().double(), theirs.detach().double()
    if torch.equal(mine, theirs.to(mine.device)):
        return None
    a, b = ((float(one.square().mean().sqrt()), one) for one in (mine, theirs))
    # The logarithm of a size scatters by sqrt((k - 1) / 4 n), k = <x^4> / <x^2>^2.
    scatter = [
        math.sqrt(max(float((one / (size or 1.0)).pow(4).mean()) - 1, 0.0) / (4 * one.numel())) for size, one in (a, b)
    ]
    if bool(a[0]) != bool(b[0]) or (a[0] and abs(math.log(a[0] / b[0])) > _SIGMAS * math.hypot(*scatter) + 1e-6):
        return f"{name} starts with numbers of size {a[0]:.3g} in the run, {b[0]:.3g} in the factory's"
    shapes = [shape_of(one) if one.ndim > 1 else None for _, one in (a, b)]
    if (shapes[0] is None) != (shapes[1] is None):
        said = [shape or "independent numbers" for shape in shapes]
        return f"{name} starts as {said[0]} in the run, as {said[1]} in the factory's"
    return None


@torch.no_grad()
def _require_same_function(problem: Problem, plan: Plan, model: nn.Module, width: int) -> None:
    """Refuse a network that with the run's weights computes something else."""
    model.load_state_dict(plan.model.state_dict())
    attributes = plan.architecture.attributes
    with undisturbed(model):
        # A model that was unwrapped has its own numbers again.
        numbers = [getattr(plan.model.get_submodule(one.path), one.name) for one in attributes]
        set_attributes(model, [one for one, number in zip(attributes, numbers, strict=True) if number == one.value])
        multiply(model, multiplied(plan.model))
        example = rows(problem.inputs, [0, 1])
        mine = outputs_of(plan, example, problem.selection)
        theirs = outputs_of(Plan(model, plan.architecture, plan.rules), example, problem.selection)
    if not close(mine, theirs):
        off = float((mine - theirs).norm() / mine.norm())
        _refuse([f"with the run's own weights the outputs of factory({width}) are off by {off:.1%}"])
