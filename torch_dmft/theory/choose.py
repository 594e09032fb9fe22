"""Which solver suits a problem: the choice of ``solve(problem)`` without a solver."""

from __future__ import annotations

from torch_dmft.core.errors import UnsupportedModelError, UnsupportedProblemError
from torch_dmft.theory import solvers
from torch_dmft.theory.infinite.widen import refuse_unsupported
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.solve import Solver

_LAZY = 0.02
"""gamma0 below which the static NTK's error, of order gamma0^2, is smaller than the sampling error of InfiniteWidth."""


def choose(problem: Problem) -> tuple[Solver, str]:
    """The most accurate affordable solver for a problem, and why.

    - Langevin noise: ``AlternatingMonteCarlo``, which alone takes it.
    - Linear chains: ``DeepLinear``, exact to round-off.
    - Lazy chains, gamma0 < 0.02: ``StaticNTK``, exact up to order gamma0^2.
    - Networks that have no infinite-width twin here, and those whose twin would meet as many directions as it has neurons:
      ``WideEnsemble``, plain networks extrapolated in 1/N.
    - Everything else: ``InfiniteWidth``.
    """
    if problem.temperature:
        return solvers.AlternatingMonteCarlo(), "no other solver takes Langevin noise"
    if problem.chain is not None and all(layer.activation == "linear" for layer in problem.chain.hidden):
        return solvers.DeepLinear(), "a linear chain is solved exactly"
    if problem.chain is not None and problem.gamma0 < _LAZY:
        return solvers.StaticNTK(), f"at gamma0 = {problem.gamma0:g} features move by less than sampling would show"
    sampled = solvers.InfiniteWidth()
    if problem.network is not None and problem.chain is None:
        try:
            refuse_unsupported(problem.network.model, problem.network.architecture)
        except UnsupportedModelError as error:
            places = ", ".join(place.path for place in error.places)
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
