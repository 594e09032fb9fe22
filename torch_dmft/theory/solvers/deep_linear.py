"""Deep linear networks, solved exactly: gradient descent itself, in Gaussian latents (``latent_chain``).

Eliminating the latents gives the paper's eq. 11. Time is marched once, so a fixed point need not be iterated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_dmft.core.errors import UnsupportedProblemError
from torch_dmft.core.numbers import require_number
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.theory.chain import Chain
from torch_dmft.theory.chains.assembly import about_the_probe, assemble, inner_products, require_chain
from torch_dmft.theory.chains.descent import Descent, propagators
from torch_dmft.theory.chains.latent_chain import LatentChain, stacked, weighted_sum
from torch_dmft.theory.cost import Cost, deterministic_cost
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.solver import SEES, method, require_training
from torch_dmft.theory.stepping import error_signal, require_finite, track


@method
@dataclass(frozen=True)
class DeepLinear:
    """Exact infinite-width dynamics of deep linear networks (paper, section 4.1, eq. 11) in discrete time.

    h^{l+1} = g W^l h^l / sqrt(N_l), with W in coordinates of the Gaussians that training has met (``latent_chain``): gradient
    descent in these is the closure of eq. 11, without its fixed point.

    Covers any inputs and targets, every loss, several outputs, gains, biases, unequal widths, momentum, weight decay
    and minibatches. Of initial weights and biases only the variances matter, uniform ones included. Computes in float64; the
    result is exact to round-off and has no standard error.

    With n latents per layer the cost is O(L T n^2 P) time and O(L n^2) memory. n grows by at most twice the number of
    outputs per layer and step, and saturates where training is smooth (about a hundred per output). The matrices of eq. 11,
    over all pairs of times, take O(P^3 T^3) and O(P^2 T^2) (Table 1). Refuses nonlinear activations, networks that are no
    dense chain, Langevin noise and Adam.

    Attributes:
        tolerance: a direction counts as new if it is more than this share of a vector's norm.
    """

    tolerance: float = 1e-12

    def __post_init__(self) -> None:
        """Refuse invalid settings."""
        require_number("tolerance", self.tolerance, above=0, below=1)

    def check(self, problem: Problem) -> None:
        """Refuse networks other than linear chains.

        Raises:
            UnsupportedProblemError: naming the layers that are not linear.
        """
        chain = require_chain(problem, "DeepLinear")
        require_training(problem, "DeepLinear", SEES | {"uniform starts"})
        require_linear(chain, "DeepLinear")

    def estimate(
        self, problem: Problem, record: Iterable[int] | int | Tensor | None = None, *, two_time: bool | float = False
    ) -> Cost:
        """What solving the problem will cost, with about a hundred latents for every output."""
        chain, recorded = require_chain(problem, "DeepLinear"), problem.number_recorded(record)
        rows, states = problem.samples + problem.outputs, problem.steps + 1
        latents = min(problem.samples, chain.input_dim) + problem.outputs * min(
            2.0 * chain.depth * problem.steps, 100.0
        )
        return deterministic_cost(
            problem,
            recorded,
            two_time=two_time,
            work=12.0 * chain.depth * states * latents**2 * rows,
            calls=60 * chain.depth * states,
            numbers=2.0 * (chain.depth + 2) * recorded * latents * rows + 6.0 * chain.depth * latents**2,
        )

    def run(self, problem: Problem, record: Tensor, *, two_time: bool | float, progress: bool) -> Trajectory:
        """March training in time; see ``Solver.run``."""
        chain = require_chain(problem, "DeepLinear")
        network = LatentChain(
            chain, problem.gamma0, _input_coordinates(problem, chain, self.tolerance), tolerance=self.tolerance
        )
        parameters = network.parameters()
        descent: Descent[list[Tensor]] = Descent(problem.training, weighted_sum)
        left = propagators(problem.training, int(record[-1]) + 1)[0].tolist()
        kept = set(record.tolist())
        outputs, features, gradients = [], [], []
        for step in track(range(int(record[-1]) + 1), "deep linear theory", progress=progress):
            x, g = network.passes(parameters, left[step])
            f = x[-1].mT / problem.gamma0
            require_finite(problem, f, step)
            if step in kept:
                outputs.append(f)
                features.append(x)
                gradients.append(g)
            if step < int(record[-1]):
                ascent = network.ascent(x, g, error_signal(problem, f, step))
                parameters = descent.update(step, parameters, ascent)
        forward = [
            inner_products(stacked([at[layer] for at in features]), two_time=two_time)
            for layer in range(chain.depth + 1)
        ]
        backward = []
        for layer in range(chain.depth):
            same_for_all_samples = stacked([at[layer] for at in gradients])[:, None].expand(-1, problem.samples, -1, -1)
            backward.append(inner_products(same_for_all_samples, two_time=two_time))
        facts: dict[str, str | int | float | bool | None] = {"latents": max(network.sizes)}
        origin, f = "deep linear theory (N=inf)", torch.stack(outputs)
        trajectory = assemble(problem, chain, record, f, forward, backward, origin=origin, metadata=facts)
        return about_the_probe(problem, trajectory)


def require_linear(chain: Chain, solver: str) -> None:
    """Refuse chains with a nonlinear activation.

    Raises:
        UnsupportedProblemError: naming them.
    """
    curved = [
        f"{number} ({layer.activation})"
        for number, layer in enumerate(chain.hidden, start=1)
        if layer.activation != "linear"
    ]
    if curved:
        raise UnsupportedProblemError(
            f"{solver} needs linear activations in every hidden layer.",
            got=f"layers {', '.join(curved)}",
            remedy="solvers.InfiniteWidth() or solvers.AlternatingMonteCarlo()",
        )


def _input_coordinates(problem: Problem, chain: Chain, tolerance: float) -> Tensor:
    """Vectors with the inner products Phi^0, in as few dimensions as the data have: ``(coordinate, sample)``."""
    rows = problem.tensor.flatten(1).double() / math.sqrt(chain.input_dim)
    values, vectors = torch.linalg.eigh(rows @ rows.mT)
    used = values > tolerance * values[-1]
    return (vectors[:, used] * values[used].sqrt()).mT
