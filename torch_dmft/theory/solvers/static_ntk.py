"""The lazy limit gamma0 -> 0: kernels stay as initialised, and the outputs follow the tangent kernel.

Without weight decay the update f(t+1) = f(t) + eta K v(t) with v(t) = beta v(t-1) + Delta(t) is exact at any learning
rate; for squared error it is solved in closed form (``squared_error``). With weight decay lambda the learned part of the
weights is still of order gamma0, but their initial part shrinks as a(t) = (1 - eta lambda)^t and takes the kernels with
it. The outputs are linear in the learned part,

    f(t) = eta sum_{s<t} c(t, s) K(t, s) Delta(s),    c(t, s) = sum_{j=s}^{t-1} (1 - eta lambda)^(t-1-j) beta^(j-s),

where K(t, s) pairs the gradients at a(t) W(0) with those at a(s) W(0), the ones that the update of step s followed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from typing import Literal

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from torch_dmft.core.errors import ConvergenceError, InvalidInputError, UnsupportedProblemError
from torch_dmft.core.numbers import require_whole
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.theory.chains.assembly import assemble, require_chain
from torch_dmft.theory.chains.initial_kernels import InitialKernels
from torch_dmft.theory.chains.squared_error import error_scale, lazy_outputs
from torch_dmft.theory.cost import Cost, deterministic_cost
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.stepping import error_signal, require_finite, track

_MOST_CALLS = 50_000  # of the error signal in one integration: half a minute


@dataclass(frozen=True)
class StaticNTK:
    """The infinite-width network in the lazy limit gamma0 -> 0: NNGP and tangent kernel, df/dt = K Delta.

    Covers dense chains with any loss, several outputs, gains, biases, unequal widths, momentum, weight decay and
    minibatches; ``problem.gamma0`` plays no role. Kernels are in closed form for piecewise linear activations and erf
    and by Hermite series for smooth ones. Computes in float64; exact, so there is no standard error.

    With n rows the cost is O(L n^2) for the kernels. Outputs are in closed form for squared error with full batches, O(n^3)
    whatever the number of steps; else they are stepped, O(T n^2), or integrated. With weight decay the kernels change in
    time, and it is O(L T^2 n^2). Memory is O(n^2) beside the answer (the paper's Table 1). Refuses networks that are no dense
    chain, Langevin noise and Adam; gradient flow also momentum, weight decay and minibatches.

    What it leaves out is of order gamma0^2: ``theory.movement`` predicts how much.

    Attributes:
        time: "discrete" for the steps of gradient descent, "continuous" for gradient flow at the times eta * step.
        order: the largest number of Hermite terms for smooth activations.
    """

    time: Literal["discrete", "continuous"] = "discrete"
    order: int = 1024

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        require_whole("order", self.order, at_least=1)
        if self.time not in ("discrete", "continuous"):
            raise InvalidInputError(
                "The time is discrete or continuous.",
                got=f"time={self.time!r}",
                remedy='time="discrete" or time="continuous"',
            )

    def check(self, problem: Problem) -> None:
        """Refuse networks that are no dense chain, and gradient flow where only steps make sense.

        Raises:
            UnsupportedProblemError: naming what is in the way.
        """
        require_chain(problem, "StaticNTK")
        if self.time == "discrete":
            return
        discrete = {
            "momentum": bool(problem.momentum),
            "weight decay": bool(problem.weight_decay),
            "minibatches": problem.batches is not None,
        }
        if any(discrete.values()):
            raise UnsupportedProblemError(
                "Gradient flow is plain full-batch descent in the limit of small steps.",
                got=" and ".join(name for name, present in discrete.items() if present),
                remedy='StaticNTK(time="discrete")',
            )

    def estimate(
        self, problem: Problem, record: Iterable[int] | int | Tensor | None = None, *, two_time: bool = False
    ) -> Cost:
        """What solving the problem will cost, with some hundred Hermite terms for every pair of rows."""
        chain, recorded = require_chain(problem, "StaticNTK"), len(problem.recorded(record))
        samples, states = problem.samples, problem.steps + 1
        times, pairs = (states, states**2 / 2) if problem.weight_decay else (1, 1.0)
        return deterministic_cost(
            problem,
            recorded,
            two_time=two_time,
            work=chain.depth * samples**2 * 500.0 * pairs + 4.0 * states * samples**2 * problem.outputs,
            calls=20 * states + 400 * chain.depth * times,
            numbers=(6.0 * chain.depth + 10) * samples**2 * times + 300.0 * chain.depth * samples * times,
            error=None,
        )

    def run(self, problem: Problem, record: Tensor, *, two_time: bool, progress: bool) -> Trajectory:
        """Compute the kernels, then the outputs; see ``Solver.run``."""
        chain = require_chain(problem, "StaticNTK")
        gram = problem.input_kernel.to(torch.float64)
        if problem.weight_decay:
            outputs, forward, backward = _decaying(problem, gram, record, self.order, two_time, progress)
        else:
            kernels = InitialKernels(chain, gram, order=self.order).at()
            outputs = _outputs(problem, kernels.ntk, record, flow=self.time == "continuous")
            forward = [_constant(kernel, len(record), two_time) for kernel in kernels.forward]
            backward = [_constant(kernel, len(record), two_time) for kernel in kernels.backward]
        identity = torch.eye(chain.outputs, dtype=gram.dtype, device=gram.device)
        return assemble(
            problem,
            chain,
            record,
            outputs,
            forward,
            [torch.einsum("...mn,cd->...mcnd" if not two_time else "tmsn,cd->tmcsnd", g, identity) for g in backward],
            origin="static NTK (N=inf)",
            metadata={"time": self.time},
        )


def _outputs(problem: Problem, ntk: Tensor, record: Tensor, *, flow: bool) -> Tensor:
    """Outputs at the recorded steps: in closed form for squared error, else step by step or integrated."""
    scale = error_scale(problem) if problem.batches is None else None
    if scale is None:
        return (_flow if flow else _descend)(problem, ntk, record)
    return lazy_outputs(problem, ntk, record, scale, flow=flow)


def _descend(problem: Problem, ntk: Tensor, record: Tensor) -> Tensor:
    """f(t+1) = f(t) + eta K v(t), v(t) = beta v(t-1) + Delta(t)."""
    f = ntk.new_zeros(problem.samples, problem.outputs)
    velocity, outputs, kept = torch.zeros_like(f), [], set(record.tolist())
    for step in range(int(record[-1]) + 1):
        if step > 0:
            velocity = problem.momentum * velocity + error_signal(problem, f, step - 1)
            f = f + problem.lr * ntk @ velocity
            require_finite(problem, f, step)
        if step in kept:
            outputs.append(f)
    return torch.stack(outputs)


def _flow(problem: Problem, ntk: Tensor, record: Tensor) -> Tensor:
    """df/dt = K Delta(f), integrated to the precision that the loss is computed in."""
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

    times = (record.to(torch.float64) * problem.lr).numpy()
    end = max(times[-1], problem.lr)  # an interval even if only t = 0 is recorded
    start = torch.zeros(problem.samples * problem.outputs, dtype=ntk.dtype).numpy()
    found = solve_ivp(velocity, (0.0, end), start, method="LSODA", t_eval=times, rtol=precision, atol=precision)
    if not found.success:
        raise ConvergenceError(
            "Gradient flow could not be integrated.",
            got=found.message,
            remedy='StaticNTK(time="discrete"), or a smaller lr',
        )
    return torch.as_tensor(found.y.T, dtype=ntk.dtype, device=ntk.device).reshape(
        len(times), problem.samples, problem.outputs
    )


def _decaying(
    problem: Problem, gram: Tensor, record: Tensor, order: int, two_time: bool, progress: bool
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Outputs and kernels under weight decay: ``(outputs, forward, backward)``."""
    chain = require_chain(problem, "StaticNTK")
    keep, last, samples = 1 - problem.lr * problem.weight_decay, int(record[-1]), problem.samples
    kernels = InitialKernels(chain, gram, [keep**step for step in range(last + 1)], order=order)
    ages = torch.arange(last + 1, dtype=gram.dtype, device=gram.device)
    position = {step: at for at, step in enumerate(record.tolist())}
    shape = (len(record), samples, len(record), samples) if two_time else (len(record), samples, samples)
    forward = [gram.new_zeros(shape) for _ in range(chain.depth + 1)]
    backward = [gram.new_zeros(shape) for _ in range(chain.depth)]
    weights, errors, outputs = gram.new_zeros(0), gram.new_zeros(0, samples, problem.outputs), []
    for step in track(range(last + 1), "static NTK with weight decay", progress=progress):
        block = kernels.between(step, slice(0, step + 1))
        past = block.ntk.reshape(samples, step + 1, samples)[:, :step]
        f = problem.lr * torch.einsum("s,msn,snc->mc", weights, past, errors)
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
            weights = torch.cat([keep * weights, gram.new_zeros(1)]) + problem.momentum ** ages[: step + 1].flip(0)
    return torch.stack(outputs), forward, backward


def _constant(kernel: Tensor, times: int, two_time: bool) -> Tensor:
    """The same kernel at every pair of recorded times."""
    samples = len(kernel)
    if two_time:
        return kernel[None, :, None].expand(times, samples, times, samples)
    return kernel.expand(times, samples, samples)
