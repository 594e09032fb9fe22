"""Attention as PyTorch has it, q.k / sqrt(d) of a fixed number of heads: queries hold what scores lack, and theory follows."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torch_dmft as dmft
from tests import transformer
from tests.reference.ensembles import Limit
from tests.theory.engine import attentive
from tests.theory.engine.test_attention import FEW, MANY, NORMED, RECORD, RICH, STEPS, encoder
from tests.theory.validation.agreement import assert_agrees
from torch_dmft.architecture import describe as described_alone
from torch_dmft.core.errors import UnsupportedModelError
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.parameterization.apply import scaled
from torch_dmft.parameterization.wrapping import Wrapping

ROOT, PLAIN = 0.5, 1.0


class Packed(nn.Module):
    """One projection for queries, keys and values, with biases, and products by hand."""

    def __init__(self, width: int, power: float, scale: float = 1.0) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.power, self.scale = power, scale

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        weights = torch.softmax(q @ k.mT * (self.scale / q.shape[-1] ** self.power), dim=-1)
        result: Tensor = self.out((weights @ v).transpose(1, 2).flatten(2))
        return result


class Plainest(transformer.Attention):
    """``F.scaled_dot_product_attention`` with all its defaults, or with 1/d for its scale; with biases."""

    def __init__(self, width: int, power: float) -> None:
        super().__init__(width, power=power)
        self.q, self.k = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, self.layout).transpose(1, 2) for layer in (self.q, self.k, self.v))
        scale = None if self.power == ROOT else 1 / q.shape[-1]
        result: Tensor = self.out(F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2))
        return result


class Normed(transformer.Attention):
    """Queries and keys are normalised in each head, so that their size says nothing and a gain has to hold the number."""

    def __init__(self, width: int, power: float) -> None:
        super().__init__(width, power=power)
        self.norm_q, self.norm_k = nn.RMSNorm(width // 2), nn.LayerNorm(width // 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, self.layout).transpose(1, 2) for layer in (self.q, self.k, self.v))
        scale = 2 / q.shape[-1] ** self.power
        mixed = F.scaled_dot_product_attention(self.norm_q(q), self.norm_k(k), v, scale=scale)
        result: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return result


def build(width: int, power: float, kind: str, *, norm: bool = False) -> nn.Module:
    model = encoder(width, norm=norm, power=power, by_hand=kind == "by hand", scale=1.0 if kind == "default" else 2.0)
    if kind == "packed":
        model.blocks[0].attention = Packed(width, power, 2.0)
    if kind == "normed":
        model.blocks[0].attention = Normed(width, power)
    if kind == "default":
        model.blocks[0].attention = Plainest(width, power)
    return model.double()


KINDS = ("default", "by hand", "packed", "normed")


@pytest.fixture
def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    inputs, targets = transformer.data(4, generator)
    return inputs.double(), targets.double()


def wrapped(inputs: Tensor, power: float, kind: str, **options: Any) -> dmft.Plan:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(16, power, kind)
    return dmft.parameterize(model, inputs, gamma0=2.0, generator=torch.Generator().manual_seed(0), **options)


@pytest.mark.parametrize("kind", KINDS)
def test_one_instance_is_wrapped_as_two_are(kind: str, batch) -> None:
    """Exact: the same numbers, rules and words, and the same way back."""
    one = wrapped(batch[0], ROOT, kind)
    two = wrapped(batch[0], ROOT, kind, wider=lambda width: build(width, ROOT, kind))
    assert one.architecture.factors == pytest.approx(two.architecture.factors, rel=1e-12)
    assert len(one.architecture.factors) == {"default": 2, "by hand": 1, "packed": 3, "normed": 1}[kind]
    assert one.architecture.is_traced
    assert two.architecture.is_traced
    for mine, other in zip(one.model.parameters(), two.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=0)
    assert [(rule.name, rule.role) for rule in one.rules] == [(rule.name, rule.role) for rule in two.rules]
    assert one.multipliers == pytest.approx(two.multipliers, rel=1e-12)
    assert one.notes == two.notes
    assert "q.k/d" in str(one)
    saved = [{rule["name"]: rule["std"] for rule in plan.state_dict()["rules"]} for plan in (one, two)]
    assert saved[0] == pytest.approx(saved[1], rel=1e-12)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        before = build(16, ROOT, kind).state_dict()
    one.undo()
    assert all(torch.equal(value, before[name]) for name, value in one.model.state_dict().items())


def recorded(plan: dmft.Plan, batch: tuple[Tensor, Tensor], optimizer: str) -> Trajectory:
    """Six steps of a network, its fields and kernels between two times included."""
    method = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[optimizer]
    stepper = method(plan.param_groups(0.05, optimizer=optimizer, weight_decay=0.1))
    recorder = dmft.Recorder(plan, dmft.Probe(*batch), schedule=[0, 3, 6], two_time=True)
    with recorder.attach(stepper):
        for _ in range(6):
            stepper.zero_grad()
            F.mse_loss(plan.model(batch[0]), batch[1]).backward()
            stepper.step()
    return recorder.trajectory()


def assert_same(one: Trajectory, other: Trajectory, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(one.outputs, other.outputs, rtol=tolerance, atol=tolerance)
    for mine, theirs in zip(one.layers, other.layers, strict=True):
        for name in ("forward", "backward", "ntk"):
            pair = (getattr(side, name).array for side in (mine, theirs))
            torch.testing.assert_close(
                *pair, rtol=tolerance, atol=tolerance, msg=lambda m, w=(mine.name, name): f"{w} {m}"
            )
        for name in ("preactivation", "gradient") if mine.fields is not None else ():
            pair = (getattr(side.fields, name) for side in (mine, theirs))
            torch.testing.assert_close(*pair, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_network_is_that_with_the_factor_in_forward_and_so_are_its_kernels(kind: str, optimizer: str, batch) -> None:
    """Exact: kernels are those of fields without the number that parameters hold, whichever way the model was wrapped."""
    expected = recorded(wrapped(batch[0], PLAIN, kind), batch, optimizer)
    wider = {"wider": lambda width: build(width, ROOT, kind)}
    for options in ({}, wider, {**wider, "outputs": lambda out: out}):  # with outputs= models are not traced
        plan = wrapped(batch[0], ROOT, kind, **options)
        assert plan.architecture.is_traced is ("outputs" not in options)
        assert_same(recorded(plan, batch, optimizer), expected, 1e-7)


SOLVERS = [
    dmft.solvers.InfiniteWidth(256, 2, tolerance=0.1),  # small ones let rounding decide which direction comes first
    dmft.solvers.GradientIndependence(256, 2, tolerance=0.1),
    dmft.solvers.FiniteWidth(32, 4),
    dmft.solvers.WideEnsemble((16, 32), 4),
]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_those_with_the_factor_in_forward(kind: str, solver: Any, optimizer: str, batch) -> None:
    """Exact: at other widths, too, where the number is another one."""
    answers = []
    for power in (ROOT, PLAIN):
        plan = wrapped(batch[0], power, kind)
        settings = {"lr": 0.05, "steps": 3, "optimizer": optimizer}
        if isinstance(solver, dmft.solvers.GradientIndependence):
            if optimizer != "sgd":
                pytest.skip("knows gradient descent only")
        elif optimizer == "sgd":
            settings |= {"weight_decay": 0.1, "momentum": 0.5}
        problem = dmft.Problem.like(plan, dmft.Probe(*batch), **settings)
        answers.append(dmft.solve(problem, solver, record=[0, 3]))
    assert_same(*answers, tolerance=1e-6)


def test_networks_of_a_factory_have_the_kernels_of_the_run(batch) -> None:
    """Exact: networks that are built, compared in pairs and never traced."""
    answers = []
    for power in (ROOT, PLAIN):

        def factory(width: int, power: float = power) -> nn.Module:
            return build(width, power, "packed")

        plan = wrapped(batch[0], power, "packed", wider=factory, outputs=lambda out: out)
        problem = dmft.Problem.like(plan, dmft.Probe(*batch), lr=0.05, steps=2)
        answers.append(dmft.solve(problem, dmft.solvers.WideEnsemble((16, 32), 4, factory=factory), record=[0, 2]))
    assert_same(*answers, tolerance=1e-7)


@cache
def limit_of(*, sharp: bool, rich: bool) -> Limit:
    """Networks of three widths in unit form with scores 2 q.k / d."""
    inputs, targets = transformer.data(6, torch.Generator().manual_seed(0))
    oracle = {"steps": STEPS, "record": RECORD, "generator": torch.Generator().manual_seed(1)}
    networks = MANY if sharp else {**FEW, 256: 48}
    return attentive.limit(inputs, targets[:, 0], networks, scale=2.0, **(RICH if rich else NORMED), **oracle)


def posed(rich: bool, *, folds: bool) -> dmft.Problem:
    """An encoder with scores 2 q.k / sqrt(d), wrapped from one instance; without folds as the mean field knows no better."""
    inputs, targets = transformer.data(6, torch.Generator().manual_seed(0))
    settings = RICH if rich else NORMED
    model = encoder(norm=settings["norm"], power=ROOT, scale=2.0)
    if folds:
        plan = dmft.parameterize(model, inputs, gamma0=settings["gamma0"], generator=torch.Generator().manual_seed(1))
    else:
        found = described_alone(model, inputs, roots=True)
        plan = scaled(model, found, Wrapping(), gamma0=settings["gamma0"], scheme="mean_field")
    return dmft.Problem.like(plan, dmft.Probe(inputs, targets), lr=settings["lr"], steps=STEPS)


@pytest.mark.parametrize("sharp", [False, pytest.param(True, marks=pytest.mark.long)])
@pytest.mark.parametrize("rich", [False, True], ids=["gamma0 = 1, norm", "gamma0 = 2"])
def test_limit_is_that_of_wide_networks(rich: bool, sharp: bool) -> None:
    solver = dmft.solvers.InfiniteWidth(1024, 4)
    answer = dmft.solve(posed(rich, folds=True), solver, record=RECORD)
    assert_agrees(limit_of(sharp=sharp, rich=rich), answer, 0.07 if sharp else 0.15)
    without = dmft.solve(posed(rich, folds=False), solver, record=RECORD)
    with pytest.raises(AssertionError, match=r"backward\.1 is .* off"):
        assert_agrees(limit_of(sharp=sharp, rich=rich), without, 1.0)


class Frozen(transformer.Attention):
    """Queries and keys that cannot hold anything."""

    def __init__(self, width: int) -> None:
        super().__init__(width, power=ROOT)
        self.q.requires_grad_(False)
        self.k.requires_grad_(False)


class Stored(transformer.Attention):
    """The factor of the width that it was built at, as timm has it."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.factor = (width // 2) ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, self.layout).transpose(1, 2) for layer in (self.q, self.k, self.v))
        result: Tensor = self.out(F.scaled_dot_product_attention(q, k, v, scale=self.factor).transpose(1, 2).flatten(2))
        return result


@pytest.mark.parametrize("attention", [Frozen, Stored])
def test_where_nothing_can_hold_the_factor_the_model_is_refused(attention: type[nn.Module], batch) -> None:
    model = encoder(16)
    model.blocks[0].attention = attention(16)
    with pytest.raises(
        UnsupportedModelError, match=r"is divided by its square root, 2\.828\. Remedy: divide by the width d"
    ):
        dmft.parameterize(model.double(), batch[0])


def test_a_pretrained_model_keeps_its_scores_and_has_no_prediction(batch) -> None:
    model = build(16, ROOT, "by hand")
    nn.init.normal_(model.readout.weight, std=1 / 16)
    plan = dmft.parameterize(model, batch[0], init="untouched")
    assert "stay q.k/sqrt(d)" in str(plan.notes)
    for solver in (dmft.solvers.InfiniteWidth(96, 2), dmft.solvers.FiniteWidth(32, 4)):
        with pytest.raises(UnsupportedModelError, match=r"scores stay q\.k/sqrt\(d\)"):
            dmft.solve(dmft.Problem.like(plan, dmft.Probe(*batch), lr=0.05, steps=2, assume_gaussian=True), solver)


@pytest.mark.parametrize("is_factory", [False, True])
def test_a_twin_of_a_model_or_a_factory_holds_it_too(is_factory: bool, batch) -> None:
    """Exact: the twins in a loop of one's own, with biases that are given."""
    outputs = []
    for power in (ROOT, PLAIN):

        def factory(width: int, power: float = power) -> nn.Module:
            return build(width, power, "default")

        bias = {"blocks.0.attention.q": 0.5, "blocks.0.attention.k": 0.5}
        made = factory if is_factory else factory(16)
        twin = dmft.infinite_width(
            made, batch[0], neurons=256, tolerance=0.1, bias_std=bias, generator=torch.Generator().manual_seed(0)
        )
        optimizer = torch.optim.SGD(twin.param_groups(0.05, weight_decay=0.1))
        for _ in range(3):
            optimizer.zero_grad()
            F.mse_loss(twin.model(batch[0]), batch[1]).backward()
            optimizer.step()
        outputs.append(twin.model(batch[0]).detach())
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-12)
