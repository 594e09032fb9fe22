"""WideEnsemble: the infinite-width limit read off ordinary networks of several widths."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.factors import tolerance_of
from torch_dmft.core.numbers import require_whole
from torch_dmft.core.trajectory import Trajectory, combine
from torch_dmft.measurement import Recorder
from torch_dmft.parameterization import Plan
from torch_dmft.theory.checks import require_generator, require_list
from torch_dmft.theory.control import LEAST, WORTH, Slopes, Start, sizes, slopes_of
from torch_dmft.theory.cost import Cost, extrapolation_error
from torch_dmft.theory.engine.built import Factory
from torch_dmft.theory.engine.matched_start import match_moments
from torch_dmft.theory.engine.networks import Networks, langevin_noise, negate_readout
from torch_dmft.theory.engine.posed import renamed
from torch_dmft.theory.engine.sources import (
    cost_of_networks,
    covered_starts,
    factory_for,
    networks_of,
    require_factory,
    require_networks,
)
from torch_dmft.theory.engine.training import probe_of, train_and_record
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.replicas import average, replica_generators
from torch_dmft.theory.solver import method, require_training
from torch_dmft.theory.solvers.infinite_width import COVERS, require_rule
from torch_dmft.theory.stepping import track


@method
@dataclass(frozen=True)
class WideEnsemble:
    r"""A reference from wide networks, not a field theory: plain torch networks, extrapolated to infinite width.

    At each width N networks are trained in antithetic pairs: one with readout w, one with -w. Each is a valid draw, and what
    is odd in w, the noise of f(0) above all, cancels in the pair. Every number then follows

    .. math:: y(N) = a + b / N + \text{noise of variance} \propto 1 / N ,

    fitted by least squares with weights proportional to N; a is the answer. As these weights do not look at the data, a is
    a fixed linear combination of means, without bias beyond O(1/N^2), and its standard error is exact error propagation.

    The initial input weights, biases and readout have matched moments over the neurons (``match_moments``) where their columns
    number at most a quarter of the smallest width, else all are plain Gaussians. That leaves a and changes b, and standard
    errors of outputs and NTK are 0.5 to 0.6 of those without it for two layers of tanh, about 0.85 for three of ReLU.

    No theory of the layers is needed, so that this takes whatever can be built and trained at another width:
    convolutions, Adam and AdamW, Langevin noise (that of the readout has opposite signs in a pair), and BatchNorm (trained in
    train mode, recorded in eval mode, as ``Recorder`` does). Under Adam the NTK is that of SGD still, and does not say how the
    outputs move. Refuses whatever makes training random or another forward pass (dropout, stochastic depth), noise
    together with parameters that have numbers of their own, and, without a factory, grouped convolutions other than
    depthwise ones and modules with parameters of another kind.

    With a factory, every network is built by it and wrapped as the run's model was (``torch_dmft.theory.engine.built``), so
    that any wrapped model will do: recurrent nets, transformers of libraries, inputs of any structure. Where the readout keeps
    its own start (``init="keep"``), the networks of a pair are independent.

    How large kernels are at the start of a network tells how large they are later, and how fast outputs move; the mean of that
    over many starts costs little (``torch_dmft.theory.control``). Where the pairs of the smallest width show that this explains
    most of the scatter, as in convolutional networks, fewer pairs are trained at the others, ``metadata["pairs"]``: as many as
    make the error what that of all pairs would be.

    The answer's metadata hold ``chi_squared``, the squared residual of the fit in units of its error, averaged over all
    numbers, per degree of freedom. It is about 1 if the widths are large enough for a straight line in 1/N; entries are
    correlated, so it scatters. With two widths the fit is exact, and the test is NaN.

    Cost: 2 * pairs runs at every width, O(P N^2 T) time and O(N^2) memory each (the paper's Table 1); the answers of all pairs
    of a width are kept.

    Args:
        widths: N of the last hidden layer, at least two.
        pairs: antithetic pairs per width, fewer at larger ones where starts tell enough.
        generator: source of randomness; None for a fresh one with seed 0.
        factory: width -> model, builds the networks of a wrapped model; widths are then what it takes. None: the network is
            widened by itself, or, where that is not possible, by the factory that was given as ``wider`` when it was wrapped.
        starts: further networks for each pair of which only the start is looked at; 0 to train all pairs.
    """

    widths: tuple[int, ...] = (128, 256, 512)
    pairs: int = 32
    generator: torch.Generator | None = None
    factory: Factory | None = None
    starts: int = 8

    def __post_init__(self) -> None:
        """Refuse invalid settings."""
        for width in require_list("widths", self.widths):
            require_whole("widths", width, at_least=1)
        if len(set(self.widths)) < 2:
            raise InvalidInputError(
                "`widths` must hold at least two widths, to extrapolate to infinite width.",
                got=f"widths={self.widths}",
                remedy="widths=(128, 256, 512)",
            )
        require_whole("pairs", self.pairs, at_least=4, remedy="at least four pairs, to estimate the error")
        require_whole("starts", self.starts, at_least=0)
        require_generator(self.generator)
        require_factory(self.factory)

    def check(self, problem: Problem) -> None:
        """Refuse unknown optimizers, and networks that cannot be built at another width."""
        covers = COVERS | ({"noise"} if "groups" not in problem.training.traits else set())
        require_networks(problem, self.factory, self.widths)
        require_training(problem, "WideEnsemble", covers | {"rule"} | covered_starts(problem, self.factory))
        require_rule(problem, "WideEnsemble")

    def estimate(
        self, problem: Problem, record: Iterable[int] | int | Tensor | None = None, *, two_time: bool | float = False
    ) -> Cost:
        """What solving the problem will cost if all pairs are trained, and how precise it will be."""
        cost = cost_of_networks(
            problem,
            self.factory,
            self.widths,
            count=self.pairs,
            recorded=problem.number_recorded(record),
            two_time=two_time,
            error=extrapolation_error(self.widths, self.pairs),
            pairs=True,
        )
        return replace(cost, most=self._can_correct(two_time))

    def _can_correct(self, two_time: bool | float) -> bool:
        """Whether starts may tell of runs. Kernels that are held by factors would have those of all that slopes are of."""
        return self.starts > 0 and self.pairs * WORTH >= LEAST and tolerance_of(two_time) is None

    def run(self, problem: Problem, record: Tensor, *, two_time: bool | float, progress: bool) -> Trajectory:
        """Train pairs of networks at every width and extrapolate; see ``solve``."""
        widths_asked = sorted(set(self.widths))
        generators = replica_generators(self.generator, len(widths_asked))
        which: tuple[bool, ...] | None = None
        slopes: Slopes | None = None
        widths: list[int] = []
        trained, estimates = [], []
        for width, generator in zip(widths_asked, generators, strict=True):
            networks = networks_of(problem, width, self.factory, self.widths, generator)
            which = networks.matchable() if which is None else which  # of the smallest width
            count, more = (self.pairs, 0) if slopes is None else (slopes.needed, self.starts)
            pairs, starts = [], []
            for _ in track(range(count), f"pairs of networks of width {networks.width}", progress=progress):
                pair, start = _train_pair(networks, record, generator, which, two_time=two_time, more=more)
                pairs.append(pair if slopes is None or start.gap is None else slopes.corrected(pair, start.gap))
                starts.append(start)
            if slopes is not None:
                slopes = slopes.judged(pairs, starts, instead=self.pairs)
            elif not widths and self._can_correct(two_time):
                slopes = slopes_of(pairs, starts, more=self.starts)
            trained.append(count)
            widths.append(networks.width)
            estimates.append(average(pairs, origin=f"networks (N={networks.width})", metadata={}))
        answer = extrapolate(widths, estimates)
        facts: dict[str, str | int | float | bool | None] = {
            "networks": "the factory's" if factory_for(problem, self.factory) else "widened",
            "widths": ", ".join(map(str, widths)),
            "pairs": ", ".join(map(str, trained)) if slopes else self.pairs,
            "kind": "wide-network reference, not DMFT",
        }
        answer = replace(answer, metadata={**facts, **answer.metadata})
        return answer if factory_for(problem, self.factory) else renamed(answer, problem)


def extrapolate(widths: Sequence[int], estimates: Sequence[Trajectory]) -> Trajectory:
    """The limit of infinite width of every number, by least squares of a + b / N with weights proportional to N.

    Args:
        widths: N of each estimate.
        estimates: means with standard errors, all in one layout.

    Returns:
        a with its standard error; ``metadata["chi_squared"]`` is per degree of freedom and over all numbers that vary.
    """
    n = torch.tensor(widths, dtype=torch.float64, device=estimates[0].outputs.device)
    design = torch.stack([torch.ones_like(n), n.min() / n], dim=1)
    weighted = design * n.sqrt()[:, None]
    coefficients = torch.linalg.pinv(weighted) * n.sqrt()  # (coefficient, width): a and b from the means
    both = [*estimates, *(estimate.stderr for estimate in estimates if estimate.stderr is not None)]
    limit = combine(both, lambda values: _fit(values, coefficients, design)[0], weights=coefficients[0].tolist())
    stderr = combine(both, lambda values: _fit(values, coefficients, design)[1])
    residual = combine(both, lambda values: _fit(values, coefficients, design)[2])
    degrees = len(n) - 2
    facts = {"chi_squared": _mean_of_all(residual) / degrees if degrees else float("nan"), "degrees": degrees}
    layers = tuple(replace(layer, width=None) for layer in limit.layers)
    origin = "wide-network reference (N to inf)"
    return replace(limit, layers=layers, width=None, stderr=stderr, origin=origin, metadata=facts)


def _fit(
    values: Sequence[Tensor], coefficients: Float[Tensor, "2 width"], design: Float[Tensor, "width 2"]
) -> tuple[Tensor, Tensor, Tensor]:
    """a, its standard error, and the sum of squared residuals in units of their errors; NaN where nothing varies."""
    count = len(values) // 2
    means, errors = (torch.stack(list(half)).double() for half in (values[:count], values[count:]))
    fitted = torch.tensordot(coefficients, means, dims=1)
    residuals = means - torch.tensordot(design, fitted, dims=1)
    stderr = torch.tensordot(coefficients[:1].square(), errors.square(), dims=1)[0].sqrt()
    round_off = 16 * torch.finfo(values[0].dtype).eps * means.square().mean().sqrt()
    varies = (errors > round_off).all(0)
    squared = (residuals / errors).square().sum(0).where(varies, torch.nan)
    like = values[0].dtype
    return fitted[0].to(like), stderr.to(like), squared.to(like)


def _mean_of_all(run: Trajectory) -> float:
    """Over outputs and kernels; the NTKs are products of those."""
    arrays = [run.outputs, *(kernel.array for layer in run.layers for kernel in (layer.forward, layer.backward))]
    return float(torch.cat([array.flatten() for array in arrays]).nanmean())


def _train_pair(
    networks: Networks,
    record: Tensor,
    generator: torch.Generator,
    matched: Sequence[bool],
    *,
    two_time: bool | float,
    more: int = 0,
) -> tuple[Trajectory, Start]:
    """The mean of a network and of the same network with the opposite readout, also in the noise, and what its start tells.

    Where the readout is kept and not drawn, so that the opposite one is not as likely, it is the mean of two networks.
    ``more`` further starts are looked at.
    """
    problem, runs, looks = networks.problem, [], []
    plan = _drawn(networks, generator, matched)
    start = {name: value.clone() for name, value in plan.model.state_dict().items()}
    state = generator.get_state()
    for second in (False, True):
        if networks.is_symmetric:
            plan.model.load_state_dict(start)
            generator.set_state(state)
        elif second:
            plan = _drawn(networks, generator, matched)
        if not second or not networks.is_symmetric:  # opposite readouts have the same sizes
            looks.append(_look(networks, plan))
        negated = second and networks.is_symmetric
        if negated:
            negate_readout(plan)
        noise = langevin_noise(problem, plan, generator, negated=negated)
        steps = range(int(record[-1]) + 1)
        draws = problem.training.rule != "gradient" or plan.architecture.train_differs
        run = train_and_record(
            problem,
            plan,
            record,
            two_time=two_time,
            steps=steps,
            noise=noise,
            view=networks.view,
            generator=replica_generators(generator, 1)[0] if draws else None,
        )
        runs.append(run)
    mean = combine(runs, lambda values: (values[0] + values[1]) / 2, weights=[0.5, 0.5])
    own = torch.stack(looks).mean(0)
    if not more:
        return mean, Start(own)
    others = [_look(networks, _drawn(networks, generator, matched)) for _ in range(more * len(looks))]
    return mean, Start(own, (own - torch.stack(others).mean(0)) * (more / (1 + more)))


def _drawn(networks: Networks, generator: torch.Generator, matched: Sequence[bool]) -> Plan:
    plan = networks.draw(generator)
    if matched:
        match_moments(plan, matched)
    return plan


def _look(networks: Networks, plan: Plan) -> Tensor:
    """The sizes of a network that is not trained yet."""
    problem = networks.problem
    recorder = Recorder(
        plan,
        probe_of(problem),
        outputs=problem.selection,
        batch_norm=problem.network.batch_norm,
        ntk=False,
        fields=False,
    )
    taken = networks.view(problem, recorder)(0, measured=True, trained=False).taken
    assert taken is not None  # asked for
    return sizes(problem, taken)
