"""Deep linear networks on whitened data under gradient flow: one scalar flow for each direction of the targets.

With K^x = 1 and Delta = c (y - f), decompose the targets as y = sum_k s_k u_k v_k^T over samples and outputs. Flipping
the signs of u_k and v_k is a symmetry of the Gaussian weights, so f = sum_k f_k u_k v_k^T at all times; the fields along
different k never mix, as each starts from its own latents; and all other directions stay as they are:

    Phi^l(t, s) = Phi^l(0, 0) + sum_k [H_k^l(t, s) - H_k^l(0, 0)] u_k u_k^T,
    G^l(t, s)   = G^l(0, 0)   + sum_k [G_k^l(t, s) - G_k^l(0, 0)] v_k v_k^T.

So every k is a network with one sample, input 1 and target s_k. For one hidden layer (paper, section 4.1) it is solved
by an angle theta with gamma0 f = g sinh theta, H(t, s) = g^2 cosh((theta_t + theta_s) / 2), G = H / g^2,

    dtheta/dt = 2 c g^2 (a - sinh theta),   a = gamma0 s_k / g,   that is
    dDelta/dt = -2 g^2 sqrt(1 + (gamma0 / g)^2 (s_k - Delta)^2) Delta for c = 1,

    e^theta = (v_+ + E v_-) / (1 + E),   E = (v_+ - 1) / (1 - v_-) e^{-2 c g^2 sqrt(1 + a^2) t},   v_+- = a +- sqrt(1 + a^2),

which ends at Phi = 1 + (sqrt(1 + gamma0^2 |y|^2) - 1) y y^T / |y|^2 for g = 1 and one output. Deeper networks close on the
same few numbers per time, the two-time functions H_k^l and G_k^l; their flow is integrated in exact latents.

Where it ends does not depend on time: along one direction every weight moves at a rate proportional to Delta, so that the
output itself can be the clock: the weights move by dW / df = (df / dW) / K_k from f = 0 to f = s_k, here in equal steps of
asinh(gamma0 f). For large targets all L + 1
weights end with one equal singular value, (gamma0 s)^(1 / (L + 1)) for g = 1 and equal widths, hence
H^l -> (gamma0 s)^(2 l / (L + 1)) and G^l -> (gamma0 s)^(2 (L + 1 - l) / (L + 1)).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from torch_dmft.core.errors import ConvergenceError, UnsupportedProblemError
from torch_dmft.core.numbers import require_number
from torch_dmft.core.trajectory import LayerKernels, Trajectory
from torch_dmft.theory.chain import Chain, HiddenLayer
from torch_dmft.theory.chains.assembly import about_the_probe, assemble, require_chain
from torch_dmft.theory.chains.latent_chain import LatentChain, stacked, weighted_sum
from torch_dmft.theory.chains.squared_error import error_scale
from torch_dmft.theory.cost import Cost, deterministic_cost
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.solver import SEES, method, require_training
from torch_dmft.theory.solvers.deep_linear import require_linear
from torch_dmft.theory.stepping import track

_MOST_HALVINGS = 8


@method
@dataclass(frozen=True)
class WhitenedLinear:
    """Gradient flow of linear networks on whitened data, at the times eta * step (paper, section 4.1 and appendix F.2).

    dDelta/dt = -2 sqrt(1 + gamma0^2 (y - Delta)^2) Delta along every direction of the targets for one hidden layer, in closed
    form; deeper networks as one scalar flow per direction of the targets, integrated by
    the Runge-Kutta method of order four until halving its step no longer matters. No standard error.

    Takes several outputs, gains, unequal widths and test rows. Refuses training inputs with K^x != 1, losses other than
    the squared error in any reduction, biases, momentum, weight decay and minibatches. Gradient descent with a finite
    learning rate differs by O(eta): that is ``DeepLinear``. Cost O(C T) scalars, whatever the number of samples, beside the
    answer. Refuses also networks other than linear chains, Langevin noise and Adam.

    Attributes:
        tolerance: largest error of outputs and kernels of deep flows, estimated by halving the step.
    """

    tolerance: float = 1e-7

    def __post_init__(self) -> None:
        """Refuse invalid settings."""
        require_number("tolerance", self.tolerance, above=0)

    def check(self, problem: Problem) -> None:
        """Refuse problems that do not decompose into scalar flows.

        Raises:
            UnsupportedProblemError: naming everything that is in the way.
        """
        chain = require_chain(problem, "WhitenedLinear")
        require_training(problem, "WhitenedLinear", SEES | {"uniform starts"}, remedy="solvers.WideEnsemble()")
        require_linear(chain, "WhitenedLinear")
        train = problem.train_samples
        kernel = problem.input_kernel[:train, :train].double()
        off = float((kernel - torch.eye(train, dtype=kernel.dtype, device=kernel.device)).abs().max())
        biased = chain.readout_bias or any(layer.bias_std is not None for layer in chain.hidden)
        conditions = {
            f"training inputs that are not whitened (K^x differs from the identity by {off:.2g})": off > 1e-5,
            "a loss other than the squared error": error_scale(problem) is None,
            "biases": biased,
        }
        traits = {trait: text for trait, text in problem.training.traits.items() if trait != "uniform starts"}
        refused = [*(name for name, present in conditions.items() if present), *traits.values()]
        if refused:
            raise UnsupportedProblemError(
                "WhitenedLinear needs squared error on whitened inputs, X X^T / D = 1, under plain gradient flow.",
                got=", ".join(refused),
                remedy="solvers.DeepLinear(), which needs none of this",
            )

    def estimate(
        self, problem: Problem, record: Iterable[int] | int | Tensor | None = None, *, two_time: bool | float = False
    ) -> Cost:
        """What solving the problem will cost: a scalar flow for each direction of the targets."""
        chain, recorded = require_chain(problem, "WhitenedLinear"), problem.number_recorded(record)
        flows = min(problem.outputs, problem.train_samples)
        return deterministic_cost(
            problem,
            recorded,
            two_time=two_time,
            work=1e3 * flows * problem.steps,
            calls=flows * (100 if chain.depth == 1 else 2000 * chain.depth * problem.steps),
            numbers=4.0 * problem.samples**2,
            error=None,
        )

    def run(self, problem: Problem, record: Tensor, *, two_time: bool | float, progress: bool) -> Trajectory:
        """Solve one flow per direction of the targets; see ``Solver.run``."""
        chain = require_chain(problem, "WhitenedLinear")
        unit, steps = problem.lr * (error_scale(problem) or 0.0), record.to(problem.device).double()

        def solved(target: float) -> _Mode:
            return self._mode(chain, problem.gamma0, target, steps, unit)

        trajectory = _superposed(problem, chain, record, solved, two_time=two_time, progress=progress)
        return about_the_probe(problem, trajectory)

    def final_kernels(self, problem: Problem) -> tuple[LayerKernels, ...]:
        """The kernels at the end of training, t -> infinity, where f = y on the training rows.

        In closed form for one hidden layer, for g = 1 and one output Phi = 1 + (sqrt(1 + gamma0^2 |y|^2) - 1) y y^T / |y|^2
        and G = sqrt(1 + gamma0^2 |y|^2) at the end of the module's equations; deeper networks are integrated over the
        output. Neither the learning rate nor the number of steps matters.

        Args:
            problem: what ``check`` lets pass.

        Returns:
            One entry for each weight l = 0..L, as ``Trajectory.layers`` of a single time: Phi^l, G^{l+1} and its part of
            the NTK, over (sample, sample) or with output axes.

        Raises:
            UnsupportedProblemError: if the problem does not decompose into scalar flows.
            ConvergenceError: if the integration does not settle at ``tolerance``.
        """
        self.check(problem)
        chain = require_chain(problem, "WhitenedLinear")

        ever = torch.full((1,), math.inf, dtype=torch.float64, device=problem.device)

        def solved(target: float) -> _Mode:
            if chain.depth == 1:
                return _two_layer_flow(chain, problem.gamma0, target, ever)
            return self._settled(lambda finer: _integrate_over_output(chain, problem.gamma0, target, 8 * finer, ever))

        record = torch.tensor([problem.steps], device="cpu")
        return _superposed(problem, chain, record, solved, two_time=False, progress=False).layers

    def _mode(self, chain: Chain, gamma0: float, target: float, steps: Tensor, unit: float) -> _Mode:
        """The flow towards one target at the times unit * steps."""
        if chain.depth == 1:
            return _two_layer_flow(chain, gamma0, target, unit * steps)
        return self._settled(lambda finer: _integrate(chain, gamma0, target, steps * finer, unit / finer))

    def _settled(self, integrate: Callable[[int], _Mode]) -> _Mode:
        """Integrate with steps that are 1, 2, 4, .. times finer until that no longer matters."""
        coarse = integrate(1)
        for halvings in range(1, _MOST_HALVINGS + 1):
            fine = integrate(2**halvings)
            if fine.distance(coarse) < 15 * self.tolerance:  # halving divides the error of order four by 16
                return fine
            coarse = fine
        raise ConvergenceError(
            f"The flow along one direction of the targets did not settle after {_MOST_HALVINGS} halvings of the step.",
            remedy=f"a smaller lr, or a tolerance larger than {self.tolerance}",
        )


@dataclass(frozen=True)
class _Mode:
    """The flow along one direction of the targets.

    Attributes:
        output: f_k, ``(time,)``.
        forward: H_k^1..H_k^L, each ``(time, time)``.
        backward: G_k^1..G_k^L, each ``(time, time)``.
    """

    output: Tensor
    forward: tuple[Tensor, ...]
    backward: tuple[Tensor, ...]

    def distance(self, other: _Mode) -> float:
        """The largest difference of any number."""
        mine = (self.output, *self.forward, *self.backward)
        theirs = (other.output, *other.forward, *other.backward)
        largest = max(float((one - two).abs().max()) for one, two in zip(mine, theirs, strict=True))
        return math.inf if math.isnan(largest) else largest


def _superposed(
    problem: Problem,
    chain: Chain,
    record: Tensor,
    solved: Callable[[float], _Mode],
    *,
    two_time: bool | float,
    progress: bool,
) -> Trajectory:
    """The solution from its modes: ``solved`` is asked for every strength s_k."""
    train = problem.train_samples
    rows = problem.tensor.flatten(1).double() / math.sqrt(chain.input_dim)
    input_kernel = rows @ rows.mT
    samples, strengths, outputs = torch.linalg.svd(problem.target_values.double(), full_matrices=False)
    used = [k for k, strength in enumerate(strengths) if strength >= 1e-14 * strengths[0]]
    left = input_kernel[:, :train] @ samples[:, used]  # test rows see the training directions of their inputs
    right = outputs[used].mT
    modes = [solved(float(strengths[k])) for k in track(used, "whitened linear theory", progress=progress)]
    forward, backward = [_spread(input_kernel, left, rows.new_zeros(len(used), len(record), 1), two_time)], []
    identity = torch.eye(chain.outputs, dtype=rows.dtype, device=rows.device)
    row = (-1, problem.samples, -1)
    for layer, (phi, g) in enumerate(zip(*_initial_variances(chain), strict=True)):
        moved = torch.stack([mode.forward[layer] - phi for mode in modes])
        forward.append(_spread(phi * input_kernel, left, moved, two_time))
        moved = torch.stack([mode.backward[layer] - g for mode in modes])
        same_for_all_samples = _spread(g * identity, right, moved, two_time)[:, None].unsqueeze(-2)
        backward.append(
            same_for_all_samples.expand(*row, *row) if two_time else same_for_all_samples.expand(*row, *row[1:])
        )
    return assemble(
        problem,
        chain,
        record,
        torch.einsum("mk,kt,ck->tmc", left, torch.stack([mode.output for mode in modes]), right),
        forward,
        backward,
        origin="whitened linear theory (N=inf)",
        metadata={"modes": len(modes)},
    )


def _two_layer_flow(chain: Chain, gamma0: float, target: float, times: Float[Tensor, " time"]) -> _Mode:
    """The closed form for one hidden layer."""
    (layer,) = chain.hidden
    gain = layer.gain
    a = gamma0 * target / gain
    root = math.sqrt(1 + a * a)
    above, below = a + root, a - root
    remaining = (above - 1) / (1 - below) * torch.exp(-2 * gain**2 * root * times)
    angle = ((above + remaining * below) / (1 + remaining)).log()
    cosh = torch.cosh((angle[:, None] + angle) / 2)
    return _Mode(gain * torch.sinh(angle) / gamma0, (gain**2 * cosh,), (cosh,))


def _integrate(chain: Chain, gamma0: float, target: float, steps: Float[Tensor, " time"], unit: float) -> _Mode:
    """The flow of one sample with input 1, by the classical Runge-Kutta method with steps of length ``unit``."""
    network = _scalar_chain(chain, gamma0, steps.new_ones(1, 1))

    def slope(parameters: list[Tensor]) -> list[Tensor]:
        x, g = network.passes(parameters)
        return network.ascent(x, g, target - x[-1].mT / gamma0)

    parameters = network.parameters()
    features, gradients, outputs = [], [], []
    for start, stop in pairwise([0, *steps.long().tolist()]):
        for _ in range(stop - start):
            parameters = _runge_kutta(slope, parameters, unit)
        x, g = network.passes(parameters)
        outputs.append(x[-1].squeeze() / gamma0)
        features.append(x)
        gradients.append(g)

    def products(fields: list[list[Tensor]], layer: int) -> Tensor:
        vectors = stacked([at[layer] for at in fields])[:, 0]
        return vectors @ vectors.mT

    return _Mode(
        torch.stack(outputs),
        tuple(products(features, layer + 1) for layer in range(chain.depth)),
        tuple(products(gradients, layer) for layer in range(chain.depth)),
    )


def _integrate_over_output(chain: Chain, gamma0: float, target: float, count: int, like: Tensor) -> _Mode:
    """The end of the flow of one sample, by ``count`` Runge-Kutta steps in asinh(gamma0 f) from f = 0 to f = target."""
    one = like.new_ones(1, 1)
    network = _scalar_chain(chain, gamma0, one)

    def slope(parameters: list[Tensor]) -> list[Tensor]:
        x, g = network.passes(parameters)
        scales = [gain**2 / width for gain, width in zip(network.gains, network.widths, strict=True)]
        ntk = sum(
            scale * float(forward.square().sum() * backward.square().sum())
            for scale, forward, backward in zip(scales, x, g, strict=False)
        )
        per_output = math.hypot(1 / gamma0, float(x[-1]) / gamma0)  # df for a step of asinh(gamma0 f)
        return weighted_sum((per_output / ntk, network.ascent(x, g, one)))

    parameters = network.parameters()
    for _ in range(count):
        parameters = _runge_kutta(slope, parameters, math.asinh(gamma0 * target) / count)
    x, g = network.passes(parameters)
    return _Mode(
        x[-1].flatten() / gamma0,
        tuple(h.mT @ h for h in x[1 : chain.depth + 1]),
        tuple(k.mT @ k for k in g[: chain.depth]),
    )


def _scalar_chain(chain: Chain, gamma0: float, one: Tensor) -> LatentChain:
    """The network along one direction: one sample, one output."""
    hidden = tuple(HiddenLayer("linear", layer.gain, None, layer.width_ratio) for layer in chain.hidden)
    return LatentChain(Chain(1, hidden, 1), gamma0, one, tolerance=1e-13)


def _runge_kutta(slope: Callable[[list[Tensor]], list[Tensor]], parameters: list[Tensor], step: float) -> list[Tensor]:
    """One step of the classical method of order four."""
    first = slope(parameters)
    second = slope(weighted_sum((1.0, parameters), (step / 2, first)))
    third = slope(weighted_sum((1.0, parameters), (step / 2, second)))
    fourth = slope(weighted_sum((1.0, parameters), (step, third)))
    return weighted_sum((1.0, parameters), (step / 6, first), (step / 3, second), (step / 3, third), (step / 6, fourth))


def _initial_variances(chain: Chain) -> tuple[list[float], list[float]]:
    """Phi^1..Phi^L per unit of K^x, and G^1..G^L, at initialisation."""
    forward = [math.prod(layer.gain for layer in chain.hidden[: count + 1]) ** 2 for count in range(chain.depth)]
    backward = [1.0]
    for layer, after in zip(chain.hidden[-2::-1], chain.hidden[:0:-1], strict=True):
        backward.insert(0, backward[0] * after.gain**2 * layer.width_ratio / after.width_ratio)
    return forward, backward


def _spread(
    static: Float[Tensor, "row row"],
    directions: Float[Tensor, "row mode"],
    moved: Float[Tensor, "mode time other"],
    two_time: bool | float,
) -> Tensor:
    """Add sum_k moved_k(t, s) d_k d_k^T to a static kernel, at pairs of times or at equal times."""
    if two_time:
        return static[None, :, None] + torch.einsum(
            "kts,mk,nk->tmsn", moved.expand(-1, -1, moved.shape[1]), directions, directions
        )
    equal = moved.expand(-1, -1, moved.shape[1]).diagonal(dim1=1, dim2=2)
    return static + torch.einsum("kt,mk,nk->tmn", equal, directions, directions)
