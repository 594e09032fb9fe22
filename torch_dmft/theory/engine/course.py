"""Course: the optimizers of a problem, applied to a model of its network with the settings of every step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from torch_dmft.core.errors import UnsupportedProblemError
from torch_dmft.core.muon import step_norm
from torch_dmft.core.sight import NUMBERS
from torch_dmft.core.torch_private import multiply_all_
from torch_dmft.core.training import Training
from torch_dmft.parameterization import ParameterRule, Plan
from torch_dmft.theory.engine.lazy_layer import LazyLayer
from torch_dmft.theory.engine.muon import Muon
from torch_dmft.theory.network import Network
from torch_dmft.theory.problem import Problem

_CLASSES: dict[str, Any] = {"SGD": SGD, "Adam": Adam, "AdamW": AdamW, "Muon": Muon}

_LEAST = torch.finfo(torch.float32).tiny ** 0.5
"""The least eps of Adam, a gradient whose square is the smallest number there is: gradients of zero make no step, and no NaN.
Those of the number that scales a start always are, and in single precision those of a few entries in many millions."""


@dataclass(frozen=True, eq=False)
class _Kin:
    """Parameters of one group: alike in all that decides their steps.

    Attributes:
        kind: their optimizer.
        rule: the rule of one of them.
        exception: the name in trainings of the one that has numbers of its own.
        shape: of the weight, whole also where what is trained is its core.
        is_core: whether it is known on bases only.
    """

    kind: str
    rule: ParameterRule
    exception: str | None
    shape: tuple[int, ...]
    is_core: bool


class Course:
    """Takes the steps of a problem's training on a model.

    Parameters share a group if they have one optimizer, one multiplier and one set of numbers. Before every step the numbers of
    that step are written into the groups, in units of the model: lr_p = eta(t) m_p.

    Args:
        problem: what is trained and how.
        plan: a model of its network, of finite or infinite width, in which frozen parameters have the rate 0.

    Attributes:
        optimizers: one of every kind.
    """

    optimizers: list[Optimizer]

    def __init__(self, problem: Problem, plan: Plan) -> None:
        self._training = training = problem.training
        groups: dict[tuple[Any, ...], tuple[_Kin, list[Tensor]]] = {}
        for rule, name in named_rules(problem.network, plan):
            if rule.lr == 0:
                continue
            kin = _kin(training, plan, rule, name)
            key: tuple[Any, ...] = (kin.kind, kin.exception, rule.lr, rule.adam_lr, rule.gradient)
            key = (*key, kin.is_core, *([kin.shape] if kin.kind == "Muon" else []))
            groups.setdefault(key, (kin, []))[1].append(plan.model.get_parameter(rule.name))
        self.optimizers, self._groups = [], []
        for kind in dict.fromkeys(kin.kind for kin, _ in groups.values()):
            kins = [(kin, parameters) for kin, parameters in groups.values() if kin.kind == kind]
            own = [
                {"params": parameters, "name": str(kin.rule.role), **_settings(training, kin, 0)}
                for kin, parameters in kins
            ]
            optimizer = _CLASSES[kind](own)
            self.optimizers.append(optimizer)
            self._groups += [(group, kin) for group, (kin, _) in zip(optimizer.param_groups, kins, strict=True)]
        every = (training.numbers, *training.exceptions.values())
        self._changes = any(isinstance(value, Tensor) for numbers in every for value in numbers.values())

    def step(self, step: int) -> None:
        """Take the update of a step with the gradients that the parameters hold."""
        training = self._training
        for group, kin in self._groups:
            if self._changes:
                group.update(_settings(training, kin, step))
            if kin.kind == "SGD" and training.number("decoupled", kin.exception):
                keep = 1 - training.at("lr", step, kin.exception) * training.at("weight_decay", step, kin.exception)
                with torch.no_grad():
                    multiply_all_(group["params"], keep)
        for optimizer in self.optimizers:
            optimizer.step()


def _kin(training: Training, plan: Plan, rule: ParameterRule, name: str) -> _Kin:
    owner, _, kind = rule.name.rpartition(".")
    layer = plan.model.get_submodule(owner)
    is_core = isinstance(layer, LazyLayer) and kind in ("core", "initial_scale")
    shape = (
        layer.sizes if isinstance(layer, LazyLayer) and is_core else tuple(plan.model.get_parameter(rule.name).shape)
    )
    return _Kin(training.kind(name), rule, name if name in training.exceptions else None, shape, is_core)


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
    if not {training.optimizer, *training.kinds.values()} <= _CLASSES.keys():
        raise UnsupportedProblemError(
            "The optimizer must be one that solvers know.",
            got=training.optimizers,
            remedy=f"train with one of {', '.join(f'torch.optim.{name}' for name in NUMBERS)}; measuring goes on with any",
        )
    if any(training.number("maximize", name) for name in (None, *training.exceptions)):
        raise UnsupportedProblemError(
            "`maximize` must be False: the theory minimises the loss.",
            got="maximize=True",
            remedy="minimise minus the objective",
        )


def _settings(training: Training, kin: _Kin, step: int) -> dict[str, Any]:
    """A group's settings in a step."""
    rule, at = kin.rule, min(step, training.steps - 1)

    def number(setting: str) -> float:
        return training.at(setting, at, kin.exception) if training.steps else 0.0

    match kin.kind:
        case "SGD":
            return {
                "lr": number("lr") * rule.lr,
                "momentum": number("momentum"),
                "dampening": number("dampening"),
                "nesterov": bool(number("nesterov")),
                "weight_decay": 0.0 if number("decoupled") else number("weight_decay") * rule.decay,
            }
        case "Muon":
            return {
                "lr": number("lr") * step_norm(rule.adam_lr, kin.shape),
                "decay": number("lr") * number("weight_decay"),
                "momentum": number("momentum"),
                "nesterov": bool(number("nesterov")),
                "ns_coefficients": tuple(number(f"ns_{letter}") for letter in "abc"),
                "ns_steps": int(number("ns_steps")),
                "eps": number("eps"),
                "exact": bool(number("exact")),
                "low": not kin.is_core,
            }
    return {
        "lr": number("lr") * rule.adam_lr,
        "betas": (number("beta1"), number("beta2")),
        "eps": max(number("eps") * rule.gradient, _LEAST),
        "weight_decay": number("weight_decay") * (rule.adamw_decay if kin.kind == "AdamW" else rule.decay),
        "amsgrad": bool(number("amsgrad")),
        "fused": kin.is_core,  # a single pass, over gradients that lie in memory as the core does
    }
