"""Parameter groups: what an optimizer of torch.optim needs to train with a plan's learning rates."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.numbers import require_number
from torch_dmft.parameterization.rules import ParameterRule

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW}
"""Classes of optimizers, by the name that ``Plan.param_groups`` takes."""


def param_groups(
    model: nn.Module,
    rules: Iterable[ParameterRule],
    lr: float,
    optimizer: str,
    weight_decay: float,
    eps: float,
) -> list[dict[str, Any]]:
    """Group a model's trained parameters by equal settings; see ``Plan.param_groups``."""
    if optimizer not in OPTIMIZERS:
        raise InvalidInputError(
            "`optimizer` must be one whose rates can be scaled with the width.",
            got=repr(optimizer),
            remedy='"sgd" (with or without momentum), "adam" (also for NAdam, RAdam, Adamax) or "adamw"',
        )
    for name, value in (("lr", lr), ("weight_decay", weight_decay), ("eps", eps)):
        require_number(name, value, at_least=0)
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for rule in rules:
        if rule.lr == 0:
            continue
        settings = {
            "lr": lr * (rule.lr if optimizer == "sgd" else rule.adam_lr),
            "weight_decay": weight_decay * (rule.adamw_decay if optimizer == "adamw" else rule.decay),
        }
        if optimizer != "sgd":
            settings["eps"] = eps * rule.gradient
        key = (rule.role, rule.fan_in, rule.part, *settings.values())
        name = f"{rule.role}, fan-in {rule.fan_in}" if rule.fan_in > 1 else str(rule.role)
        name = f"{name}, {rule.part}" if rule.part else name
        group = groups.setdefault(key, {"name": name, "params": [], **settings})
        group["params"].append(model.get_parameter(rule.name))
    return list(groups.values())
