"""Parameter groups: what an optimizer of torch.optim needs to train with a plan's learning rates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.numbers import require_number
from torch_dmft.parameterization.rules import ParameterRule

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW}
"""Classes of optimizers that train all parameters, by the name that ``Plan.param_groups`` takes."""

NAMES = (*OPTIMIZERS, "muon")
"""All names that ``Plan.param_groups`` takes; "muon" stands for Muon beside AdamW."""


def param_groups(
    model: nn.Module,
    rules: Iterable[ParameterRule],
    lr: float,
    optimizer: str,
    weight_decay: float,
    eps: float,
) -> list[dict[str, Any]]:
    """Group a model's trained parameters by equal settings for one optimizer of all; see ``Plan.param_groups``."""
    if optimizer not in OPTIMIZERS:
        raise InvalidInputError(
            "`optimizer` must be one whose rates can be scaled with the width.",
            got=repr(optimizer),
            remedy='"sgd" (with or without momentum), "adam" (also for NAdam, RAdam, Adamax), "adamw" or "muon"',
        )
    for name, value in (("lr", lr), ("weight_decay", weight_decay), ("eps", eps)):
        require_number(name, value, at_least=0)

    def settings(rule: ParameterRule) -> dict[str, Any]:
        by_rule = {
            "lr": lr * (rule.lr if optimizer == "sgd" else rule.adam_lr),
            "weight_decay": weight_decay * (rule.adamw_decay if optimizer == "adamw" else rule.decay),
        }
        return by_rule if optimizer == "sgd" else {**by_rule, "eps": eps * rule.gradient}

    return grouped(model, rules, settings)


def grouped(
    model: nn.Module, rules: Iterable[ParameterRule], settings: Callable[[ParameterRule], Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The trained parameters in groups of one role, fan-in, place in a stream, and settings.

    Args:
        model: that has them.
        rules: of those that are grouped; frozen ones are left out.
        settings: of a rule, without ``name`` and ``params``.
    """
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for rule in rules:
        if rule.lr == 0:
            continue
        of_rule = settings(rule)
        key = (rule.role, rule.fan_in, rule.part, *of_rule.values())
        name = f"{rule.role}, fan-in {rule.fan_in}" if rule.fan_in > 1 else str(rule.role)
        name = f"{name}, {rule.part}" if rule.part else name
        group = groups.setdefault(key, {"name": name, "params": [], **of_rule})
        group["params"].append(model.get_parameter(rule.name))
    return list(groups.values())
