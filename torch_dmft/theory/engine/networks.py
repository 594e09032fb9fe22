"""Ordinary torch networks of a problem's architecture, at any width."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from torch_dmft.architecture import Role, describe
from torch_dmft.architecture.widen import NORMS, materialise
from torch_dmft.core.multiplied import multiply
from torch_dmft.measurement import Recorder
from torch_dmft.measurement.gradients import Layouts
from torch_dmft.parameterization import ParameterRule, Plan, in_streams, mean_field, parameter_rules
from torch_dmft.parameterization.plan import multipliers_of
from torch_dmft.parameterization.rules import behind_ties, with_multipliers
from torch_dmft.parameterization.uniform import UNIFORM, uniform_like
from torch_dmft.theory.engine.course import named_rules
from torch_dmft.theory.engine.matched_start import matchable
from torch_dmft.theory.engine.training import View, own_view
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.replicas import replica_generators
from torch_dmft.theory.tables import without_padding

_MATRICES = (Role.INPUT, Role.HIDDEN)
_READOUT = (Role.READOUT, Role.OUTPUT_BIAS)


@runtime_checkable
class Networks(Protocol):
    """Independent networks of one width.

    Attributes:
        problem: what they are trained on.
        width: N, the fan-in of the readout.
        is_symmetric: whether a network with the opposite readout is as likely.
    """

    problem: Problem
    width: int
    is_symmetric: bool

    def draw(self, generator: torch.Generator) -> Plan:
        """A network at its start; it may be the module of the draw before, drawn anew."""

    def matchable(self) -> tuple[bool, ...]:
        """The populations whose initial moments can be matched, see ``matched_start``."""

    def view(self, problem: Problem, recorder: Recorder) -> View:
        """How a network is looked at while it is trained."""


class Widened:
    """Networks of a problem that is widened by itself."""

    _alike: dict[str, Layouts]

    def __init__(self, problem: Problem, width: int) -> None:
        self.problem = problem
        self._plan, self._alike = network_of(problem, width), {}
        self.width = self._plan.width
        # The opposite of a tied readout is an embedding with opposite rows, of which f is no odd function.
        self.is_symmetric = self._plan.architecture.readout.multiplier is None

    def draw(self, generator: torch.Generator) -> Plan:
        """The same module with weights drawn anew."""
        initialise(self._plan, generator, starts_in(self.problem, self._plan))
        return self._plan

    def matchable(self) -> tuple[bool, ...]:
        """Of this width."""
        return matchable(self._plan)

    def view(self, problem: Problem, recorder: Recorder) -> View:
        """The cheapest one."""
        return own_view(problem, recorder, self._alike)


def network_of(problem: Problem, width: int) -> Plan:
    """The problem's network as a plain module with ``width`` neurons in the last hidden layer, its weights not yet drawn.

    Gains, initial biases and frozen parameters are those of the problem; ``initialise`` draws the weights.

    Args:
        problem: a chain is built anew, any other network is copied at the new width.
        width: N_L; the plan's ``width`` tells what became of it behind a flattened feature map.

    Raises:
        UnsupportedModelError: if the model cannot be built at another width, with every place named.
    """
    network = problem.network
    network.require_widenable()
    model = network.build(width)
    gains, biases, own = network.gains, network.bias_stds, network.row_stds
    materialise(model, problem.zeros(0), own)
    model.train()
    architecture = describe(model, problem.tensor[:2], like=network.shown)
    drift: Mapping[str, float] = {}
    if network.shown is not None:
        held = network.shown.folded_at(architecture.width / network.shown.width)
        drift = {name: factor / network.shown.factors[name] for name, factor in held.factors.items()}
        architecture = replace(architecture.holding(held), streams=held.streams, groups=held.groups)
    factors = architecture.factors
    unscaled = parameter_rules(architecture, model, gamma0=problem.gamma0, depth=network.depth)
    vectors = {vector.name for vector in architecture.vectors}

    def scaled(rule: ParameterRule) -> ParameterRule:
        if rule.role in _MATRICES:
            gain = gains[rule.path]
            scaling = mean_field(
                rule.role,
                fan_in=rule.fan_in,
                width=architecture.width,
                gamma0=problem.gamma0,
                gain=gain,
                fold=factors.get(rule.name, 1.0),
            )
            scaling = in_streams(scaling, rule.name, architecture, network.depth)
            assert scaling.std is not None
            return replace(rule, gain=gain, std=scaling.std, lr=scaling.lr if rule.lr else 0.0)
        if rule.role is Role.EMBEDDING:
            gain, lives = gains[rule.path], rule.lr > 0
            fold = factors.get(rule.name, 1.0)
            scaling = mean_field(
                rule.role, fan_in=1, width=architecture.width, gamma0=problem.gamma0, gain=gain, fold=fold
            )
            scaling = in_streams(scaling, rule.name, architecture, network.depth)
            rates = lives * scaling.lr, lives * scaling.adam_lr
            std = own[rule.name] * drift.get(rule.name, 1.0)
            return replace(rule, gain=gain, std=std, lr=rates[0], adam_lr=rates[1])
        if rule.name in own:
            return replace(rule, std=own[rule.name] * drift.get(rule.name, 1.0))
        if rule.role is Role.VECTOR and rule.name not in vectors:
            return replace(rule, std=biases[rule.path] * drift.get(rule.name, 1.0))
        return rule

    rules = behind_ties(map(scaled, unscaled), architecture, problem.gamma0)
    architecture = with_multipliers(architecture, rules, problem.gamma0)
    multiply(model, multipliers_of(architecture))
    plan = Plan(model, architecture, rules, scheme="mean_field", gamma0=problem.gamma0, depth=network.depth)
    return frozen_as(problem, plan)


def frozen_as(problem: Problem, plan: Plan) -> Plan:
    """A model of a problem's network, with the parameters frozen that the problem does not train."""
    frozen = {rule.name for rule, name in named_rules(problem.network, plan) if name in problem.training.frozen}
    for rule in plan.rules:  # the model that it is made of may have been frozen, or thawed, since it was trained
        plan.model.get_parameter(rule.name).requires_grad_(rule.name not in frozen)
    plan.rules = tuple(replace(rule, lr=0.0, adam_lr=0.0) if rule.name in frozen else rule for rule in plan.rules)
    return plan


def starts_in(problem: Problem, plan: Plan) -> dict[str, str]:
    """How the parameters of a model of a problem's network start that are not Gaussian, by the names they have in the model."""
    starts = problem.training.starts
    return {rule.name: starts[name] for rule, name in named_rules(problem.network, plan) if name in starts}


def zero_starts(problem: Problem, plan: Plan) -> frozenset[str]:
    """Those of them that start at zero."""
    return frozenset(name for name, start in starts_in(problem, plan).items() if start == "zero")


@torch.no_grad()
def initialise(plan: Plan, generator: torch.Generator, starts: Mapping[str, str] = MappingProxyType({})) -> None:
    """Draw all parameters anew, in place: weights and biases from N(0, std^2), norm layers as torch starts them.

    Args:
        plan: the network.
        generator: where they are drawn from.
        starts: names of parameters that start at zero instead, or as uniform numbers of that variance; as many numbers are
            drawn for them.
    """
    for module in plan.model.modules():
        if isinstance(module, NORMS):
            module.reset_parameters()
    vectors = {one.name: one for one in plan.architecture.vectors if one.place is None or one.start is not None}
    for rule in plan.rules:
        parameter = plan.model.get_parameter(rule.name)
        if rule.name in vectors:
            scale = vectors[rule.name].start
            if scale is not None:
                parameter.fill_(scale)
            parameter.mul_(rule.start)
            continue
        start, here = starts.get(rule.name), parameter.device == generator.device and parameter.is_contiguous()
        if start is None and here and not isinstance(plan.model.get_submodule(rule.path), nn.Embedding):
            parameter.normal_(generator=generator).mul_(rule.std)
            continue
        drawn = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype, device=generator.device)
        drawn = uniform_like(drawn) if start == UNIFORM else drawn
        drawn.mul_(0.0 if start == "zero" else rule.std)
        owner = plan.model.get_submodule(rule.path)
        parameter.copy_(without_padding(drawn, owner) if isinstance(owner, nn.Embedding) else drawn)


@torch.no_grad()
def negate_readout(plan: Plan) -> None:
    """Turn f into -f, the antithetic network: it is equally likely, and f(0) cancels in the mean of both."""
    for rule in plan.rules:
        if rule.role in _READOUT:
            plan.model.get_parameter(rule.name).neg_()


def langevin_noise(
    problem: Problem, plan: Plan, generator: torch.Generator, *, negated: bool = False
) -> Callable[[int], None] | None:
    """A function that adds the noise of one step to all trained parameters; None at temperature zero.

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
    (noise_generator,) = replica_generators(generator, 1)

    @torch.no_grad()
    def kick(step: int) -> None:
        lr = problem.training.at("lr", step)
        for rule in plan.rules:
            if rule.lr == 0:  # frozen
                continue
            parameter = plan.model.get_parameter(rule.name)
            drawn = torch.randn(
                parameter.shape, generator=noise_generator, dtype=parameter.dtype, device=noise_generator.device
            )
            size = math.sqrt(2 * problem.temperature * lr * rule.lr / plan.width) / plan.gamma0
            parameter.add_(drawn.to(parameter.device), alpha=-size if negated and rule.role in _READOUT else size)

    return kick
