"""Covariances over initialisations: how the numbers of networks of one width fluctuate together."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from torch_dmft.core.arguments import checked
from torch_dmft.core.errors import InvalidInputError, NotRecordedError
from torch_dmft.core.listed import listed
from torch_dmft.core.memory import require_memory
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.core.users_functions import called

Observable = Callable[[Trajectory], Tensor]
"""A function of one network's trajectory, such as ``lambda run: run.layers[1].forward.array[-1]``."""


@checked
def covariance(
    networks: Trajectory, observable: Observable, other: Observable | None = None
) -> Float[Tensor, "entry entry_of_other"]:
    r"""The covariance of all entries of two observables over initialisations.

    .. math:: \mathrm{Cov}(a_i, b_j) = \frac{1}{R - 1} \sum_r (a_i^r - \bar a_i) (b_j^r - \bar b_j),

    over the R networks of a ``solvers.FiniteWidth`` answer. Kernels and outputs have Cov = Sigma / N to leading order, so
    width times this estimates Sigma. Of Gaussian numbers the entry has the variance (C_ii C_jj + C_ij^2) / (R - 1).

    Args:
        networks: the answer of ``solvers.FiniteWidth``.
        observable: a, any function of one network's trajectory.
        other: b, None for a itself.

    Returns:
        The matrix, entries in the order of ``flatten``, in float64.

    Raises:
        NotRecordedError: if the answer is not a mean over networks.
        InsufficientMemoryError: if the matrix would not fit.

    Source: Bordelon & Pehlevan 2022, section 5.2.
    """
    if not networks.replicas:
        raise NotRecordedError(
            "Expected an ensemble of finite networks.",
            got=networks.origin,
            remedy="solve with solvers.FiniteWidth(width)",
        )
    a = _centered(networks, observable)
    b = a if other is None else _centered(networks, other)
    require_memory(
        8 * a.shape[1] * b.shape[1],
        a.device,
        what=f"A covariance of {a.shape[1]} with {b.shape[1]} numbers",
        remedy="observables of fewer entries, such as one time or one pair of samples",
    )
    return a.T @ b / (len(a) - 1)


def _centered(networks: Trajectory, observable: Observable) -> Float[Tensor, "network entry"]:
    remedy = "a function of a trajectory that returns a tensor, such as lambda run: run.outputs[-1]"
    found = [called("observable", observable, run, remedy=remedy) for run in networks.replicas]
    if not all(isinstance(one, Tensor) and one.shape == found[0].shape for one in found):
        kinds = listed(dict.fromkeys(type(one).__name__ for one in found))
        raise InvalidInputError("An observable must be a tensor of one shape.", got=kinds, remedy=remedy)
    rows = torch.stack([one.detach().double().flatten() for one in found])
    return rows - rows.mean(0)
