"""The lazy limit gamma0 -> 0: kernels stay as initialised, and the outputs follow the tangent kernel.

Without weight decay f(t) = K I(t), where I is moved along the error signal Delta as the optimizer moves everything that is
linear in it (``descent``); that is exact at any learning rate, and for squared error at a constant one it is solved in
closed form (``squared_error``). With weight decay lambda the learned part of the weights is still of order gamma0, but
their initial part shrinks as a(t), which is (1 - eta lambda)^t without momentum, and takes the kernels with it. The outputs
are linear in the learned part,

    f(t) = sum_{s<t} w(t, s) K(t, s) Delta(s),

with a and w of ``descent.propagators``, where K(t, s) pairs the gradients at a(t) W(0) with those at a(s) W(0), the ones
that the update of step s followed.

Where weights learn by another rule than the gradient (``parameterization.learning_rule``), the outputs follow

    K = sum_{l<=L} rho^{L-l} G^{l+1} Phi^l,

as a pseudo-gradient of weight l is sent back through L - l matrices, each of which has the correlation rho with the one that
the gradient is sent back through; rho is zero but for feedback alignment (Bordelon & Pehlevan 2022, arXiv:2210.02157, Table 2).
"""

from __future__ import annotations

from itertools import count

import numpy as np
import torch
from torch import Tensor

from torch_dmft.core.errors import ConvergenceError
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.theory.chain import Chain
from torch_dmft.theory.chains.assembly import assemble, require_chain
from torch_dmft.theory.chains.descent import Descent, propagators, weighted_sum_of_tensors
from torch_dmft.theory.chains.initial_kernels import ChainKernels, tangent_kernel
from torch_dmft.theory.chains.squared_error import error_scale, lazy_outputs
from torch_dmft.theory.chains.uniform_start import kernels_of
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.stepping import error_signal, require_finite, track

_MOST_CALLS = 50_000  # of the error signal in one integration: half a minute


def lazy_limit(
    problem: Problem,
    record: Tensor,
    *,
    two_time: bool | float,
    flow: bool = False,
    order: int = 1024,
    progress: bool = False,
) -> Trajectory:
    """The limit gamma0 -> 0 of a dense chain at the recorded steps.

    Args:
        problem: what to solve.
        record: ``(time,)`` steps to keep.
        two_time: whether to keep kernels at pairs of times.
        flow: gradient flow at the times eta * step instead of discrete steps.
        order: the largest number of Hermite terms for smooth activations.
        progress: whether to show a bar.
    """
    chain = require_chain(problem, "The lazy limit")
    input_kernel = problem.input_kernel.to(torch.float64)
    if "decay" in problem.training.traits:
        outputs, forward, backward = _decaying(problem, input_kernel, record, order, two_time, progress)
    else:
        kernels = kernels_of(problem, chain, order=order).at()
        outputs = _outputs(problem, _moving(problem, chain, kernels), record, flow=flow)
        forward = [_constant(kernel, len(record), two_time) for kernel in kernels.forward]
        backward = [_constant(kernel, len(record), two_time) for kernel in kernels.backward]
    identity = torch.eye(chain.outputs, dtype=input_kernel.dtype, device=input_kernel.device)
    return assemble(
        problem,
        chain,
        record,
        outputs,
        forward,
        [torch.einsum("...mn,cd->...mcnd" if not two_time else "tmsn,cd->tmcsnd", g, identity) for g in backward],
        origin="static NTK (N=inf)",
        metadata={"time": "continuous" if flow else "discrete"},
    )


def _moving(problem: Problem, chain: Chain, kernels: ChainKernels) -> Tensor:
    """The kernel that the outputs follow, ``(sample, sample)``: the NTK, or that of a learning rule."""
    if problem.training.rule == "gradient":
        return kernels.ntk
    shares = [problem.training.rho ** (chain.depth - layer) for layer in range(chain.depth)]
    return tangent_kernel(
        chain, kernels.forward, [share * g for share, g in zip(shares, kernels.backward, strict=True)]
    )


def _outputs(problem: Problem, ntk: Tensor, record: Tensor, *, flow: bool) -> Tensor:
    """Outputs at the recorded steps: in closed form for squared error, else step by step or integrated."""
    plain = not problem.training.traits.keys() - {"momentum", "uniform starts", "rule"}
    scale = error_scale(problem) if plain else None
    if scale is None:
        return (_flow if flow else _descend)(problem, ntk, record)
    return lazy_outputs(problem, ntk, record, scale, flow=flow)


def _descend(problem: Problem, ntk: Tensor, record: Tensor) -> Tensor:
    """f(t) = K I(t), where the optimizer moves I along the error signal."""
    f = ntk.new_zeros(problem.samples, problem.outputs)
    drive, descent = torch.zeros_like(f), Descent(problem.training, weighted_sum_of_tensors)
    outputs, kept = [], set(record.tolist())
    for step in range(int(record[-1]) + 1):
        if step > 0:
            drive = descent.update(step - 1, drive, error_signal(problem, f, step - 1))
            f = ntk @ drive
            require_finite(problem, f, step)
        if step in kept:
            outputs.append(f)
    return torch.stack(outputs)


def _flow(problem: Problem, ntk: Tensor, record: Tensor) -> Tensor:
    """df/dt = K Delta(f), integrated to the precision that the loss is computed in."""
    from scipy.integrate import solve_ivp  # rarely needed, and slow to import

    precision = max(1e-10, 100 * torch.finfo(problem.dtype).eps)
    calls = count()

    def velocity(_: float, flat: np.ndarray) -> np.ndarray:
        if next(calls) > _MOST_CALLS:
            raise ConvergenceError(
                f"Gradient flow could not be integrated with {_MOST_CALLS} evaluations of the loss.",
                remedy='StaticNTK(time="discrete"), a smaller lr, or inputs in float64',
            )
        f = torch.as_tensor(flat, dtype=ntk.dtype, device=ntk.device).reshape(problem.samples, problem.outputs)
        return (ntk @ error_signal(problem, f, 0)).flatten().cpu().numpy()

    times = problem.training.times[record.cpu()].numpy()
    end = max(times[-1], float(problem.training.times[-1]), 1e-12)  # an interval even if only t = 0 is recorded
    start = torch.zeros(problem.samples * problem.outputs, dtype=ntk.dtype).numpy()
    integrated = solve_ivp(velocity, (0.0, end), start, method="LSODA", t_eval=times, rtol=precision, atol=precision)
    if not integrated.success:
        raise ConvergenceError(
            "Gradient flow could not be integrated.",
            got=integrated.message,
            remedy='StaticNTK(time="discrete"), or a smaller lr',
        )
    return torch.as_tensor(integrated.y.T, dtype=ntk.dtype, device=ntk.device).reshape(
        len(times), problem.samples, problem.outputs
    )


def _decaying(
    problem: Problem, input_kernel: Tensor, record: Tensor, order: int, two_time: bool | float, progress: bool
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Outputs and kernels under weight decay: ``(outputs, forward, backward)``."""
    chain = require_chain(problem, "StaticNTK")
    last, samples = int(record[-1]), problem.samples
    left, weights, _ = (each.to(input_kernel.device) for each in propagators(problem.training, last + 1))
    kernels = kernels_of(problem, chain, tuple(left.tolist()), order=order)
    position = {step: at for at, step in enumerate(record.tolist())}
    shape = (len(record), samples, len(record), samples) if two_time else (len(record), samples, samples)
    forward = [input_kernel.new_zeros(shape) for _ in range(chain.depth + 1)]
    backward = [input_kernel.new_zeros(shape) for _ in range(chain.depth)]
    errors, outputs = input_kernel.new_zeros(0, samples, problem.outputs), []
    for step in track(range(last + 1), "static NTK with weight decay", progress=progress):
        block = kernels.between(step, slice(0, step + 1))
        past = block.ntk.reshape(samples, step + 1, samples)[:, :step]
        f = torch.einsum("s,msn,snc->mc", weights[step, :step], past, errors)
        require_finite(problem, f, step)
        if step in position:
            at = position[step]
            outputs.append(f)
            for store, found in zip((*forward, *backward), (*block.forward, *block.backward), strict=True):
                rows = found.reshape(samples, step + 1, samples)
                if two_time:
                    earlier = rows[:, record[: at + 1]]
                    store[at, :, : at + 1] = earlier
                    store[: at + 1, :, at] = earlier.permute(1, 2, 0)
                else:
                    store[at] = rows[:, step]
        if step < last:
            errors = torch.cat([errors, error_signal(problem, f, step)[None]])
    return torch.stack(outputs), forward, backward


def _constant(kernel: Tensor, times: int, two_time: bool | float) -> Tensor:
    """The same kernel at every pair of recorded times."""
    samples = len(kernel)
    if two_time:
        return kernel[None, :, None].expand(times, samples, times, samples)
    return kernel.expand(times, samples, samples)
