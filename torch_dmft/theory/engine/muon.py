r"""Muon at any width, infinite ones included.

On orthonormal bases Q' of gradients and Q of inputs, every gradient of a lazily sampled matrix is Q'^T g Q with the gradient g
of its core, and so is every average of them, as directions that come later only add rows and columns of zeros. Then

.. math:: p(Q'^T u\, Q) = Q'^T p(u)\, Q, \qquad
   p(X) = c_1 X + c_2 X X^T X + c_3 X X^T X X^T X, \qquad |Q'^T u\, Q|_F = |u|_F ,

so that the Newton-Schulz iteration, which is a chain of such polynomials of U/|U|, and the polar factor act on the core: Muon
of a matrix of S x S numbers costs that of one of k' x k. Only what depends on the shape of the whole matrix, a in
``torch_dmft.core.muon``, is taken from it. Decay multiplies what was learned and what was drawn at the start alike.

torch iterates in bfloat16. What it rounds in a matrix of N x N numbers are products of fields of two neurons, as good as random
in its last digits, so that its effect on features averages out: with eight samples it is .7% of a step at N = 64, .5% at 128
and .3% at 512. In the few numbers of a core nothing averages out (1.5%, at any width), so that it is iterated in the precision
of the core, which is where wide networks go. Whole matrices, such as those of finite networks, are iterated in
bfloat16, to the bit as torch does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from torch_dmft.core.muon import newton_schulz

_NOISE = 100.0
"""Singular values below this many units of rounding of the largest are rounding, and have no polar factor."""


class Muon(Optimizer):
    """Muon of matrices, whole ones or cores, and decay alone of numbers that scale a start.

    A group has ``lr``, what the orthogonal factor is multiplied with; ``decay``, the share that a step takes; ``momentum``,
    ``nesterov``, ``ns_coefficients``, ``ns_steps``, ``eps``; ``exact``, for the polar factor in the place of the iteration; and
    ``low``, for an iteration in bfloat16.

    Args:
        groups: parameter groups with all of these.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a step with the gradients that the parameters hold."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter.ndim == 0:
                    parameter.mul_(1 - group["decay"])
                    continue
                gradient, beta = parameter.grad, group["momentum"]
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(gradient)
                buffer = state["momentum_buffer"].lerp_(gradient, 1 - beta)
                update = gradient.lerp(buffer, beta) if group["nesterov"] else buffer
                parameter.mul_(1 - group["decay"])
                used = _used(update)
                factor = polar(update[used]) if group["exact"] else newton_schulz(update[used], group)
                parameter[used].add_(factor, alpha=-group["lr"])
        return loss


def _used(matrix: Tensor) -> tuple[slice, slice]:
    """The block of a matrix outside of which it is zero: a core has room for directions that are still to come."""
    rows, columns = (matrix.any(axis).nonzero().flatten() for axis in (1, 0))
    return slice(int(rows[-1]) + 1 if len(rows) else 0), slice(int(columns[-1]) + 1 if len(columns) else 0)


def polar(matrix: Tensor) -> Tensor:
    """The polar factor U V^T of a matrix U S V^T, without the directions in which it is zero up to rounding: ``(out, in)``."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    if not len(values):
        return matrix.clone()
    known = values > _NOISE * torch.finfo(matrix.dtype).eps * values[0]
    return ((left * known) @ right).to(matrix)
