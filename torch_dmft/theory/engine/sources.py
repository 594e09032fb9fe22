"""Where the networks of an ensemble come from: the problem widened by itself, or the user's factory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from torch_dmft.core.errors import InvalidInputError, UnsupportedModelError
from torch_dmft.core.undisturbed import undisturbed
from torch_dmft.theory.cost import Cost, ensemble_memory, lags_of, networks_cost
from torch_dmft.theory.engine.built import Built, Factory, built, wrapped_model
from torch_dmft.theory.engine.networks import Networks, Widened
from torch_dmft.theory.engine.posed import rotated
from torch_dmft.theory.engine.same_model import own_width, pair_of, require_same_starts
from torch_dmft.theory.held import Held, on_the_process
from torch_dmft.theory.problem import Problem
from torch_dmft.uses.outputs import Runs, moved, rows


def require_factory(factory: object) -> None:
    """Refuse what is no function.

    Raises:
        InvalidInputError: if it is given and cannot be called, or is a model.
    """
    if factory is not None and (isinstance(factory, torch.nn.Module) or not callable(factory)):
        raise InvalidInputError(
            "`factory` must be a function width -> model.",
            got=type(factory).__name__,
            remedy="factory=lambda width: Model(width)",
        )


def factory_for(problem: Problem, given: Factory | None) -> Factory | None:
    """The factory that builds the networks: the one given, or that of the plan where nothing else can; None without one."""
    if given is not None or problem.factory is None:
        return given
    try:
        problem.network.require_widenable()
    except UnsupportedModelError:
        return problem.factory
    return None if "other starts" not in problem.training.traits else problem.factory


def covered_starts(problem: Problem, given: Factory | None) -> frozenset[str]:
    """The traits of a training that only networks of a factory have: starts that nobody else can draw."""
    return frozenset({"other starts"} if factory_for(problem, given) is not None else set())


def require_networks(problem: Problem, given: Factory | None, widths: Sequence[int]) -> None:
    """Refuse a problem whose networks cannot be built at these widths.

    Raises:
        UnsupportedModelError: if the model cannot be widened, and there is no factory; or if training is random.
        InvalidInputError: if the factory does not build the model of the run.
    """
    factory = factory_for(problem, given)
    if factory is None:
        problem.network.require_widenable()
        return
    plan = wrapped_model(problem)
    if plan.architecture.random:
        raise UnsupportedModelError("No network can repeat a training that is random:", plan.architecture.random)
    pair = pair_of(widths, factory, plan)
    own = own_width(problem, factory, pair)
    if "other starts" in problem.training.traits:
        generator = torch.Generator().manual_seed(0)
        networks = Built(problem, factory, own, other=pair[0] if pair[0] != own else pair[1], generator=generator)
        require_same_starts(problem, networks.draw(generator))


def networks_of(
    problem: Problem, width: int, given: Factory | None, widths: Sequence[int], generator: torch.Generator
) -> Networks:
    """Networks of one width.

    Args:
        problem: what they are trained on.
        width: N, or what the factory takes for it.
        given: the factory, None for that of the plan where the problem cannot be widened by itself.
        widths: all widths of the ensemble.
        generator: source of randomness.
    """
    factory = factory_for(problem, given)
    if factory is None:
        return Widened(rotated(problem), width)
    low, high = pair_of(widths if len(set(widths)) > 1 else (width,), factory, wrapped_model(problem))
    return Built(problem, factory, width, other=high if width != high else low, generator=generator)


class _Calls(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


_SPEED, _CALL = 2e10, 2e-5
"""Operations per second of one core in the products of small networks, and seconds that an operator takes at least."""
_LOOK = 12
"""How many passes of the network a look of the recorder takes, beside one backward pass for each output."""


def cost_of_networks(
    problem: Problem,
    given: Factory | None,
    widths: Sequence[int],
    *,
    count: int,
    recorded: int,
    two_time: bool | float,
    error: float | None,
    pairs: bool = False,
) -> Cost:
    """Estimate the cost of ``count`` networks at each width; of a factory's, by the operators of one forward pass each.

    Args:
        problem: the problem.
        given: the factory, if there is one.
        widths: N, or what the factory takes for it.
        count: networks of every width.
        recorded: number of recorded steps.
        two_time: whether kernels are kept at pairs of times.
        error: see ``Cost``.
        pairs: whether each counts for two that are averaged at once.
    """
    factory = factory_for(problem, given)
    if factory is None:
        return networks_cost(
            problem, widths, count=count, recorded=recorded, two_time=two_time, error=error, pairs=pairs
        )
    plan, element = wrapped_model(problem), problem.dtype.itemsize
    trained = problem.train_samples if problem.batches is None else max((len(b) for b in problem.batches), default=1)
    measured, looks = len(problem.kept), _LOOK + 2 * problem.outputs
    flops, seconds, numbers, networks = 0.0, 0.0, 0, (2 if pairs else 1) * count
    for width in widths:
        model = built(factory, width, plan, seed=0)
        one = moved(rows(problem.inputs, [0, 1]), next(model.parameters()).device)
        with undisturbed(model), torch.no_grad(), FlopCounterMode(display=False) as counter, _Calls() as calls:
            Runs(model, problem.selection)(one)
        per_row, parameters = counter.get_total_flops() / 2, sum(p.numel() for p in model.parameters())
        of_steps, of_looks = 3 * problem.steps * trained * per_row, looks * recorded * measured * per_row
        flops += networks * (of_steps + of_looks)
        seconds += networks * calls.count * _CALL * (3 * problem.steps + looks * recorded)
        seconds += networks * (of_steps + of_looks) / _SPEED
        fields = calls.count * measured * int(math.sqrt(per_row)) * (1 + problem.outputs)
        numbers = max(numbers, 6 * parameters + fields * (recorded if two_time is True else 2))
    size = int(math.sqrt(per_row))
    lags = lags_of(problem, size, size * count, recorded, smooth=True, two_time=two_time)
    held = Held.of(problem, 0, measured, [], recorded, two_time=two_time, lags=lags)
    memory = ensemble_memory(held, count, len(widths), pairs=pairs) + numbers * element
    return Cost(on_the_process(problem, memory), flops, seconds, error)
