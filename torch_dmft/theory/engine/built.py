"""Networks that the user's factory builds: wrapped, started and trained as the run was, at any width.

What has a width axis is drawn anew in every network: by the plan what it draws, and by the factory what keeps its own start
(embeddings, biases, gains, frozen weights). What has none and is kept, such as a fixed matrix of features of the data or the
slope of a PReLU, belongs to the problem as the data do: it has the values of the run in every network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from torch_dmft.architecture import Architecture
from torch_dmft.core.errors import InvalidInputError, UnsupportedModelError
from torch_dmft.core.listed import listed
from torch_dmft.core.random_state import random_state_kept
from torch_dmft.measurement import Recorder, Snapshot
from torch_dmft.parameterization import Plan
from torch_dmft.parameterization.apply import scaled
from torch_dmft.parameterization.rules import OWN_INIT
from torch_dmft.theory.engine.matched_start import matchable
from torch_dmft.theory.engine.networks import frozen_as, zero_starts
from torch_dmft.theory.engine.training import Looked, View, own_view
from torch_dmft.theory.network import ModelNetwork
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.replicas import replica_generators
from torch_dmft.uses import describe
from torch_dmft.uses.outputs import Example, rows

Factory = Callable[[int], nn.Module]
"""Builds the model at a width, which is whatever number the factory takes for it."""


class Built:
    """Networks of a problem that a factory builds at one width.

    Args:
        problem: what they are trained on; posed of a wrapped model.
        factory: builds the model.
        width: what it is given.
        other: another width that it takes, with which the first is compared to find roles.
        generator: its state decides the networks; it is not moved.

    Attributes:
        problem: the problem, whose network is the wrapped model.
        width: N, the fan-in of the readout.
        is_symmetric: whether the plan draws the readout, and draws it for nothing else.

    Raises:
        UnsupportedModelError: if training is random.
        InvalidInputError: if the factory fails, or its network has other roles than the run's.
    """

    def __init__(
        self, problem: Problem, factory: Factory, width: int, *, other: int, generator: torch.Generator
    ) -> None:
        plan = wrapped_model(problem)
        example = rows(problem.inputs, [0, 1])
        network = ModelNetwork(plan, example, problem.selection, problem.outputs, problem.network.batch_norm)
        self.problem = replace(problem, network=network)
        self._plan, self._factory, self._argument = plan, factory, width
        self._looks: list[Snapshot] = []
        copy = torch.Generator(generator.device)
        copy.set_state(generator.get_state())
        (self._seeds,) = replica_generators(copy, 1)
        model, second = (built(factory, size, plan, seed=0) for size in (width, other))
        self._architecture = _architecture(plan, model, second, example)
        self._shared = shared_start(plan, model, second)
        drawn = self._wrapped(model, torch.Generator().manual_seed(0))
        _require_alike(plan, drawn, width)
        self.width = drawn.width
        readouts = {rule.name for rule in drawn.rules if rule.role == "readout"}
        is_kept = plan.wrapping.init != "normal" or any(rule.lr == 0 for rule in plan.rules if rule.name in readouts)
        self.is_symmetric = bool(readouts) and not is_kept  # a tied readout makes features as well
        is_drawn = not is_kept and all(rule.lr for rule in plan.rules)
        self._matchable = matchable(drawn) if self._architecture.is_traced and is_drawn else ()

    def draw(self, generator: torch.Generator) -> Plan:
        """A network, built anew; what the plan draws is drawn from the generator."""
        seed = int(torch.randint(2**62, (1,), generator=self._seeds, device=self._seeds.device))
        return self._wrapped(built(self._factory, self._argument, self._plan, seed), generator)

    def matchable(self) -> tuple[bool, ...]:
        """Of this width; () where populations of neurons are not known, or weights are kept."""
        return self._matchable

    def view(self, problem: Problem, recorder: Recorder) -> View:
        """That of the recorder, as at any module, but for a dense chain."""
        is_chain = recorder.subject.is_chain and isinstance(problem.inputs, Tensor)
        return own_view(problem, recorder) if is_chain else Looked(problem, recorder, self._looks)

    def _wrapped(self, model: nn.Module, generator: torch.Generator) -> Plan:
        plan, problem = self._plan, self.problem
        for rule in plan.rules:
            # What was frozen when the plan was made is kept, and nothing else, whatever the factory freezes.
            model.get_parameter(rule.name).requires_grad_(rule.lr > 0)
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        with torch.no_grad():
            for name, value in self._shared.items():
                tensors[name].copy_(value)
        made = scaled(
            model,
            self._architecture,
            plan.wrapping,
            gamma0=problem.gamma0,
            scheme="mean_field",
            generator=generator,
        )
        frozen_as(problem, made)
        with torch.no_grad():
            for name in zero_starts(problem, made):
                model.get_parameter(name).zero_()
        model.train()
        return made


def wrapped_model(problem: Problem) -> Plan:
    """The wrapped model that a problem was posed of.

    Raises:
        InvalidInputError: if there is none.
    """
    if problem.network.plan is None:
        raise InvalidInputError(
            "A factory builds the networks of a wrapped model.",
            got="a problem without one (Problem.mlp)",
            remedy="recorder.problem() or Problem.like(plan, probe, ...); or no factory, as a chain is widened by itself",
        )
    return problem.network.plan


def built(factory: Factory, width: int, plan: Plan, seed: int) -> nn.Module:
    """A network of the factory, its random numbers those of a seed, in the precision and on the device of the run.

    Raises:
        InvalidInputError: if the factory fails or builds no module.
    """
    like = next(parameter for parameter in plan.model.parameters() if parameter.is_floating_point())
    try:
        with random_state_kept({like.device}, seed=seed):
            made = factory(width)
    except Exception as error:
        raise InvalidInputError(
            "The factory must build the model at every width that it is asked for.",
            got=f"factory({width}): {type(error).__name__}: {error}",
            remedy="widths that it takes, such as multiples of the number of heads",
        ) from error
    if not isinstance(made, nn.Module):
        raise InvalidInputError(
            "The factory must build a module.",
            got=f"factory({width}) of type {type(made).__name__}",
            remedy="factory=..., a function width -> nn.Module",
        )
    return made.to(like)


def shared_start(plan: Plan, model: nn.Module, second: nn.Module) -> dict[str, Tensor]:
    """What keeps its start and has no width axis, with its values in the run before it was wrapped.

    Args:
        plan: the run's model.
        model: a network of the factory.
        second: one of another width.
    """
    start = start_of(plan)
    keeps = plan.wrapping.init != "normal"
    kept = {rule.name for rule in plan.rules if rule.role in OWN_INIT or rule.lr == 0 or keeps}
    kept |= {name for name, _ in model.named_buffers()}
    mine, other = (dict(one.named_parameters()) | dict(one.named_buffers()) for one in (model, second))
    return {
        name: start[name]
        for name in kept & mine.keys() & start.keys()
        if mine[name].shape == other[name].shape == start[name].shape
    }


def start_of(plan: Plan) -> Mapping[str, Tensor]:
    """Parameters and buffers of a run's model before it was wrapped; of one that was unwrapped those that it has."""
    return plan.initial or {name: value.detach() for name, value in plan.model.state_dict().items()}


def _architecture(plan: Plan, model: nn.Module, other: nn.Module, example: Example) -> Architecture:
    """What a network is made of, found in the way of the run's plan."""
    wrapping, like = plan.wrapping, plan.architecture
    wider = other if wrapping.compares else None
    found = describe(model, example, roles=wrapping.roles, wider=wider, outputs=wrapping.outputs, like=like)
    random = found.random or plan.architecture.random
    if random:
        raise UnsupportedModelError("No network can repeat a training that is random:", random)
    return found


def _require_alike(plan: Plan, made: Plan, width: int) -> None:
    """Refuse a network whose parameters have other roles or gains than the run's."""
    rules = {rule.name: rule for rule in made.rules}
    found = [
        f"{rule.name}: {rule.role} in the run, {rules[rule.name].role} in factory({width})"
        for rule in plan.rules
        if rules[rule.name].role is not rule.role
    ]
    is_kept = plan.wrapping.init == "untouched"
    found += [
        f"the gain of {rule.name}: {rule.gain:.4g} in the run, {rules[rule.name].gain:.4g} in factory({width})"
        for rule in plan.rules
        if rule.lr
        and not is_kept
        and rule.role not in OWN_INIT
        and abs(rules[rule.name].gain - rule.gain) > 1e-6 * abs(rule.gain)
    ]
    if found:
        raise InvalidInputError(
            "The factory must build the model of the run.",
            got=listed(found[:3]),
            remedy="the function that built the model which was wrapped",
        )
