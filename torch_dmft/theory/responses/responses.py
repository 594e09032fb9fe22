"""The response functions A and B of the theory, by three ways.

Two of them share the couplings of the single sites (``order_parameters``): Algorithm 1 differentiates sampled sites, and for
linear networks the sites are inverted, at kernels that ``DeepLinear`` has found in latents. The third, Stein's lemma on
an infinite-width twin, shares no code with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import singledispatch

import torch
from jaxtyping import Float
from torch import Tensor

from torch_dmft.core.activation import activation
from torch_dmft.core.arguments import checked, typed
from torch_dmft.core.errors import UnsupportedProblemError
from torch_dmft.core.own_arithmetic import own_arithmetic
from torch_dmft.theory.chain import Chain
from torch_dmft.theory.engine.posed import rotated, twin_of
from torch_dmft.theory.error_bars import standard_error
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.replicas import replica_generators
from torch_dmft.theory.responses.linear_responses import linear_responses
from torch_dmft.theory.responses.twin_responses import twin_responses
from torch_dmft.theory.solver import Solver
from torch_dmft.theory.solvers.alternating_monte_carlo import AlternatingMonteCarlo
from torch_dmft.theory.solvers.deep_linear import DeepLinear
from torch_dmft.theory.solvers.gradient_independence import GradientIndependence
from torch_dmft.theory.solvers.infinite_width import InfiniteWidth
from torch_dmft.theory.tolerance import default_tolerance

Pairs = list[tuple[Tensor, Tensor]]
"""(A^l, B^l) of the hidden weights l = 1..L-1, as matrices between rows (t, mu) and (t, mu, c)."""


@typed
@dataclass(frozen=True)
class Responses:
    """How the two ends of one hidden weight l answer to each other, because both passes use the same matrix.

    Attributes:
        layer: module path of the weight.
        forward_response: A^l(t, s) = < d phi(h^l(t)) / d r^l(s) >, zero for s >= t:
            ``(time, sample, time, sample)``, with an output axis at the end for several outputs.
        backward_response: B^l(t, s) = < d g^{l+1}(t) / d u^{l+1}(s) >, zero for s > t:
            ``(time, sample, time, sample)``, with an output axis after the first sample axis for several outputs.
        stderr: the standard error of both in the same layout, or None.
    """

    layer: str
    forward_response: Tensor
    backward_response: Tensor
    stderr: Responses | None = None


@checked
@own_arithmetic()
def responses(problem: Problem, solver: Solver | None = None) -> tuple[Responses, ...]:
    r"""The response functions of every hidden weight, between all pairs of the states 0..steps.

    A weight is used forward and backward, so the preactivation h^{l+1} remembers the gradients sent back before, and the
    pregradient z^l the activities sent forward:

    .. math:: h^{l+1} \ni u^{l+1} + g\, A^l g^{l+1}, \qquad z^l \ni r^l + g\, B^l \phi(h^l),

    where u and r are what the untrained weight W(t) (after weight decay and noise) makes of activities and gradients if it
    met each of them alone, with covariances C Phi and C G. Both responses vanish like gamma0 in the lazy limit, except
    for B(t, t) = < phi''(h) z >.

    - ``AlternatingMonteCarlo`` (None is its default setting) differentiates the single-site process.
    - ``DeepLinear`` uses the paper's eq. 11, exactly.
    - ``InfiniteWidth`` reads them off the lazily sampled weight by Stein's lemma, < phi r > = A < r r >. Only what A makes
      of gradients is ever at work, so that A is known along gradients that occur; it is zero here on directions whose share
      is below the solver's tolerance. Compare A C G and B C Phi, not A and B, with the other two.

    Args:
        problem: a dense chain of at least two hidden layers, so that it has hidden weights.
        solver: which of the three; with noise, or where activations have kinks, only one of them is left.

    Returns:
        One ``Responses`` per hidden weight, in forward order.

    Raises:
        UnsupportedProblemError: for other solvers, for problems that the solver does not cover, and for those that have
            no response functions: other networks than dense chains, Adam, and noise on activations with kinks.

    Source: Bordelon & Pehlevan 2022, section 3 and eq. 11.
    """
    solver = AlternatingMonteCarlo() if solver is None else solver
    _require_responses(problem)
    if _solutions.dispatch(type(solver)) is _solutions.dispatch(
        object
    ):  # before its own check, which may send elsewhere
        _solutions(solver, problem)
    solver.check(problem)
    names = problem.network.paths[1:-1]
    per_weight = list(zip(*_solutions(solver, problem), strict=True))
    return tuple(_averaged(problem, name, pairs) for name, pairs in zip(names, per_weight, strict=True))


def _require_responses(problem: Problem) -> Chain:
    """The problem's chain.

    Raises:
        UnsupportedProblemError: if no solver has response functions of such a problem, whatever its own remedy would be.
    """
    chain = problem.chain
    missing = {
        "a network of another shape": chain is None,
        problem.training.optimizers: problem.training.optimizers != "SGD",
        problem.training.traits.get("rule", ""): problem.training.rule != "gradient",
        "Langevin noise on activations with kinks": bool(problem.temperature)
        and chain is not None
        and not all(activation(layer.activation).smooth for layer in chain.hidden),
    }
    if chain is None or any(missing.values()):
        raise UnsupportedProblemError(
            "Response functions need a dense chain with hidden weights, trained with SGD.",
            got=" and ".join(name for name, present in missing.items() if present),
            remedy="Problem.mlp of a similar chain; no solver computes responses here",
        )
    return chain


@singledispatch
def _solutions(solver: Solver, problem: Problem) -> list[Pairs]:
    """One list of responses per replica."""
    raise UnsupportedProblemError(
        "`solver` must be one that computes response functions.",
        got=type(solver).__name__,
        remedy="solvers.AlternatingMonteCarlo() for smooth activations, solvers.InfiniteWidth() without noise, or "
        "solvers.DeepLinear() for linear chains",
    )


@_solutions.register
def _(solver: AlternatingMonteCarlo, problem: Problem) -> list[Pairs]:
    orders = [found.order for found in solver.order_parameters(problem, problem.steps + 1, progress=False)]
    return [list(zip(order.forward_response[1:], order.backward_response[:-1], strict=True)) for order in orders]


@_solutions.register
def _(solver: DeepLinear, problem: Problem) -> list[Pairs]:
    return [linear_responses(problem, solver)]


@_solutions.register
def _(solver: InfiniteWidth, problem: Problem) -> list[Pairs]:
    posed = rotated(problem)
    draws = solver.neurons * solver.replicas
    tolerance = default_tolerance(problem.gamma0, draws) if solver.tolerance is None else solver.tolerance
    found = []
    for generator in replica_generators(solver.generator, solver.replicas):
        twin = twin_of(posed, solver.neurons, tolerance=tolerance, generator=generator, law="limit", responses=True)
        found.append(twin_responses(posed, twin, tolerance=tolerance))
    return found


_solutions.register(GradientIndependence, _solutions.dispatch(object))  # it drops what it would be asked for


def _averaged(problem: Problem, name: str, pairs: Sequence[tuple[Tensor, Tensor]]) -> Responses:
    shaped = [(_shaped(problem, a, "A"), _shaped(problem, b, "B")) for a, b in pairs]
    forward, backward = ([pair[end] for pair in shaped] for end in (0, 1))
    mean = Responses(name, torch.stack(forward).mean(0), torch.stack(backward).mean(0))
    if len(pairs) == 1:
        return mean
    return replace(mean, stderr=Responses(name, standard_error(forward), standard_error(backward)))


def _shaped(problem: Problem, matrix: Float[Tensor, "left right"], which: str) -> Tensor:
    times, row = problem.steps + 1, (problem.samples,)
    several = (problem.samples, problem.outputs) if problem.outputs > 1 else row
    left, right = (row, several) if which == "A" else (several, row)
    return matrix.reshape(times, *left, times, *right).to(problem.dtype)
