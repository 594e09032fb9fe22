"""From kernels and outputs of a dense chain to a ``Trajectory``: names, output axes and the NTK."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torch_dmft.core.errors import UnsupportedProblemError
from torch_dmft.core.kernel import Kernel
from torch_dmft.core.trajectory import LayerKernels, Trajectory
from torch_dmft.theory.chain import Chain
from torch_dmft.theory.problem import Problem


def require_chain(problem: Problem, solver: str) -> Chain:
    """The problem's dense chain.

    Raises:
        UnsupportedProblemError: if its network is something else.
    """
    if problem.chain is None:
        raise UnsupportedProblemError(
            f"{solver} needs a plain chain of linear layers and activations.",
            got="a network of another shape",
            remedy="solvers.InfiniteWidth(), or solve(problem) without a solver, which takes the one that fits",
        )
    return problem.chain


def about_the_probe(problem: Problem, found: Trajectory) -> Trajectory:
    """The answer of a method that works on all rows of a problem, restricted to the rows of the probe."""
    if problem.probe is None:
        return found
    rows = problem.probe
    kept = found.at_rows(rows.cpu())
    losses = torch.stack([problem.kept_loss(f) for f in kept.outputs]).to(found.losses)
    known = bool((rows < problem.train_samples).all())
    return replace(kept, losses=losses, targets=problem.target_values[rows].cpu() if known else None)


def inner_products(fields: Float[Tensor, "time *row neuron"], *, two_time: bool | float) -> Float[Tensor, ...]:
    """Inner products over the last axis, K[(t, row), (s, row')], at equal times or at two."""
    time, *row, _ = fields.shape
    flat = fields.reshape(1 if two_time else time, -1, fields.shape[-1])
    products = flat @ flat.mT
    return products.reshape(time, *row, time, *row) if two_time else products.reshape(time, *row, *row)


def assemble(
    problem: Problem,
    chain: Chain,
    steps: Int[Tensor, " time"],
    outputs: Float[Tensor, "time sample output"],
    forward: Sequence[Tensor],
    backward: Sequence[Tensor],
    *,
    origin: str,
    metadata: Mapping[str, str | int | float | bool | None] | None = None,
) -> Trajectory:
    """Complete a solution with the readout's backward kernel, the NTK and the losses.

    Per unit of the base learning rate, weight l < L adds (N_L / N_{l+1}) G^{l+1} (g^2 Phi^l + [biased]) to the NTK, the
    readout Phi^L + [biased].

    Args:
        problem: what was solved.
        chain: its network.
        steps: the recorded steps.
        outputs: f at these steps.
        forward: Phi^0..Phi^L, each ``(time, sample, sample)`` or ``(time, sample, time, sample)``.
        backward: G^1..G^L with output axes, ``(time, sample, output, [time,] sample, output)``.
        origin: what a legend calls the solution.
        metadata: facts of the run.

    Returns:
        The trajectory in the problem's dtype, without standard error.
    """
    readout = _identity_over_outputs(forward[-1], chain.outputs)
    layers, shares = [], []
    for weight, (name, phi, g) in enumerate(zip(problem.network.paths, forward, [*backward, readout], strict=True)):
        if weight < chain.depth:
            hidden = chain.hidden[weight]
            gain, biased, scale = hidden.gain, hidden.bias_std is not None, 1 / hidden.width_ratio
        else:
            gain, biased, scale = 1.0, chain.readout_bias, 1.0
        ntk = scale * g * _over_outputs(gain**2 * phi + float(biased))
        shares.append(_kernel(ntk, chain.outputs))
        layers.append(LayerKernels(name, Kernel(phi), _kernel(g, chain.outputs), shares[-1]))
    dtype = problem.dtype
    return Trajectory(
        steps=steps,
        outputs=outputs,
        losses=torch.stack([problem.training_loss(f.to(dtype)) for f in outputs]),
        layers=tuple(layers),
        ntk=Kernel(torch.stack([share.array for share in shares]).sum(0)),
        origin=origin,
        training=problem.training,
        train=problem.train,
        targets=problem.target_values if problem.samples == problem.train_samples else None,
        metadata=metadata or {},
    ).to(dtype)


def _over_outputs(forward: Tensor) -> Tensor:
    """Give a kernel over samples output axes of size one, so that it multiplies one over (sample, output)."""
    return forward.unsqueeze(-1).unsqueeze(2)


def _identity_over_outputs(forward: Tensor, outputs: int) -> Tensor:
    identity = torch.eye(outputs, dtype=forward.dtype, device=forward.device)
    return torch.ones_like(_over_outputs(forward)) * identity.reshape(outputs, *[1] * (forward.ndim - 2), outputs)


def _kernel(array: Tensor, outputs: int) -> Kernel:
    return Kernel(array.squeeze(-1).squeeze(2) if outputs == 1 else array)
