"""Course: the optimizer of a problem, applied to a model of its network with the settings of every step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from torch_dmft.core.errors import UnsupportedProblemError
from torch_dmft.core.sight import NUMBERS
from torch_dmft.core.torch_private import multiply_all_
from torch_dmft.core.training import Training
from torch_dmft.parameterization import ParameterRule, Plan
from torch_dmft.theory.network import Network
from torch_dmft.theory.problem import Problem

_CLASSES: dict[str, Any] = {"SGD": SGD, "Adam": Adam, "AdamW": AdamW}


class Course:
    """Takes the steps of a problem's training on a model.

    Parameters share a group if they have one multiplier and one set of numbers. Before every step the numbers of that step
    are written into the groups, in units of the model: lr_p = eta(t) m_p.

    Args:
        problem: what is trained and how.
        plan: a model of its network, of finite or infinite width, in which frozen parameters have the rate 0.
    """

    optimizer: Optimizer

    def __init__(self, problem: Problem, plan: Plan) -> None:
        training = problem.training
        self._training, self._decoupled = training, bool(training.number("decoupled"))
        groups: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._rules: list[tuple[dict[str, Any], ParameterRule, str | None]] = []
        for rule, name in named_rules(problem.network, plan):
            if rule.lr == 0:
                continue
            exception = name if name in training.exceptions else None
            key = (exception, rule.lr, rule.adam_lr, rule.gradient)
            if key not in groups:
                groups[key] = {"params": [], "name": str(rule.role)}
                self._rules.append((groups[key], rule, exception))
            groups[key]["params"].append(plan.model.get_parameter(rule.name))
        for group, rule, exception in self._rules:
            group.update(_settings(training, rule, exception, 0))
        self.optimizer = _CLASSES[training.optimizer]([group for group, _, _ in self._rules])
        # torch copies groups.
        self._rules = [
            (group, rule, exception)
            for group, (_, rule, exception) in zip(self.optimizer.param_groups, self._rules, strict=True)
        ]
        every = (training.numbers, *training.exceptions.values())
        self._changes = any(isinstance(value, Tensor) for numbers in every for value in numbers.values())

    def step(self, step: int) -> None:
        """Take the update of a step with the gradients that the parameters hold."""
        if self._changes:
            for group, rule, own in self._rules:
                group.update(_settings(self._training, rule, own, step))
        if self._decoupled:
            with torch.no_grad():
                for group, _, own in self._rules:
                    keep = 1 - self._training.at("lr", step, own) * self._training.at("weight_decay", step, own)
                    multiply_all_(group["params"], keep)
        self.optimizer.step()


def named_rules(network: Network, plan: Plan) -> Iterator[tuple[ParameterRule, str]]:
    """The parameter rules of a model of a network, each with the name that its parameter has in trainings.

    The parameters that an infinite layer trains instead of its weight go by the name of the weight.
    """
    names = network.names
    for rule in plan.rules:
        owner, dot, kind_in_model = rule.name.rpartition(".")
        path = names.get(owner, owner)
        kind = "weight" if kind_in_model in ("core", "initial_scale") else kind_in_model
        yield rule, f"{path}{dot if path else ''}{kind}"


def require_optimizer(training: Training) -> None:
    """Refuse a training that networks cannot repeat.

    Raises:
        UnsupportedProblemError: naming the optimizer and what else is not known of it.
    """
    if training.optimizer not in _CLASSES:
        raise UnsupportedProblemError(
            "The optimizer must be one that solvers know.",
            got=training.optimizer,
            remedy=f"train with one of {', '.join(f'torch.optim.{name}' for name in NUMBERS)}; measuring goes on with any",
        )
    if any(training.number("maximize", name) for name in (None, *training.exceptions)):
        raise UnsupportedProblemError(
            "`maximize` must be False: the theory minimises the loss.",
            got="maximize=True",
            remedy="minimise minus the objective",
        )


def _settings(training: Training, rule: ParameterRule, name: str | None, step: int) -> dict[str, Any]:
    """A group's settings in a step."""
    at = min(step, training.steps - 1)

    def number(setting: str) -> float:
        return training.at(setting, at, name) if training.steps else 0.0

    if training.optimizer == "SGD":
        decay = 0.0 if number("decoupled") else number("weight_decay") * rule.decay
        return {
            "lr": number("lr") * rule.lr,
            "momentum": number("momentum"),
            "dampening": number("dampening"),
            "nesterov": bool(number("nesterov")),
            "weight_decay": decay,
        }
    decay = rule.adamw_decay if training.optimizer == "AdamW" else rule.decay
    return {
        "lr": number("lr") * rule.adam_lr,
        "betas": (number("beta1"), number("beta2")),
        "eps": number("eps") * rule.gradient,
        "weight_decay": number("weight_decay") * decay,
        "amsgrad": bool(number("amsgrad")),
    }
