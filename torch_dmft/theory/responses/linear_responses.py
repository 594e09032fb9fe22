"""The response functions of deep linear networks, from their exact kernels (paper, eq. 11)."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_dmft.theory.chains.assembly import require_chain
from torch_dmft.theory.chains.order_parameters import OrderParameters, SiteSampler
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.solvers.deep_linear import DeepLinear


def linear_responses(problem: Problem, solver: DeepLinear) -> list[tuple[Tensor, Tensor]]:
    """A^l and B^l of the hidden weights l = 1..L-1 of a linear chain.

    A linear site, h = a_h u + K_h g and g = a_z r + K_z h, is solved by inverting it:

        A^l = (1 - K_h K_z)^{-1} K_h a_z,    B^{l-1} = (1 - K_z K_h)^{-1} K_z a_h,

    where K_h holds A^{l-1} and K_z holds B^l. Couplings point forward in time, so that sweeping over the layers ends after
    as many sweeps as a signal needs to go through all layers and times.

    Args:
        problem: a linear chain.
        solver: finds its kernels.

    Returns:
        A and B between rows (t, mu) and (t, mu, c), for each hidden weight.
    """
    chain = require_chain(problem, "DeepLinear")
    times, samples, outputs = problem.steps + 1, problem.samples, problem.outputs
    exact = solver.run(problem, torch.arange(times), two_time=True, progress=False)
    rows, rows_c = times * samples, times * samples * outputs
    nothing = torch.zeros(rows, rows_c, dtype=torch.float64, device=problem.device)
    order = OrderParameters(
        exact.outputs.double(),
        tuple(layer.forward.values.double().reshape(rows, rows) for layer in exact.layers),
        tuple(layer.backward.values.double().reshape(rows_c, rows_c) for layer in exact.layers),
        (nothing,) * chain.depth,
        (nothing.mT,) * chain.depth,
    )
    couplings = SiteSampler(
        problem,
        chain,
        times,
        neurons=2,
        generator=torch.Generator(nothing.device),
        responses=True,
        equal_time=True,
    )
    for _ in range(chain.depth * times):
        forward, backward = [nothing], []
        for site in couplings.sites(order):
            one, one_c = (torch.eye(size, dtype=nothing.dtype, device=nothing.device) for size in (rows, rows_c))
            k_h, k_z = site.forward_coupling, site.backward_coupling
            a_h, a_z = (
                site.forward_gain.repeat_interleave(samples),
                site.backward_gain.repeat_interleave(rows_c // times),
            )
            forward.append(torch.linalg.solve(one - k_h @ k_z, k_h * a_z))
            backward.append(torch.linalg.solve(one_c - k_z @ k_h, k_z * a_h))
        new = OrderParameters(
            order.outputs, order.forward, order.backward, tuple(forward[:-1]), (*backward[1:], nothing.mT)
        )
        before, order = order, new
        old, fresh = ((*each.forward_response, *each.backward_response) for each in (before, order))
        if all(torch.equal(one, other) for one, other in zip(old, fresh, strict=True)):
            break
    return list(zip(order.forward_response[1:], order.backward_response[:-1], strict=True))
