"""Which numbers of a dense chain start uniform, and what closed forms with Gaussian fields make of it.

A hidden field is a sum over infinitely many neurons, Gaussian whatever the weights are drawn from. Not so the biases, one
number per neuron, the fields of the first layer, sums of D numbers, and the readout.
"""

from __future__ import annotations

import torch

from torch_dmft.core.activation import activation
from torch_dmft.core.errors import UnsupportedProblemError
from torch_dmft.parameterization.uniform import UNIFORM
from torch_dmft.theory.chain import Chain
from torch_dmft.theory.chains.assembly import require_chain
from torch_dmft.theory.chains.initial_kernels import InitialKernels
from torch_dmft.theory.gaussian.kinked_moments import is_straight
from torch_dmft.theory.problem import Problem

_SLOPES = 1e-6
"""Where slopes on both sides of zero are compared."""


def uniform_biases(problem: Problem) -> frozenset[int]:
    """The hidden layers of a chain, counted from 0, whose biases start uniform."""
    starts, paths = problem.training.starts, problem.network.paths
    return frozenset(at for at, path in enumerate(paths[:-1]) if starts.get(f"{path}.bias") == UNIFORM)


def require_gaussian_fields(problem: Problem, solver: str) -> None:
    """Refuse uniform input weights before a layer that is not linear, whose fields are no Gaussian ones at any width.

    Raises:
        UnsupportedProblemError: if there are some.
    """
    chain = require_chain(problem, solver)
    first = f"{problem.network.paths[0]}.weight"
    if problem.training.starts.get(first) == UNIFORM and chain.hidden[0].activation != "linear":
        raise UnsupportedProblemError(
            f"{solver} takes the fields of the first layer for Gaussian ones.",
            got=f"a uniform start of {first}, whose fields are sums of {chain.input_dim} uniform numbers",
            remedy="solvers.InfiniteWidth(), which draws them as they are; or assume_gaussian=True for Gaussian weights of "
            "their size",
        )


def require_gaussian_readout(problem: Problem, solver: str) -> None:
    """Refuse a uniform readout, which is the gradient of the last hidden layer, where more than its variance matters.

    Raises:
        UnsupportedProblemError: if it is.
    """
    last = f"{problem.network.paths[-1]}.weight"
    if problem.training.starts.get(last) == UNIFORM:
        raise UnsupportedProblemError(
            f"{solver} takes the initial gradients of the last hidden layer for Gaussian ones.",
            got=f"a uniform start of {last}",
            remedy="solvers.InfiniteWidth(), which draws it as it is; or assume_gaussian=True for Gaussian weights of its size",
        )


def require_no_start_on_a_kink(problem: Problem, solver: str) -> None:
    """Refuse rows whose fields are exactly zero, on a corner of the activation, and leave it by a trained bias.

    Each neuron then takes one of two slopes at the first step, however small that is.

    Raises:
        UnsupportedProblemError: if there are some.
    """
    chain = require_chain(problem, solver)
    zero = ~problem.tensor.flatten(1).any(dim=1)
    if not bool(zero.any()):
        return
    corner = first_corner(chain)
    if corner is not None:
        row = int(zero.nonzero()[0])
        raise UnsupportedProblemError(
            f"{solver} needs fields that stay on one side of a corner of the activation.",
            got=f"row {row} of zeros before {corner}, whose biases start at zero and are trained",
            remedy="solvers.InfiniteWidth(), or biases that do not start at zero, or no biases",
        )


def first_corner(chain: Chain) -> str | None:
    """The activation at whose corner the field of a row of zeros starts, and which a trained bias has it leave."""
    for layer in chain.hidden:
        phi = activation(layer.activation)
        if layer.bias_std:
            return None
        left, right = (phi.first(torch.tensor(x, dtype=torch.float64, device="cpu")) for x in (-_SLOPES, _SLOPES))
        if layer.bias_std is not None and abs(float(left - right)) > 10 * _SLOPES:
            return layer.activation
        if float(phi.function(torch.zeros((), dtype=torch.float64, device="cpu"))) != 0.0:
            return None
    return None


def operations_per_pair(problem: Problem) -> float:
    """What the initial kernels of a chain cost per pair of rows, all layers together."""
    chain = require_chain(problem, "The lazy limit")
    uniform, total = uniform_biases(problem), 0.0
    for at, layer in enumerate(chain.hidden):
        phi = activation(layer.activation)
        is_averaged = at in uniform and bool(layer.bias_std)
        is_curved = phi.kinks and not is_straight(phi, torch.zeros((), dtype=torch.float64, device="cpu"))
        total += 500.0 * (1 if not is_averaged else 10_000 if is_curved else 16)
    return total


def kernels_of(
    problem: Problem, chain: Chain, scales: tuple[float, ...] = (1.0,), *, order: int = 1024
) -> InitialKernels:
    """The initial kernels of a problem's chain, in float64, its biases as they start."""
    kernel = problem.input_kernel.to(torch.float64)
    return InitialKernels(chain, kernel, scales, order=order, uniform=uniform_biases(problem))
