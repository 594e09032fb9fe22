"""Attention in the infinite-width limit is that of wide networks, and models whose scores have no limit are refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torch_dmft as dmft
from tests import transformer
from tests.reference.ensembles import Limit, observables
from tests.theory.engine import attentive
from tests.theory.validation.agreement import assert_agrees, moved
from tests.theory.validation.wrong import WithoutResponses
from torch_dmft.core.errors import InvalidInputError, UnsupportedModelError
from torch_dmft.theory.replicas import average

STEPS, RECORD, NEURONS, REPLICAS = 15, (0, 5, 10, 15), 1024, 4


def encoder(width: int = 16, *, norm: bool = True, **options: object) -> transformer.Transformer:
    """The oracle's transformer as a module: its norms have neither gain nor shift."""
    model = transformer.Transformer(width, norm=norm, **options)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.LayerNorm):
            model.set_submodule(name, nn.LayerNorm(width, elementwise_affine=False))
    return model


def pose(inputs: Tensor, targets: Tensor, *, gamma0: float, lr: float, **options: object) -> dmft.Problem:
    plan = dmft.parameterize(encoder(**options), inputs, gamma0=gamma0, generator=torch.Generator().manual_seed(1))
    return dmft.Problem.like(plan, dmft.Probe(inputs, targets), lr=lr, steps=STEPS)


FEW, MANY = {64: 256, 128: 128}, {128: 768, 256: 384, 512: 96}
NORMED = {"norm": True, "gamma0": 1.0, "lr": 0.1}
RICH = {"norm": False, "gamma0": 2.0, "lr": 0.05}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((NORMED, 2.0, FEW, 0.15), id="norm"),
        pytest.param((RICH, 2.0, FEW, 0.15), id="rich"),
        # Richer still, heads of networks grow apart, which they do not in the limit: 1/N needs widths of thousands.
        pytest.param((NORMED, 4.0, MANY, 0.07), id="norm, sharp", marks=pytest.mark.long),
        pytest.param((RICH, 2.0, MANY, 0.07), id="rich, sharp", marks=pytest.mark.long),
    ],
)
def case(request: pytest.FixtureRequest) -> tuple[dmft.Problem, Limit, float]:
    """A small transformer's problem, its limit by wide networks, and how well that is known."""
    settings, scale, networks, sharpness = request.param
    inputs, targets = transformer.data(6, torch.Generator().manual_seed(0))
    oracle = {"steps": STEPS, "record": RECORD, "generator": torch.Generator().manual_seed(1)}
    limit = attentive.limit(inputs, targets[:, 0], networks, scale=scale, **settings, **oracle)
    return pose(inputs, targets, scale=scale, **settings), limit, sharpness


def test_limit_is_that_of_wide_networks(case) -> None:
    problem, limit, sharpness = case
    assert_agrees(limit, dmft.solve(problem, dmft.solvers.InfiniteWidth(NEURONS, REPLICAS), record=RECORD), sharpness)
    assert moved(limit, "forward.4") > 0.3  # what attention hands on
    assert (limit.mean["losses"].diff() < 0).all()


def test_a_factorys_twin_is_trained_by_a_loop_of_ones_own(case) -> None:
    """Twins of an encoder that a function of the width builds, trained and recorded as any model is."""
    problem, limit, sharpness = case
    norm = isinstance(problem.network.plan.model.norm, nn.LayerNorm)
    probe, runs = dmft.Probe(problem.inputs, problem.targets), []
    scale = problem.network.plan.model.blocks[0].attention.scale
    for seed in range(REPLICAS):
        twin = dmft.infinite_width(
            lambda width: encoder(width, norm=norm, scale=scale),
            problem.inputs,
            gamma0=problem.gamma0,
            neurons=NEURONS,
            tolerance=3e-3,
            generator=torch.Generator().manual_seed(seed),
        )
        optimizer = torch.optim.SGD(twin.param_groups(problem.lr))
        recorder = dmft.Recorder(twin, probe, schedule=RECORD)
        with recorder.attach(optimizer):
            for _ in range(STEPS):
                optimizer.zero_grad()
                F.mse_loss(twin.model(problem.inputs), problem.targets).backward()
                optimizer.step()
        runs.append(recorder.trajectory())
    answer = average(runs, origin="twins of a factory", metadata={}, loss=problem.training_loss)
    assert_agrees(limit, answer, sharpness)


def test_limit_needs_the_responses(case) -> None:
    problem, limit, sharpness = case
    answer = dmft.solve(problem, WithoutResponses(512, 2), record=RECORD)
    with pytest.raises(AssertionError, match=r"outputs is .* off.*backward\.1 is .* off"):
        assert_agrees(limit, answer, sharpness)


def test_scores_matter(case) -> None:
    """The theory of nearly uniform attention, on the same data, is another one."""
    problem, limit, sharpness = case
    norm = limit.mean["forward.7"][0].diagonal().mean() > 0.5  # of normalised features
    options = {"norm": True, "gamma0": 1.0, "lr": 0.1} if norm else RICH
    posed = pose(problem.inputs, problem.targets, scale=0.01, **options)
    answer = dmft.solve(posed, dmft.solvers.InfiniteWidth(512, 2), record=RECORD)
    with pytest.raises(AssertionError, match=r"forward\.4 is .* off"):
        assert_agrees(limit, answer, sharpness)


@pytest.fixture
def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return transformer.data(4, generator)


class Stored(transformer.Attention):
    """Keeps the factor of the width that it was built at."""

    def __init__(self, width: int, *, factor: float) -> None:
        super().__init__(width)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v, scale=self.factor).transpose(1, 2).flatten(2))


def stored(factor: Callable[[int], float]) -> Callable[[int], nn.Module]:
    def build(width: int) -> nn.Module:
        model = encoder(width)
        model.blocks[0].attention = Stored(width, factor=factor(width // 2))
        return model

    return build


def test_a_factory_may_store_what_falls_with_the_width(batch) -> None:
    twin = dmft.infinite_width(stored(lambda head: 3 / head), batch[0], neurons=256)
    assert twin.model.blocks[0].attention.factor == 3 / 128


@pytest.mark.parametrize("solver", [dmft.solvers.InfiniteWidth(256, 2), dmft.solvers.WideEnsemble((32, 64), 4)])
def test_a_stored_factor_is_wrong_at_other_widths(solver, batch) -> None:
    plan = dmft.parameterize(stored(lambda head: 1 / head)(16), batch[0])
    problem = dmft.Problem.like(plan, dmft.Probe(*batch), lr=0.1, steps=2)
    with pytest.raises(
        UnsupportedModelError, match=r"is multiplied by 0\.125, but over 8 neurons by 0\.125.*1 / width"
    ):
        dmft.solve(problem, solver)


@pytest.mark.parametrize("power", [0.4, 0.6])
def test_factories_whose_factor_falls_otherwise_are_refused(power: float, batch) -> None:
    with pytest.raises(UnsupportedModelError, match=r"blocks\.0\.attention: .*compute it in forward"):
        dmft.infinite_width(lambda width: encoder(width, power=power, scale=1.1), batch[0], neurons=256)


def test_a_constant_may_look_like_a_square_root_at_one_width(batch) -> None:
    plan = dmft.parameterize(encoder(32, scale=4.0), batch[0])  # heads of 16 neurons: 4 / 16 = 1 / sqrt(16)
    problem = dmft.Problem.like(plan, dmft.Probe(*batch), lr=0.1, steps=1)
    answer = dmft.solve(problem, dmft.solvers.WideEnsemble((32, 64), 4))
    assert torch.isfinite(answer.outputs).all()
    with pytest.raises(UnsupportedModelError, match="square root"):  # where nothing shows that it falls faster
        dmft.parameterize(stored(lambda head: 4 / head)(32), batch[0])


@pytest.mark.parametrize(("neurons", "width"), [(101, 100), (103, 104), (96, 96)])
def test_widths_stay_divisible_into_heads(neurons: int, width: int, batch) -> None:
    twin = dmft.infinite_width(encoder(12), batch[0], neurons=neurons)
    assert twin.width == width
    assert twin.model(batch[0]).shape == (4, 1)


def test_a_factory_is_not_called_with_a_width_that_heads_do_not_divide(batch) -> None:
    with pytest.raises(InvalidInputError, match="neurons=102"):
        dmft.infinite_width(encoder, batch[0], neurons=101)
    assert dmft.infinite_width(encoder, batch[0], neurons=102).model(batch[0]).shape == (4, 1)


class Fused(nn.Module):
    """One projection for queries, keys and values, and products by hand."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        weights = torch.softmax(q @ k.mT * (2 / q.shape[-1]), dim=-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


def test_one_projection_for_all_is_the_same_theory(batch) -> None:
    """The same network written otherwise: latents are plain there, so that errors are larger."""
    found = []
    for attention in (Fused, lambda width: transformer.Attention(width, scale=2.0)):
        model = encoder(16)
        model.blocks[0].attention = attention(16)
        plan = dmft.parameterize(model, batch[0])
        problem = dmft.Problem.like(plan, dmft.Probe(*batch), lr=0.1, steps=6)
        found.append(dmft.solve(problem, dmft.solvers.InfiniteWidth(512, 4), record=[0, 6]))
    (one, error), (other, small) = ((observables(run), observables(run.stderr)) for run in found)
    for mine, theirs in (("outputs", "outputs"), ("forward.2", "forward.4"), ("forward.5", "forward.7")):
        z = (one[mine] - other[theirs]) / (error[mine] ** 2 + small[theirs] ** 2 + 1e-10).sqrt()
        assert float(z.abs().max()) < 5, mine


@cache
def two_blocks() -> tuple[dmft.Problem, dmft.Trajectory]:
    """Two blocks whose norms are trained, with momentum and weight decay; and wide networks."""
    inputs, targets = transformer.data(5, torch.Generator().manual_seed(2))
    plan = dmft.parameterize(transformer.Transformer(16, blocks=2, scale=2.0), inputs)
    settings = {"lr": 0.02, "steps": 10, "momentum": 0.5, "weight_decay": 0.1}
    problem = dmft.Problem.like(plan, dmft.Probe(inputs, targets), **settings)
    return problem, dmft.solve(problem, dmft.solvers.WideEnsemble((64, 128, 256), pairs=64), record=[0, 10])


@pytest.mark.long
@pytest.mark.parametrize("responses", [True, False])
def test_two_blocks_agree_with_wide_ones(responses: bool) -> None:
    problem, wide = two_blocks()
    solver = dmft.solvers.InfiniteWidth if responses else WithoutResponses
    mine = dmft.solve(problem, solver(NEURONS, REPLICAS), record=[0, 10])
    theirs, errors, own = (observables(run) for run in (wide, wide.stderr, mine.stderr))
    z = {
        name: float(((values - theirs[name]) / (errors[name] ** 2 + own[name] ** 2 + 1e-12).sqrt()).abs().max())
        for name, values in observables(mine).items()
    }
    assert (max(z.values()) < 5) is responses, z
    assert mine.losses[-1] < 0.8 * mine.losses[0]
