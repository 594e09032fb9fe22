"""Heads of attention that grow in number at a fixed size: in the limit a population, each with scores of its own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import torch_dmft as dmft
from tests import transformer
from tests.reference.ensembles import Limit
from tests.theory.engine import attentive
from tests.theory.engine.test_attention import encoder
from tests.theory.validation.agreement import assert_agrees, moved
from tests.theory.validation.wrong import WithoutResponses
from torch_dmft.core.errors import InvalidInputError

STEPS, RECORD = 15, (0, 5, 10, 15)
NORMED = {"norm": True, "gamma0": 1.0, "lr": 0.1, "size": 2, "scale": 2.5, "causal": True}
RICH = {"norm": False, "gamma0": 2.0, "lr": 0.05, "size": 2, "scale": 2.5, "causal": True}
FEW, MANY = {32: 256, 64: 128, 128: 64}, {64: 1024, 128: 512, 256: 192}


def pose(
    inputs: Tensor,
    targets: Tensor,
    *,
    gamma0: float,
    lr: float,
    norm: bool,
    attention: type[transformer.Attention] = transformer.Attention,
    **options: object,
) -> dmft.Problem:
    model = encoder(norm=norm)
    model.blocks[0].attention = attention(16, **options)
    plan = dmft.parameterize(model, inputs, gamma0=gamma0, generator=torch.Generator().manual_seed(1))
    return dmft.Problem.like(plan, dmft.Probe(inputs, targets), lr=lr, steps=STEPS)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((NORMED, FEW, 0.2), id="norm"),
        pytest.param((RICH, FEW, 0.2), id="rich"),
        pytest.param(({**NORMED, "size": 4, "scale": 3.0}, MANY, 0.1), id="norm, sharp", marks=pytest.mark.long),
        pytest.param((RICH, MANY, 0.1), id="rich, sharp", marks=pytest.mark.long),
    ],
)
def case(request: pytest.FixtureRequest) -> tuple[dmft.Problem, Limit, float]:
    """A small causal transformer's problem, its limit by networks of three widths, and how well that is known."""
    settings, networks, sharpness = request.param
    inputs, targets = transformer.data(6, torch.Generator().manual_seed(0))
    oracle = {"steps": STEPS, "record": RECORD, "generator": torch.Generator().manual_seed(1)}
    limit = attentive.limit(inputs, targets[:, 0], networks, **settings, **oracle)
    return pose(inputs, targets, **settings), limit, sharpness


def test_limit_is_that_of_many_heads(case) -> None:
    problem, limit, sharpness = case
    solver = dmft.solvers.InfiniteWidth(1024 if sharpness > 0.1 else 2048, 4)
    assert_agrees(limit, dmft.solve(problem, solver, record=RECORD), sharpness)
    assert moved(limit, "forward.4") > 0.2  # what attention hands on
    assert (limit.mean["losses"].diff() < 0).all()


def test_limit_needs_the_responses(case) -> None:
    problem, limit, sharpness = case
    answer = dmft.solve(problem, WithoutResponses(512, 2), record=RECORD)
    with pytest.raises(AssertionError, match=r"outputs is .* off"):
        assert_agrees(limit, answer, sharpness)


class Averaged(transformer.Attention):
    """Scores averaged over the heads, as if each were as good as infinitely many."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, self.layout) for layer in (self.q, self.k, self.v))
        scores = torch.einsum("bthd,bshd->bts", q, k) * (self.scale / q.shape[-1] / q.shape[-2])
        later = torch.ones(x.shape[1], x.shape[1], device=x.device).triu(1).bool()
        mixed = scores.masked_fill(later, -torch.inf).softmax(-1) @ v.flatten(2)
        result: Tensor = self.out(mixed)
        return result


def test_each_head_has_scores_of_its_own(case) -> None:
    """Heads that are alike, as a fixed number of them is in the limit, are another theory."""
    problem, limit, sharpness = case
    settings = NORMED if isinstance(problem.network.plan.model.norm, nn.LayerNorm) else RICH
    posed = pose(problem.inputs, problem.targets, **settings, attention=Averaged)
    answer = dmft.solve(posed, dmft.solvers.InfiniteWidth(512, 2), record=RECORD)
    with pytest.raises(AssertionError, match=r"forward\.4 is .* off"):
        assert_agrees(limit, answer, sharpness)


def test_the_size_of_heads_matters(case) -> None:
    """Larger heads have smaller scores at the start."""
    problem, limit, sharpness = case
    settings = NORMED if isinstance(problem.network.plan.model.norm, nn.LayerNorm) else RICH
    posed = pose(problem.inputs, problem.targets, **{**settings, "size": 8})
    answer = dmft.solve(posed, dmft.solvers.InfiniteWidth(512, 2), record=RECORD)
    with pytest.raises(AssertionError, match=r"backward\.2 is .* off"):
        assert_agrees(limit, answer, sharpness)


@pytest.mark.parametrize(("width", "neurons", "wide"), [(12, 101, 100), (12, 103, 104), (20, 97, 96)])
def test_widths_stay_divisible_by_the_size_of_a_head(width: int, neurons: int, wide: int, generator) -> None:
    inputs, _ = transformer.data(4, generator)
    twin = dmft.infinite_width(encoder(width, size=4), inputs, neurons=neurons)
    assert twin.width == wide
    assert twin.model(inputs).shape == (4, 1)


def test_a_factory_is_called_with_widths_that_heads_divide(generator: torch.Generator) -> None:
    inputs, _ = transformer.data(4, generator)
    with pytest.raises(InvalidInputError, match=r"neurons=104"):
        dmft.infinite_width(lambda width: encoder(width, size=4), inputs, neurons=102)
    assert dmft.infinite_width(lambda width: encoder(width, size=4), inputs, neurons=104).model(inputs).shape == (4, 1)


def test_networks_of_other_widths_keep_the_size_of_heads(generator: torch.Generator) -> None:
    """Finite width and wide networks are built with more heads of the same size."""
    inputs, targets = transformer.data(4, generator)
    plan = dmft.parameterize(encoder(16, size=4), inputs)
    problem = dmft.Problem.like(plan, dmft.Probe(inputs, targets), lr=0.1, steps=2)
    for solver in (dmft.solvers.WideEnsemble((16, 32), 4), dmft.solvers.FiniteWidth(30, 4)):
        answer = dmft.solve(problem, solver)
        assert torch.isfinite(answer.outputs).all()


class Viewed(transformer.Attention):
    """Both numbers are given to the reshape, one of them computed in forward."""

    def forward(self, x: Tensor) -> Tensor:
        samples, tokens, width = x.shape
        number, size = self.layout
        layout = (number, width // number) if number > 0 else (width // size, size)
        q, k, v = (layer(x).view(samples, tokens, *layout).transpose(1, 2) for layer in (self.q, self.k, self.v))
        scores = q @ k.mT * (self.scale / layout[1])
        mixed = scores.softmax(-1) @ v
        result: Tensor = self.out(mixed.transpose(1, 2).reshape(samples, tokens, width))
        return result


@pytest.mark.parametrize("size", [None, 4])
def test_the_way_heads_are_laid_out_is_no_matter(size: int | None, generator: torch.Generator) -> None:
    """Exact: the same latents, and the same numbers made of them."""
    inputs, targets = transformer.data(4, generator)
    options = {"norm": False, "gamma0": 1.0, "lr": 0.1, "size": size, "by_hand": True}
    answers = [
        dmft.solve(
            pose(inputs, targets, attention=attention, **options), dmft.solvers.InfiniteWidth(128, 2), record=[0, 5]
        )
        for attention in (transformer.Attention, Viewed)
    ]
    torch.testing.assert_close(answers[0].outputs, answers[1].outputs, rtol=1e-4, atol=1e-5)
    assert not torch.equal(answers[0].outputs[0], answers[0].outputs[1])


class Counted(nn.Module):
    """An encoder whose heads are counted when it is built: of one instance their number looks fixed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.attention = nn.Linear(transformer.FEATURES, width), transformer.Attention(width, by_hand=True)
        self.attention.layout = (width // 4, -1)
        self.readout = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.readout(self.attention(self.embed(x)).mean(1))
        return result


def test_heads_that_are_counted_when_a_model_is_built_are_not_taken_for_a_fixed_number(generator) -> None:
    inputs, _ = transformer.data(4, generator)
    assert dmft.describe(Counted(16), inputs).is_traced  # a copy of this instance has four heads at any width
    assert not dmft.describe(Counted(16), inputs, wider=Counted).is_traced
    assert dmft.describe(encoder(16), inputs, wider=encoder).is_traced
    assert dmft.describe(encoder(16, size=4), inputs, wider=lambda width: encoder(width, size=4)).is_traced


def moved_scores(width: int, networks: int, *, power: float, trained: bool, size: int | None = None) -> float:
    """Root mean square of what six steps of gradient descent change in the scores of small attentive networks."""
    inputs, targets = transformer.data(6, torch.Generator().manual_seed(0))
    squares = []
    for seed in range(networks):
        model = encoder(width, norm=False, by_hand=True, size=size)
        plan = dmft.parameterize(model, inputs, generator=torch.Generator().manual_seed(seed))
        attention = model.blocks[0].attention
        attention.power = power
        for layer in (attention.q, attention.k):
            layer.weight.requires_grad_(trained)

        def scores(model: nn.Module = model, attention: transformer.Attention = attention) -> Tensor:
            with torch.no_grad():
                stream = model.embed(inputs)
                q, k = (
                    layer(stream).unflatten(-1, attention.layout).transpose(1, 2)
                    for layer in (attention.q, attention.k)
                )
                return q @ k.mT / q.shape[-1] ** power

        start, optimizer = scores(), torch.optim.SGD(plan.param_groups(0.05))
        for _ in range(6):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(inputs), targets).backward()
            optimizer.step()
        squares.append((scores() - start).square().mean())
    return float(torch.stack(squares).mean().sqrt())


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
def test_scores_over_a_root_have_no_limit_at_any_rate_of_queries_and_keys(trained: bool) -> None:
    """A slope: they move by sqrt(N) even if queries and keys are frozen, as what is read moves along the scores' gradient.

    Its size is N d f/d x ~ N (df/ds) W_q^T k / sqrt(d N) ~ sqrt(N) df/ds, and df/ds is of order one once values have learned.
    """
    few, many = (moved_scores(width, networks, power=0.5, trained=trained) for width, networks in ((64, 10), (512, 2)))
    assert math.log(many / few) / math.log(8) == pytest.approx(0.5, abs=0.2)
    few, many = (
        moved_scores(width, networks, power=0.5, trained=trained, size=4) for width, networks in ((64, 10), (512, 2))
    )
    assert math.log(many / few) / math.log(8) == pytest.approx(0.0, abs=0.2)  # heads of a fixed size
