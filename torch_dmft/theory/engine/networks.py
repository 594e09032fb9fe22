"""Ordinary torch networks of a problem's architecture, at any width."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch

from torch_dmft.architecture import Role, describe
from torch_dmft.architecture.widen import NORMS, materialise, widened
from torch_dmft.parameterization import ParameterRule, Plan, mean_field, parameter_rules
from torch_dmft.theory.coverage import refuse_unwidenable
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.replicas import replica_generators

_MATRICES = (Role.INPUT, Role.HIDDEN)
_READOUT = (Role.READOUT, Role.OUTPUT_BIAS)


def network_of(problem: Problem, width: int) -> Plan:
    """The problem's network as a plain module with ``width`` neurons in the last hidden layer, its weights not yet drawn.

    Gains, initial biases and frozen parameters are those of the problem; ``initialise`` draws the weights.

    Args:
        problem: a chain is built anew, any other network is copied at the new width.
        width: N_L; the plan's ``width`` tells what became of it behind a flattened feature map.

    Raises:
        UnsupportedModelError: if the model cannot be built at another width, with every place named.
    """
    if problem.chain is not None:
        with torch.device("meta"):
            model = problem.chain.build(width)
        gains = {str(2 * index): layer.gain for index, layer in enumerate(problem.chain.hidden)}
        biases = {str(2 * index): layer.bias_std or 0.0 for index, layer in enumerate(problem.chain.hidden)}
        frozen: set[str] = set()
    else:
        assert problem.network is not None  # a problem without a chain has a network
        shown = problem.network
        refuse_unwidenable(shown.model)
        model = widened(shown.model, shown.architecture, width)  # type: ignore[assignment]
        gains = {rule.path: rule.gain for rule in shown.rules if rule.role in _MATRICES}
        biases = {rule.path: rule.std for rule in shown.rules if rule.role is Role.VECTOR}
        frozen = {name for name, parameter in shown.model.named_parameters() if not parameter.requires_grad}
    materialise(model, problem.inputs)
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    model.train()
    shown_at = None if problem.network is None else problem.network.architecture
    architecture = describe(model, problem.inputs[:2], like=shown_at)
    found = parameter_rules(architecture, model, gamma0=problem.gamma0)
    norms = {vector.name for vector in architecture.vectors}

    def scaled(rule: ParameterRule) -> ParameterRule:
        if rule.role in _MATRICES:
            gain = gains[rule.path]
            scaling = mean_field(
                rule.role, fan_in=rule.fan_in, width=architecture.width, gamma0=problem.gamma0, gain=gain
            )
            assert scaling.std is not None
            return replace(rule, gain=gain, std=scaling.std, lr=scaling.lr if rule.lr else 0.0)
        if rule.role is Role.VECTOR and rule.name not in norms:
            return replace(rule, std=biases[rule.path])
        return rule

    rules = tuple(scaled(rule) for rule in found)
    return Plan(model, architecture, rules, scheme="mean_field", gamma0=problem.gamma0)


@torch.no_grad()
def initialise(plan: Plan, generator: torch.Generator) -> None:
    """Draw all parameters anew, in place: weights and biases from N(0, std^2), norm layers as torch starts them."""
    for module in plan.model.modules():
        if isinstance(module, NORMS):
            module.reset_parameters()
    norms = {vector.name for vector in plan.architecture.vectors}
    for rule in plan.rules:
        if rule.name in norms:
            continue
        parameter = plan.model.get_parameter(rule.name)
        drawn = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype, device=generator.device)
        parameter.copy_(drawn.mul_(rule.std))


@torch.no_grad()
def negate_readout(plan: Plan) -> None:
    """Turn f into -f, the antithetic network: as likely a draw as the network itself, and its f(0) cancels in the mean."""
    for rule in plan.rules:
        if rule.role in _READOUT:
            plan.model.get_parameter(rule.name).neg_()


def langevin_noise(
    problem: Problem, plan: Plan, generator: torch.Generator, *, negated: bool = False
) -> Callable[[], None] | None:
    """What adds the noise of one step to all parameters that are trained; None at temperature zero.

    A parameter with the learning rate lr_p gets sqrt(2 T lr_p) / (gamma0 sqrt N) N(0, 1), which is sqrt(2 T eta) in unit
    form. On an output bias it vanishes in the limit, as lr_p = eta has no factor N.

    Args:
        problem: T and eta.
        plan: the network.
        generator: where the noise's own source comes from: what is drawn next does not depend on the number of steps.
        negated: whether the readout's noise has the opposite sign, as that of an antithetic network.
    """
    if not problem.temperature:
        return None
    (own,) = replica_generators(generator, 1)

    @torch.no_grad()
    def kick() -> None:
        for rule in plan.rules:
            if rule.lr == 0:  # frozen
                continue
            parameter = plan.model.get_parameter(rule.name)
            drawn = torch.randn(parameter.shape, generator=own, dtype=parameter.dtype, device=own.device)
            size = math.sqrt(2 * problem.temperature * problem.lr * rule.lr / plan.width) / plan.gamma0
            parameter.add_(drawn.to(parameter.device), alpha=-size if negated and rule.role in _READOUT else size)

    return kick
