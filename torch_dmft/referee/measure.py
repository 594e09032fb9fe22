"""Training at several widths and seeds, measured at log-spaced steps: sizes at every place, and what trains every parameter."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torch_dmft.core.errors import InvalidInputError
from torch_dmft.referee.look import Look, Place, differences, look
from torch_dmft.referee.random_data import require_same_targets
from torch_dmft.referee.setup import Batches, Factory, Setup, is_reproducible, set_up

QUANTITIES = ("start", "own", "carried", "change", "taken", "moved", "weight", "step", "read", "scale", "unrelated")
"""What is known at a place; see ``look.Sizes``."""


@dataclass(frozen=True)
class Trained:
    """How a parameter is trained at one width.

    Attributes:
        size: root mean square of its entries at the start.
        shape: of the parameter.
        optimizer: class of the optimizer that holds it; "" for none, or a frozen parameter.
        rate: learning rate of its group at the first step; 0 for a frozen parameter.
        decay: weight decay of its group.
        eps: of its group; 0 where there is none.
        is_decoupled: whether decay acts on the weight itself, and not through the gradient.
        gradient: largest root mean square of its gradient at the steps that were looked at; NaN without one.
    """

    size: float
    shape: tuple[int, ...]
    optimizer: str
    rate: float
    decay: float
    eps: float
    is_decoupled: bool
    gradient: float

    @property
    def follows_gradient(self) -> bool:
        """Whether steps are proportional to the gradient, as those of SGD are; Adam's and Muon's have a size of their own."""
        return "SGD" in self.optimizer

    @property
    def sums_rows(self) -> bool:
        """Whether a step adds up what rows ask for, entry by entry; an orthogonalised one is as large on all that they span."""
        return "Muon" not in self.optimizer and any(one in self.optimizer for one in _ENTRYWISE)


_ENTRYWISE = ("SGD", "Adam", "Lion", "RMSprop", "Adagrad", "Adafactor", "Adadelta", "Rprop")
"""Parts of the names of optimizers that step entry by entry."""


@dataclass(frozen=True, eq=False)
class Measured:
    """What was seen of a set-up.

    Attributes:
        widths: N.
        seeds: how many.
        steps: after which it was looked at.
        sizes: for (place, quantity), ``(step, width, seed)``; "start" is the same at every step. NaN where training diverged.
        shapes: for every place, fan-in and neurons at every width.
        parameters: for every width how each parameter is trained, of the first seed but for sizes and gradients, which are
            averaged.
        updates: for every parameter ``(step, width, seed)``, the last step in units of the weight, both root mean squares.
        losses: ``(step, width, seed)``, before the step.
        evaluated: ``sizes`` in eval mode, where it differs.
        notes: what was chosen for the user.
    """

    widths: tuple[int, ...]
    seeds: int
    steps: tuple[int, ...]
    sizes: Mapping[tuple[Place, str], Float[Tensor, "step width seed"]]
    shapes: Mapping[Place, Sequence[tuple[int, int]]]
    parameters: Sequence[Mapping[str, Trained]]
    updates: Mapping[str, Float[Tensor, "step width seed"]]
    losses: Float[Tensor, "step width seed"]
    evaluated: Mapping[tuple[Place, str], Float[Tensor, "step width seed"]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def places(self) -> tuple[Place, ...]:
        """All places in forward order."""
        return tuple(self.shapes)


@dataclass(eq=False)
class _Run:
    """One width and one seed while it trains: what was seen after every step that is looked at."""

    width: int
    seed: int
    sizes: list[dict[Place, Any]] = field(default_factory=list)
    evaluated: list[dict[Place, Any]] = field(default_factory=list)
    updates: list[dict[str, float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    trained: dict[str, Trained] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


_DRAWS = (
    "factory: two calls at the same width and seed make other initial weights, as it draws from a source of its own; the next "
    "check will find slightly other numbers"
)


def log_steps(last: int) -> tuple[int, ...]:
    """1, 2, 4, 8, ... and the last step."""
    return tuple(sorted({*(2**i for i in range(last.bit_length()) if 2**i <= last), last}))


def run(factory: Factory, data: Batches | None, width: int, seed: int, steps: Sequence[int]) -> _Run:
    """Train one width and seed and look at it after some steps; at least once before the first.

    Raises:
        InvalidInputError: if the set-up cannot be made, or its loss is not finite before the first step.
    """
    setup = set_up(factory, width, seed, data)
    notes = setup.notes if seed or is_reproducible(setup, factory) else (*setup.notes, _DRAWS)
    found = _Run(width, seed, notes=notes)
    batches = setup.batches(seed)
    batch = next(batches)
    modes = {path: module.training for path, module in setup.model.named_modules()}
    first = look(setup, batch, modes=modes)
    apart = look(setup, batch, trains=False)
    differs = not _are_one(first, apart)
    if not math.isfinite(first.loss):
        raise InvalidInputError(
            "The loss must be finite before the first step.",
            got=f"{first.loss} at width {width}, seed {seed}",
            remedy="finite data and initial weights",
        )
    starts = {name: _size(value) for name, value in setup.model.named_parameters()}
    gradients: dict[str, float] = {}
    settings = _settings(setup)
    parameters = dict(setup.model.named_parameters())
    with setup.draws():
        next_batch: Any = batch
        for step in range(1, max(steps) + 1):
            is_seen = step in steps
            before = {name: value.detach().clone() for name, value in parameters.items()} if is_seen else {}
            value = setup.step(next_batch)
            if not math.isfinite(value):
                break
            next_batch = next(batches)
            if not is_seen:
                continue
            for name, parameter in parameters.items():
                if parameter.grad is not None:
                    gradients[name] = max(gradients.get(name, 0.0), _size(parameter.grad))
            found.losses.append(value)
            found.updates.append(
                {name: _ratio(one.detach() - before[name], before[name]) for name, one in parameters.items()}
            )
            found.sizes.append(differences(first, look(setup, batch, modes=modes)))
            if differs:
                found.evaluated.append(differences(apart, look(setup, batch, trains=False)))
    for name, one in parameters.items():
        none = ("", 0.0, 0.0, 0.0, False)
        kind, rate, decay, eps, decoupled = settings.get(name, none) if one.requires_grad else none
        shape, gradient = tuple(one.shape), gradients.get(name, math.nan)
        found.trained[name] = Trained(starts[name], shape, kind, rate, decay, eps, decoupled, gradient)
    return found


def gathered(widths: Sequence[int], seeds: int, steps: Sequence[int], several: Iterable[_Run]) -> Measured:
    """What was seen of all widths and seeds in one place.

    Args:
        widths: N.
        seeds: how many.
        steps: after which it was looked at.
        several: the runs of all widths and seeds, in any order.

    Raises:
        InvalidInputError: if the model has other parameters at another width, the width changes none of their shapes, or
            initial weights are the same for every seed.
    """
    by_place = {(one.width, one.seed): one for one in several}
    runs = [[by_place[width, seed] for seed in range(seeds)] for width in widths]
    flat = [one for row in runs for one in row]
    names = [tuple(one.trained) for one in flat]
    if any(set(one) != set(names[0]) for one in names):
        other = next(one for one in names if set(one) != set(names[0]))
        raise InvalidInputError(
            "The model must have the same parameters at every width and seed.",
            got=", ".join(sorted(set(other) ^ set(names[0]))[:5]),
            remedy="let factory change the width only; of depth, batch size or heads: transfer(..., axis='depth')",
        )
    shapes = {tuple((name, one.shape) for name, one in row[0].trained.items()) for row in runs}
    if len(shapes) == 1:
        raise InvalidInputError(
            "`factory` must make wider models of larger widths.",
            got=f"the same shapes at the widths {', '.join(map(str, widths))}",
            remedy="a function of the width, on which the number of neurons depends; of others: transfer(..., axis='heads')",
        )
    require_same_targets((one.width, one.notes) for one in flat)
    sizes = [{tuple(value.size for value in one.trained.values()) for one in row} for row in runs]
    if seeds > 1 and all(len(several) == 1 for several in sizes):
        raise InvalidInputError(
            "`factory` must make other initial weights for every seed, as intervals are their scatter.",
            got=f"the same weights at {seeds} seeds of every width",
            remedy="no torch.manual_seed and no generator of a fixed seed in the factory, which is called with a seed set",
        )
    first = next((one.sizes[0] for one in flat if one.sizes), None)
    if first is None:
        raise InvalidInputError(
            "The loss must stay finite for a step.",
            got="NaN or infinity at every width",
            remedy="a smaller learning rate",
        )
    return Measured(
        widths=tuple(widths),
        seeds=seeds,
        steps=tuple(steps),
        sizes=_stacked([[one.sizes for one in row] for row in runs], first, len(steps)),
        shapes={place: [_shape(row, place) for row in runs] for place in first},
        parameters=[{name: _mean([one.trained[name] for one in row]) for name in names[0]} for row in runs],
        updates={
            name: _array([[[one[name] for one in each.updates] for each in row] for row in runs], len(steps))
            for name in names[0]
        },
        losses=_array([[one.losses for one in row] for row in runs], len(steps)),
        evaluated=_stacked([[one.evaluated for one in row] for row in runs], first, len(steps))
        if any(one.evaluated for one in flat)
        else {},
        notes=flat[0].notes,
    )


def _stacked(
    runs: list[list[list[dict[Place, Any]]]], first: Iterable[Place], steps: int
) -> dict[tuple[Place, str], Tensor]:
    """``(step, width, seed)`` of every quantity at every place."""
    found = {}
    for place in first:
        for quantity in QUANTITIES:
            values = [
                [[getattr(one[place], quantity) if place in one else math.nan for one in each] for each in row]
                for row in runs
            ]
            found[place, quantity] = _array(values, steps)
    return found


def _array(values: list[list[list[float]]], steps: int) -> Tensor:
    """``(width, seed, step)`` -> ``(step, width, seed)``, NaN for steps that were not reached."""
    filled = [[each + [math.nan] * (steps - len(each)) for each in row] for row in values]
    return torch.tensor(filled, dtype=torch.float64, device="cpu").movedim(-1, 0)


def _shape(row: Sequence[_Run], place: Place) -> tuple[int, int]:
    sizes = next((one[place] for each in row for one in each.sizes if place in one), None)
    return (0, 0) if sizes is None else (sizes.fan_in, sizes.out)


def _mean(several: Sequence[Trained]) -> Trained:
    """One of several seeds with the root mean square of their sizes and gradients."""

    def mean(values: Iterable[float]) -> float:
        known = [value for value in values if math.isfinite(value)]
        return math.sqrt(sum(value**2 for value in known) / len(known)) if known else math.nan

    return replace(several[0], size=mean(one.size for one in several), gradient=mean(one.gradient for one in several))


def _settings(setup: Setup) -> dict[str, tuple[str, float, float, float, bool]]:
    """Class of the optimizer, rate, decay, eps and whether decay is decoupled, for every parameter by name."""
    names = {id(value): name for name, value in setup.model.named_parameters()}
    found = {}
    for optimizer in setup.optimizers:
        kind = type(optimizer).__name__
        for group in optimizer.param_groups:
            decoupled = bool(group.get("decoupled_weight_decay", "AdamW" in kind or "Muon" in kind or "Lion" in kind))
            settings = (
                kind,
                float(group.get("lr", math.nan)),
                float(group.get("weight_decay", 0.0) or 0.0),
                float(group.get("eps", 0.0) or 0.0),
                decoupled,
            )
            found.update({names[id(one)]: settings for one in group["params"] if id(one) in names})
    return found


def _are_one(first: Look, other: Look) -> bool:
    """Whether a model does the same in both modes, up to rounding."""
    if first.outputs is None or other.outputs is None or first.outputs.shape != other.outputs.shape:
        return abs(first.loss - other.loss) <= 1e-5 * abs(first.loss)
    return torch.allclose(first.outputs.double(), other.outputs.double(), rtol=1e-4, atol=1e-6, equal_nan=True)


def _size(tensor: Tensor) -> float:
    return float(tensor.detach().double().square().mean().sqrt()) if tensor.numel() else 0.0


def _ratio(change: Tensor, before: Tensor) -> float:
    size = _size(before)
    return _size(change) / size if size else math.inf if _size(change) else 0.0
