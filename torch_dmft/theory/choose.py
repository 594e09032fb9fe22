"""Which solver suits a problem: the choice of ``solve(problem)`` without a solver."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torch_dmft.core.errors import (
    ConvergenceError,
    DMFTError,
    InsufficientMemoryError,
    Place,
    UnsupportedModelError,
    UnsupportedProblemError,
)
from torch_dmft.core.listed import listed
from torch_dmft.theory import solvers
from torch_dmft.theory.chains.movement import feature_movement
from torch_dmft.theory.cost import Cost
from torch_dmft.theory.coverage import STAND_IN, UNKNOWN
from torch_dmft.theory.engine.posed import enough_neurons, is_closed
from torch_dmft.theory.engine.sources import factory_for
from torch_dmft.theory.engine.strides import check_strides
from torch_dmft.theory.fitting import what_fits
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.solver import Solver

_PATIENCE = 3600.0
"""Seconds on one core beyond which a solver is taken only if all take longer."""
_WRONG = 0.1
"""Movement of features beyond which the static NTK is never chosen, however long others take."""
_CLEARLY = 2.0
"""How many times more accurate a solver has to be to be preferred to one that is named before it."""


@dataclass(frozen=True)
class _Offer:
    """A solver that can do the problem, what it costs, and the relative error of its worst kernel."""

    solver: Solver
    cost: Cost
    error: float


def choose(
    problem: Problem, record: Iterable[int] | int | Tensor | None = None, *, two_time: bool | float = False
) -> tuple[Solver, str]:
    """The most accurate affordable solver for a problem, and why.

    Asked in the order of trust: ``DeepLinear`` (exact), ``InfiniteWidth`` with 4 replicas of 8192 neurons or 2048, by strides
    where they pay (where Adam trains hidden weights, at the cost of networks, with 16 of 2048 or 8 of 1024), ``StaticNTK``
    (which is wrong by as much as features move, ``movement``), ``AlternatingMonteCarlo``, ``WideEnsemble``.

    1. Those that refuse the problem, those that do not fit in memory, and the static NTK of features that move by more than
       a tenth, are out.
    2. A twin that meets as many directions as it has neurons is out if ``WideEnsemble`` is in: both are plain networks, and
       the latter extrapolates.
    3. So are those that would take more than an hour on one core, unless all would: then the fastest is taken.
    4. Of the rest, the first whose error is at most twice the smallest.

    Args:
        problem: what to solve.
        record: the steps to keep, as ``solve`` takes them.
        two_time: whether kernels are kept at pairs of times.

    Raises:
        UnsupportedModelError: if the theory and plain networks both refuse the problem's network, with both reasons.
        InsufficientMemoryError: if no solver fits.
    """
    offers, refused = _ask(problem, record, two_time=two_time)
    if not offers:
        raise _nobody(problem, list(refused.values()))
    reasons = {name: _reason(error) for name, error in refused.items()}
    has_networks = any(isinstance(offer.solver, solvers.WideEnsemble) for offer in offers)
    sensible = [offer for offer in offers if not (offer.cost.saturated and has_networks)]
    usable = [offer for offer in sensible if offer.cost.seconds <= _PATIENCE]
    usable = usable or [min(sensible, key=lambda offer: offer.cost.seconds)]
    smallest = min(offer.error for offer in usable)
    best = next(offer for offer in usable if offer.error <= _CLEARLY * smallest)
    for offer in offers[: offers.index(best)]:
        reasons.setdefault(_name(offer.solver), _drawback(offer))
    others = {name: why for name, why in reasons.items() if name not in ("DeepLinear", _name(best.solver))}
    expected = f"kernels within {_percent(best.error)}" if best.error else "exact for a linear chain"
    return best.solver, "; ".join([expected, *(_excuses(others) if best.error else [])])


def _excuses(reasons: Mapping[str, str]) -> Iterator[str]:
    """Why other solvers were not taken, grouped by reason."""
    together: dict[str, list[str]] = {}
    for name, why in reasons.items():
        together.setdefault(why.removeprefix(f"{name} "), []).append(name)
    for why, names in together.items():
        yield f"not {', '.join(names)}: {why}"


def _ask(
    problem: Problem, record: Iterable[int] | int | Tensor | None, *, two_time: bool | float
) -> tuple[list[_Offer], dict[str, DMFTError]]:
    """Offers in the order of trust, and the errors of the solvers that refuse."""
    offers: list[_Offer] = []
    refused: dict[str, DMFTError] = {}
    candidates: Sequence[Solver] = (
        solvers.DeepLinear(),
        *_twins(problem, record),
        solvers.StaticNTK(),
        solvers.AlternatingMonteCarlo(),
        _wide_ensemble(problem),
    )
    for solver in candidates:
        try:
            solver.check(problem)
            cost = solver.estimate(problem, record, two_time=two_time)
            cost.admit(problem, remedy=lambda fits=solver: what_fits(fits, problem, record, two_time=two_time))  # type: ignore[misc]
            error = _movement(problem) if cost.error is None else cost.error
        except (UnsupportedProblemError, UnsupportedModelError, InsufficientMemoryError, ConvergenceError) as reason:
            refused.setdefault(_name(solver), reason)
            continue
        offers.append(_Offer(solver, cost, error))
        if error == 0:
            break
    return offers, refused


def _twins(problem: Problem, record: Iterable[int] | int | Tensor | None) -> Iterator[solvers.InfiniteWidth]:
    """The larger sample first."""
    enough, strides = enough_neurons(problem), _strides(problem, record)
    closed = is_closed(problem)
    for neurons, replicas in ((8192, 4), (2048, 4)) if closed else ((2048, 16), (1024, 8)):
        yield solvers.InfiniteWidth(max(neurons, enough), replicas, strides=strides)


def _wide_ensemble(problem: Problem) -> solvers.WideEnsemble:
    """Plain networks; those of a factory at multiples of the run's own width, which it is known to take."""
    plan = problem.network.plan
    if plan is None or factory_for(problem, None) is None:
        return solvers.WideEnsemble()
    least = plan.width * max(1, round(_LEAST / plan.width))
    return solvers.WideEnsemble(widths=(least, 2 * least, 4 * least))


_LEAST = 128
"""The smallest width of an ensemble, where the factory takes it."""


def _strides(problem: Problem, record: Iterable[int] | int | Tensor | None) -> bool:
    """Whether strides apply and pay: each of their passes needs the gradients of every output."""
    if problem.outputs > 1 and 2 * problem.number_recorded(record) < problem.steps:
        return False
    try:
        check_strides(problem)
    except UnsupportedProblemError:
        return False
    return True


def _movement(problem: Problem) -> float:
    error = feature_movement(problem) if problem.samples <= _MANY else _movement_of_some(problem)
    if error > _WRONG:
        raise UnsupportedProblemError(f"Features move by {'more than 100%' if error > 1 else f'about {error:.0%}'}.")
    return error


_MANY = 200
"""Rows beyond which the movement of features is told from some of them, as all would take minutes."""


def _movement_of_some(problem: Problem) -> float:
    """The movement of features, which grows with the number of rows, from evenly chosen rows in full batches.

    Their rate is such that errors decay as fast as those of all rows, whether the loss is their sum or their mean.
    """
    rows = torch.linspace(0, problem.train_samples - 1, min(problem.train_samples, _MANY), device=problem.device)
    rows = rows.round().long().unique()
    share = problem.train_samples / len(rows)
    training = replace(problem.training, batches=None)
    all_rows = replace(problem, training=training, probe=None)
    some = replace(all_rows, inputs=problem.tensor[rows], targets=problem.targets[rows])
    zero = problem.zeros(problem.samples)
    ratio = float(all_rows.error(zero, 0)[rows].norm() / some.error(zero[: len(rows)], 0).norm().clamp(min=1e-30))
    rate = torch.as_tensor(training.number("lr"), device="cpu") * (share * ratio)
    return share * feature_movement(some.trained(lr=rate if rate.ndim else float(rate)))


def _name(solver: Solver) -> str:
    return type(solver).__name__


def _reason(error: DMFTError) -> str:
    if isinstance(error, UnsupportedModelError):
        return f"no infinite-width law for {listed(list(dict.fromkeys(place.path for place in error.places)))}"
    return error.what.rstrip(".")


def _drawback(offer: _Offer) -> str:
    if offer.cost.saturated:
        return f"about {offer.cost.rank} directions for its neurons, so that it would amount to a wide network"
    if offer.cost.seconds > _PATIENCE:
        return f"{offer.cost.seconds / 3600:.1f} hours"
    return f"kernels within {_percent(offer.error)} only"


def _percent(part: float) -> str:
    return f"{100 * part:.2g}%"


def _nobody(problem: Problem, refused: Sequence[DMFTError]) -> DMFTError:
    """One error for all: with every place if models are refused, otherwise the error of the last candidate."""
    models = [error for error in refused if isinstance(error, UnsupportedModelError)]
    if len(models) < 2:
        return refused[-1]
    what = "Neither the theory nor plain networks of several widths can predict this model"
    plan = problem.network.plan
    if plan is not None and not plan.architecture.random:
        what += f"; {STAND_IN}"
    return UnsupportedModelError(f"{what}:", _joined(models[0].places, models[-1].places))


def _joined(without_law: tuple[Place, ...], unwidenable: tuple[Place, ...]) -> Iterator[Place]:
    """The places that plain networks refuse, each with both reasons and the theory's remedy."""
    theory = {place.path: place for place in without_law}
    if any(place.reason == UNKNOWN for place in unwidenable):  # how to build the model, whatever its parts are
        yield from without_law
        return
    for place in unwidenable:
        other = theory.get(place.path, place)
        reasons = dict.fromkeys((other.reason, place.reason))
        yield Place(place.path, ", and ".join(reasons), other.remedy)
