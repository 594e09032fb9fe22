"""How far features will move: the error of the static NTK, predicted at initialisation.

To first order in gamma0 the fields of layer l follow I(t), what lazy training has summed up of eta Delta,

    h(t) = u + gamma0 sum_a H_ma I_a(t) k_a,        z(t) = r + gamma0 sum_a Z_ma I_a(t) phi_a,        k = phi'(u) r,

where H and Z couple a row to the rows trained on through what the weights below (above) learn:

    H^l = g^2 Phi^{l-1} + [biased] + g^2 S^{l-1} H^{l-1},        Z^l = R^l + (g^2 N_{l+1} / N_l) S^{l+1} Z^{l+1},

elementwise, with S^l = <phi' phi'>, R^l the covariance of r and Z^L = R^L = 1. (Parts of Z with phi'' are left out, as they
need not exist.) Kernels move by the squares of these, and by products of zeroth and second order of the same size.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from torch_dmft.core.errors import UnsupportedProblemError
from torch_dmft.theory.chain import Chain
from torch_dmft.theory.chains.assembly import require_chain
from torch_dmft.theory.chains.descent import Descent, weighted_sum_of_tensors
from torch_dmft.theory.chains.initial_kernels import ChainKernels, InitialKernels
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.stepping import error_signal, require_finite

_FAR = 1.0
"""Where the expansion means nothing, and nothing depends on it."""


def feature_movement(problem: Problem) -> float:
    """How much the kernels of a dense chain will have changed at the end of training, relative to their initial values.

    gamma0^2 sum_l (|<dh dh>| / |<u u>| + |<dz dz>| / |<r r>|), in Frobenius norms over rows: of the worst kernel, which
    inherits from all layers, within a factor of about three as long as it is small. Under weight decay it is relative to
    what is left of the initial weights. Biases are taken for Gaussian ones. Beyond 1 it says no more than that features move
    far. Costs what stepping ``StaticNTK`` without weight decay does, at most.

    Raises:
        UnsupportedProblemError: if the network is not a dense chain, or learns by another rule than the gradient.
        ConvergenceError: if lazy training diverges.
    """
    chain = require_chain(problem, "feature_movement")
    if problem.training.rule != "gradient":
        raise UnsupportedProblemError(
            "How far features move is known of learning by the gradient.",
            got=problem.training.traits["rule"],
            remedy="solvers.InfiniteWidth(), whose kernels show it",
        )
    lazy = InitialKernels(chain, problem.input_kernel.double()).at()
    moved = 0.0
    for left, drive in _drives(problem, lazy.ntk):
        moved = problem.gamma0**2 * _squares(chain, lazy, drive) / max(left**2, torch.finfo(torch.float64).tiny)
        if moved > _FAR:
            break
    return moved


def _drives(problem: Problem, ntk: Tensor) -> Iterator[tuple[float, Tensor]]:
    """What is left of the initial weights, and I, ``(sample, output)``.

    After 0, 1, 2, 4, ... steps of lazy training, and at its end or when it stands still.
    """
    state = ntk.new_zeros(problem.samples * problem.outputs + 1)  # the last entry follows an initial weight of one
    state[-1] = 1.0
    descent, before = Descent(problem.training, weighted_sum_of_tensors), state
    for step in range(problem.steps):
        drive = state[:-1].reshape(problem.samples, problem.outputs)
        if step & (step - 1) == 0:
            yield float(state[-1]), drive
            steady = problem.batches is None and "schedule" not in problem.training.traits
            if step and steady and _stands_still(state[:-1] - before[:-1], drive, (problem.steps - step) / step):
                return
            before = state
        outputs = ntk @ drive
        require_finite(problem, outputs, step)
        error = error_signal(problem, outputs, step)
        state = descent.update(step, state, torch.cat([error.flatten(), error.new_zeros(1)]))
    yield float(state[-1]), state[:-1].reshape(problem.samples, problem.outputs)


def _stands_still(change: Tensor, drive: Tensor, times: float) -> bool:
    """Whether the change would stay negligible if it were repeated ``times`` times."""
    return float(change.norm()) * max(times, 1.0) < 1e-2 * float(drive.norm())


def _squares(chain: Chain, lazy: ChainKernels, drive: Tensor) -> float:
    """The sum over layers, per gamma0^2."""
    pairs = drive @ drive.T  # I_a . I_b, summed over outputs
    noise, early = _couplings_from_above(chain, lazy)
    moved, forward = 0.0, torch.zeros_like(lazy.ntk)
    for at, layer in enumerate(chain.hidden):
        slopes = lazy.slopes[at - 1] if at else torch.zeros_like(lazy.ntk)
        learned = layer.gain**2 * lazy.forward[at]
        forward = learned + float(layer.bias_std is not None) + layer.gain**2 * slopes * forward
        fields = forward @ (lazy.slopes[at] * noise[at] * pairs) @ forward.T
        gradients = early[at] @ (lazy.forward[at + 1] * pairs) @ early[at].T / chain.outputs
        moved += _ratio(fields, learned + (layer.bias_std or 0.0) ** 2) + _ratio(gradients, noise[at])
    return moved


def _couplings_from_above(chain: Chain, lazy: ChainKernels) -> tuple[list[Tensor], list[Tensor]]:
    """R^1..R^L and Z^1..Z^L."""
    noise, coupling = [torch.ones_like(lazy.ntk)], [torch.ones_like(lazy.ntk)]
    for at in range(chain.depth - 1, 0, -1):
        above, below = chain.hidden[at], chain.hidden[at - 1]
        slopes = above.gain**2 * above.width_ratio / below.width_ratio * lazy.slopes[at]
        noise.insert(0, slopes * noise[0])
        coupling.insert(0, noise[0] + slopes * coupling[0])
    return noise, coupling


def _ratio(change: Tensor, start: Tensor) -> float:
    return float(change.norm() / start.norm().clamp(min=1e-300))
