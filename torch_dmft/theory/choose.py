"""Which solver suits a problem: the choice of ``solve(problem)`` without a solver."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch_dmft.core.errors import Place, UnsupportedModelError, UnsupportedProblemError
from torch_dmft.theory import solvers
from torch_dmft.theory.infinite.widen import refuse_unsupported, refuse_unwidenable
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.solve import Solver

_LAZY = 0.02
"""gamma0 below which the static NTK's error, of order gamma0^2, is smaller than the sampling error of InfiniteWidth."""
_FEW = 300
"""Rows (sample, output, time) up to which AlternatingMonteCarlo, whose cost grows with their cube, takes minutes."""


def choose(problem: Problem) -> tuple[Solver, str]:
    """The most accurate affordable solver for a problem, and why.

    - Adam and AdamW: ``WideEnsemble``, as there is no theory of steps that are not linear in the gradient.
    - Langevin noise: ``AlternatingMonteCarlo`` for small chains of smooth activations, else ``WideEnsemble``.
    - Linear chains: ``DeepLinear``, exact to round-off.
    - Lazy chains, gamma0 < 0.02: ``StaticNTK``, exact up to order gamma0^2.
    - Networks that have no infinite-width twin here, and those whose twin would meet as many directions as it has neurons:
      ``WideEnsemble``, plain networks extrapolated in 1/N.
    - Everything else: ``InfiniteWidth``.

    Raises:
        UnsupportedModelError: if neither the theory nor plain networks can do the problem's network, with both reasons.
    """
    if problem.optimizer != "sgd":
        return solvers.WideEnsemble(), "Adam's steps are not linear in the gradient: no field theory, but wide networks"
    if problem.temperature:
        return _with_noise(problem)
    if problem.chain is not None and all(layer.activation == "linear" for layer in problem.chain.hidden):
        return solvers.DeepLinear(), "a linear chain is solved exactly"
    if problem.chain is not None and problem.gamma0 < _LAZY:
        return solvers.StaticNTK(), f"at gamma0 = {problem.gamma0:g} features move by less than sampling would show"
    sampled = solvers.InfiniteWidth()
    network = problem.network
    if network is not None and problem.chain is None:
        without_law = _refused(lambda: refuse_unsupported(network.model, network.architecture))
        if without_law:
            unwidenable = _refused(lambda: refuse_unwidenable(network.model))
            if unwidenable:
                what = "Neither the theory nor plain networks of several widths can predict this model:"
                raise UnsupportedModelError(what, _joined(without_law, unwidenable))
            places = ", ".join(place.path for place in without_law)
            return solvers.WideEnsemble(), f"the theory has no infinite-width law for {places}"
    cost = sampled.estimate(problem)
    if cost.saturated:
        return (
            solvers.WideEnsemble(),
            f"about {cost.rank} directions for {sampled.neurons} neurons: no gain over networks",
        )
    try:
        sampled.check(problem)
    except UnsupportedProblemError as error:
        return solvers.WideEnsemble(), str(error.what)
    return sampled, f"{cost}"


def _with_noise(problem: Problem) -> tuple[Solver, str]:
    rows = problem.samples * problem.outputs * (problem.steps + 1)
    if rows > _FEW:
        return solvers.WideEnsemble(), f"with Langevin noise the field theory is too expensive for {rows} rows"
    theory = solvers.AlternatingMonteCarlo()
    try:
        theory.check(problem)
    except UnsupportedProblemError as error:
        return solvers.WideEnsemble(), f"Langevin noise: {error.what}"
    return theory, "the field theory with Langevin noise"


def _refused(refuse: Callable[[], None]) -> tuple[Place, ...]:
    """The places that a check refuses."""
    try:
        refuse()
    except UnsupportedModelError as error:
        return error.places
    return ()


def _joined(without_law: tuple[Place, ...], unwidenable: tuple[Place, ...]) -> Iterator[Place]:
    """What stands in the way of networks, which take the more: each place with both reasons and the theory's remedy."""
    theory = {place.path: place for place in without_law}
    for place in unwidenable:
        other = theory.get(place.path, place)
        reasons = dict.fromkeys((other.reason, place.reason))
        yield Place(place.path, ", and ".join(reasons), other.remedy)
