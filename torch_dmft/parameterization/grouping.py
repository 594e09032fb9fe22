"""Whether the optimizers that were built train what a plan says, at its rates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from statistics import median

from torch import nn
from torch.optim import Optimizer

from torch_dmft.architecture import Role
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.listed import listed
from torch_dmft.core.sight import kind_of
from torch_dmft.core.steppers import unwrapped
from torch_dmft.parameterization.muon import is_hidden_matrix, muon_rate
from torch_dmft.parameterization.rules import ParameterRule

_CLOSE = 1e-6
"""Relative difference of two base rates that are the same number."""


def check_optimizers(
    model: nn.Module, rules: Sequence[ParameterRule], optimizers: Iterable[Optimizer], scheme: str
) -> None:
    """Refuse optimizers that do not train a model as its plan says; see ``Plan.check_optimizers``."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    by_name = {rule.name: rule for rule in rules}
    steps: Counter[str] = Counter()
    wrong: list[str] = []
    for optimizer in map(unwrapped, optimizers):
        rates = {
            names[id(parameter)]: float(group["lr"])
            for group in optimizer.param_groups
            for parameter in group["params"]
            if id(parameter) in names
        }
        steps.update(names[id(p)] for group in optimizer.param_groups for p in group["params"] if id(p) in names)
        if is_muon(optimizer):
            wrong += [
                f"{name} is Muon's, but {_why(by_name[name], model)}" for name in _misplaced(rates, by_name, model)
            ]
        wrong += _off(rates, by_name, model, optimizer, scheme)
    trained = [rule.name for rule in rules if rule.lr]
    wrong += [f"no optimizer has {name}" for name in trained if not steps[name]]
    wrong += [f"{name} is stepped {count} times in a step" for name, count in steps.items() if count > 1]
    if wrong:
        raise InvalidInputError(
            "The optimizers must train every parameter once, at the plan's rates.",
            got=listed(wrong),
            remedy="build them from plan.param_groups(lr, optimizer=...), and change rates by a scheduler, all alike",
        )


def is_muon(optimizer: Optimizer) -> bool:
    """Whether an optimizer is Muon, torch's or another one's."""
    return any("muon" in kind.__name__.lower() for kind in type(optimizer).__mro__)


def _misplaced(held: Iterable[str], rules: dict[str, ParameterRule], model: nn.Module) -> list[str]:
    return [name for name in held if not is_hidden_matrix(rules[name], model)]


def _why(rule: ParameterRule, model: nn.Module) -> str:
    axes = model.get_parameter(rule.name).ndim
    return f"has {axes} axes" if rule.role is Role.HIDDEN else f"its role is {rule.role}"


def _off(
    rates: dict[str, float], rules: dict[str, ParameterRule], model: nn.Module, optimizer: Optimizer, scheme: str
) -> list[str]:
    """Parameters whose rate is not that of the plan at the base rate that the others of the optimizer have."""
    unit = _unit_of(optimizer, model, scheme)
    if unit is None:
        return []
    bases = {name: rate / unit(rules[name]) for name, rate in rates.items() if unit(rules[name])}
    usual = median(bases.values()) if bases else 0.0
    return [
        f"the rate of {name} is {base / usual:.3g} times the plan's" if usual else f"the rate of {name} is not 0"
        for name, base in bases.items()
        if abs(base - usual) > _CLOSE * abs(usual)
    ]


def _unit_of(optimizer: Optimizer, model: nn.Module, scheme: str) -> Callable[[ParameterRule], float] | None:
    """The rate of a parameter per unit of the base rate; None for an optimizer whose rates the plan does not know."""
    match kind_of(optimizer):
        case "SGD":
            return lambda rule: rule.lr
        case "Adam" | "AdamW":
            return lambda rule: rule.adam_lr
        case "Muon" if "adjust_lr_fn" in optimizer.defaults:

            def of_muon(rule: ParameterRule) -> float:
                parameter = model.get_parameter(rule.name)
                if not is_hidden_matrix(rule, model):
                    return 0.0
                adjust = next(
                    group["adjust_lr_fn"] or "original"
                    for group in optimizer.param_groups
                    if any(parameter is held for held in group["params"])
                )
                return muon_rate(rule, parameter.shape, adjust, scheme)

            return of_muon
    return None
