"""A readout that is the embedding in infinite width: that of networks by hand, of one network, and not of weights apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torch_dmft as dmft
from tests.reference.ensembles import Limit, observables
from tests.theory.engine import tied
from tests.theory.validation.agreement import assert_agrees, moved
from torch_dmft.core.errors import UnsupportedModelError, UnsupportedProblemError
from torch_dmft.measurement import empirical_ntk
from torch_dmft.parameterization import Plan, rules
from torch_dmft.theory.engine import draw, posed
from torch_dmft.theory.engine.networks import initialise, network_of

VOCABULARY, SIZE, STEPS, RECORD = 4, 0.5, 8, (0, 4, 8)
TOKENS = torch.tensor([[0, 1], [2, 3], [1, 1], [3, 0]], device="cpu")
TARGETS = torch.tensor([1, 0, 2, 3], device="cpu")
SOLVER = dmft.solvers.InfiniteWidth(1024, 4)
NO_SHARE = ("ntk.2",)
"""The readout's part of the NTK, which is the embedding's."""


class Language(nn.Module):
    """A stream of tokens with one branch, read out by the embedding: the mean, or every place."""

    def __init__(
        self,
        width: int = 16,
        *,
        first: str = "tokens",
        bias: bool = False,
        padding: int | None = None,
        places: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        table = nn.Embedding(VOCABULARY, width, padding, _weight=rows(width, padding).to(dtype))
        if first == "tokens":
            self.tokens = table
        self.mix, self.head = nn.Linear(width, width, bias=False), nn.Linear(width, VOCABULARY, bias=bias)
        self.places = places
        self.to(dtype)
        self.tokens = table
        self.head.weight = table.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x)
        h = h + self.mix(torch.tanh(h))
        result: Tensor = self.head(torch.tanh(h) if self.places else torch.tanh(h).mean(1))
        return result.flatten(1)


def rows(width: int, padding: int | None = None) -> Tensor:
    """Gaussian numbers of the very size that the limit is asked for."""
    drawn = torch.randn(
        VOCABULARY, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu"
    )
    if padding is not None:
        drawn[padding] = 0
    return drawn * SIZE / drawn[drawn.any(1)].square().mean().sqrt()


def wrapped(model: nn.Module, gamma0: float = 1.0) -> Plan:
    return dmft.parameterize(model, TOKENS, gamma0=gamma0, gain=1.0, generator=torch.Generator().manual_seed(1))


def pose(model: nn.Module, *, gamma0: float = 1.0, **run: Any) -> dmft.Problem:
    targets = TOKENS.flip(1) if isinstance(model, Language) and model.places else TARGETS
    return dmft.Problem.like(wrapped(model, gamma0), dmft.Probe(TOKENS, targets), **{"steps": STEPS, "lr": 1.0, **run})


@pytest.fixture(scope="module", params=[(1.0, 1.5), (2.0, 1.0)], ids=["gamma0=1", "gamma0=2"])
def case(request: pytest.FixtureRequest) -> tuple[Limit, dict[str, float]]:
    """The limit of networks that this package knows nothing of, and how they were trained."""
    gamma0, lr = request.param
    run = {"gamma0": gamma0, "lr": lr}
    settings = {"vocabulary": VOCABULARY, "size": SIZE, "steps": STEPS, "record": RECORD, **run}
    networks = {48: 2048, 96: 1024, 192: 384}
    return tied.limit(TOKENS, TARGETS, networks, generator=torch.Generator().manual_seed(3), **settings), run


def test_limit_is_that_of_wide_networks(case: tuple[Limit, dict[str, float]]) -> None:
    limit, run = case
    assert_agrees(limit, dmft.solve(pose(Language(), **run), SOLVER, record=RECORD), without=NO_SHARE)
    assert moved(limit, "forward.2") > 0.1
    assert (limit.mean["losses"].diff() < -0.05).all()
    assert float(limit.mean["outputs"][0].abs().max() * run["gamma0"]) > 0.1  # the stream has the token's own row


def _by_one_use(patch: pytest.MonkeyPatch) -> None:
    """The readout does not train the table."""

    class Fixed(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight.detach())

    right = draw.Draw.tied

    def wrong(self: Any, layer: Any, module: nn.Module) -> nn.Module:
        made = right(self, layer, module)
        made.__class__ = Fixed
        return made

    patch.setattr(draw.Draw, "tied", wrong)


def _apart(patch: pytest.MonkeyPatch) -> None:
    """The readout starts with the rows of the table and learns by itself."""
    right = posed.infinite_width

    def wrong(*given: Any, **settings: Any) -> Plan:
        plan = right(*given, **settings)
        plan.model.head.weight = nn.Parameter(plan.model.tokens.weight.detach().clone())
        plan.rules = (*plan.rules, replace(plan.rule("tokens.weight"), name="head.weight", path="head"))
        return plan

    patch.setattr(posed, "infinite_width", wrong)


def _of_size_one(patch: pytest.MonkeyPatch) -> None:
    """The multiplier lacks the size of the rows."""
    right = rules.tied_multiplier
    patch.setattr(rules, "tied_multiplier", lambda _, **settings: right(1.0, **settings))


@pytest.mark.parametrize("broken", [_by_one_use, _apart, _of_size_one])
def test_other_ties_have_another_limit(
    broken: Callable[[pytest.MonkeyPatch], None],
    case: tuple[Limit, dict[str, float]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit, run = case
    problem = pose(Language(), **run)
    broken(monkeypatch)
    with pytest.raises(AssertionError, match=r"losses is .* off"):
        assert_agrees(limit, dmft.solve(problem, SOLVER, record=RECORD), without=NO_SHARE)


def test_other_sizes_have_another_limit(case: tuple[Limit, dict[str, float]]) -> None:
    limit, run = case
    model = Language()
    with torch.no_grad():
        model.tokens.weight.mul_(1.2)
    with pytest.raises(AssertionError, match=r"losses is .* off"):
        assert_agrees(limit, dmft.solve(pose(model, **run), SOLVER, record=RECORD), without=NO_SHARE)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_twin_that_met_all_directions_is_a_network_of_its_width(optimizer: str, *, bias: bool) -> None:
    """Number for number: the same start, torch's own layers, one tensor with two uses."""
    width, generator = 24, torch.Generator().manual_seed(2)
    plan = wrapped(Language(bias=bias, dtype=torch.float64))
    limit = dmft.infinite_width(
        plan, TOKENS, neurons=width, law="network", tolerance=1e-13, whole=optimizer == "adam", generator=generator
    )
    network = Language(width, bias=bias, dtype=torch.float64)
    with torch.no_grad():
        network.mix.weight.copy_(limit.model.mix(torch.eye(width, dtype=torch.float64, device="cpu")).T)
        network.tokens.weight.copy_(limit.model.tokens.weight)
        if bias:
            network.head.bias.zero_()
    unit, number = 1.0 * width, 1 / (SIZE * width)
    rates = {"tokens.weight": SIZE**2 * unit, "mix.weight": 1.0, "head.bias": number**-2}
    if optimizer == "adam":
        rates = {"tokens.weight": SIZE, "mix.weight": 1 / width, "head.bias": 1 / number}
    kind: Any = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer]
    lr = {"sgd": 0.5, "adam": 0.05}[optimizer]
    by_hand = [{"params": [value], "lr": lr * rates[name]} for name, value in network.named_parameters()]
    settings: dict[str, Any] = {"sgd": {"momentum": 0.3}, "adam": {"eps": 1e-30}}[optimizer]
    own = kind(limit.param_groups(lr, optimizer=optimizer, eps=1e-30), **settings)
    pairs = [(limit.model, own, 1.0), (network, kind(by_hand, **settings), number)]
    for _ in range(5):
        outputs = []
        for model, stepper, factor in pairs:
            f = model(TOKENS) * factor
            stepper.zero_grad()
            F.cross_entropy(f, TARGETS).backward()
            stepper.step()
            outputs.append(f)
        torch.testing.assert_close(*outputs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("settings", [{}, {"first": "head"}, {"bias": True, "places": True}, {"padding": 1}], ids=str)
def test_the_tangent_kernel_of_a_twin_has_both_uses_and_what_they_share(settings: dict[str, Any]) -> None:
    """Of the same numbers in a network, by its full Jacobian."""
    width, generator = 24, torch.Generator().manual_seed(2)
    plan = wrapped(Language(**settings, dtype=torch.float64), 0.7)
    limit = dmft.infinite_width(plan, TOKENS, neurons=width, law="network", tolerance=1e-13, generator=generator)
    model = Language(width, **settings, dtype=torch.float64)
    own = wrapped(model, 0.7)
    with torch.no_grad():
        model.mix.weight.copy_(limit.model.mix(torch.eye(width, dtype=torch.float64, device="cpu")).T)
        model.tokens.weight.copy_(limit.model.tokens.weight)
    found, exact = empirical_ntk(limit, TOKENS), empirical_ntk(own, TOKENS, method="jacobian")
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("settings", [{"places": True}, {"first": "head", "bias": True}, {"padding": 1}], ids=str)
def test_networks_widened_by_themselves_have_this_limit(settings: dict[str, Any]) -> None:
    run = (
        {"lr": 0.1, "optimizer": "adam"}
        if settings.get("padding")
        else {"momentum": 0.5, "weight_decay": 0.1, "lr": 0.3}
    )
    problem = pose(Language(**settings), **{"steps": 4, **run})
    networks = dmft.solve(problem, dmft.solvers.WideEnsemble((32, 64, 128), 16), record=[0, 4])
    theory = dmft.solve(problem, dmft.solvers.InfiniteWidth(1024, 4), record=[0, 4])
    for name in ("outputs", "losses"):
        ours, theirs = getattr(theory, name), getattr(networks, name)
        error = (getattr(theory.stderr, name) ** 2 + getattr(networks.stderr, name) ** 2).sqrt()
        assert float(((ours - theirs) / error).abs().max()) < 5
        assert float(error.square().mean().sqrt() / ours.square().mean().sqrt()) < 0.1


def test_networks_and_their_starts_stay_tied() -> None:
    plan = network_of(pose(Language(bias=True), gamma0=0.5), 48)
    initialise(plan, torch.Generator().manual_seed(0))
    model = plan.model
    assert model.head.weight is model.tokens.weight
    assert model.tokens.weight.shape == (VOCABULARY, 48)
    rule, number = plan.rule("tokens.weight"), 1 / (SIZE * 0.5 * 48)
    assert (rule.std, rule.lr, rule.adam_lr) == pytest.approx((SIZE, SIZE**2 * 0.25 * 48, SIZE * 0.5))
    assert plan.rule("head.bias").lr == pytest.approx(number**-2)
    h = torch.randn(3, 48, generator=torch.Generator().manual_seed(1), device="cpu")
    torch.testing.assert_close(model.head(h), number * h @ model.tokens.weight.T)


def test_a_recorded_run_is_posed_and_solved() -> None:
    model = Language(256)
    plan = wrapped(model)
    optimizer = torch.optim.SGD(plan.param_groups(1.0))
    recorder = dmft.Recorder(plan, dmft.Probe(TOKENS, TARGETS))
    with recorder.attach(optimizer):
        for _ in range(4):
            optimizer.zero_grad()
            recorder.batch(torch.arange(4, device="cpu"))
            F.cross_entropy(model(TOKENS), TARGETS).backward()
            optimizer.step()
    answer, measured = dmft.solve(recorder.problem(), dmft.solvers.InfiniteWidth(512, 2)), recorder.trajectory()
    for name, values in observables(answer).items():
        theirs = observables(measured)[name]
        assert float((values - theirs).norm()) <= 0.3 * float(theirs.norm()), name


def test_a_run_of_the_centered_model_is_refused_as_f_does_not_start_at_zero() -> None:
    model = Language(32)
    plan = wrapped(model)
    optimizer, run = torch.optim.SGD(plan.param_groups(0.5)), dmft.centered(model)
    recorder = dmft.Recorder(plan, dmft.Probe(TOKENS, TARGETS), model=run)
    with recorder.attach(optimizer):
        F.cross_entropy(run(TOKENS), TARGETS).backward()
        optimizer.step()
    with pytest.raises(UnsupportedProblemError, match=r"head is tied"):
        recorder.problem(batches=4)


def test_a_pretrained_size_is_refused_unless_gamma0_is_its_own() -> None:
    def problem(gamma0: float) -> dmft.Problem:
        model = Language(64)
        plan = dmft.parameterize(model, TOKENS, gamma0, init="untouched", generator=torch.Generator().manual_seed(1))
        probe = dmft.Probe(TOKENS, TARGETS)
        return dmft.Problem.like(plan, probe, lr=0.1, steps=1, assume_gaussian=True)

    with pytest.raises(UnsupportedProblemError, match=r"tokens\.weight, 32 times as large"):
        problem(1.0)
    assert problem(1 / (SIZE * 64)).gamma0 == pytest.approx(1 / 32)


class Apart(Language):
    """A readout of its own."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.head.weight = nn.Parameter(torch.randn(VOCABULARY, width, generator=torch.Generator().manual_seed(4)))


def chain(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, VOCABULARY))


@pytest.mark.parametrize("factory", [Language, Apart, chain])
def test_networks_of_a_factory_keep_a_pretrained_size_and_a_twin_is_refused(
    factory: Callable[[int], nn.Module],
) -> None:
    inputs = TOKENS.float() if factory is chain else TOKENS
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = factory(64)
        before = model(inputs).detach()
        plan = dmft.parameterize(model, inputs, wider=factory, init="untouched")
    assert plan.architecture.is_traced
    probe = dmft.Probe(inputs, TARGETS)
    problem = dmft.Problem.like(plan, probe, lr=1e-3, steps=1, assume_gaussian=True)
    with pytest.raises(UnsupportedModelError, match=r"weight: it keeps a size that is .* times the 1/\(gamma0 N\)"):
        dmft.solve(problem, dmft.solvers.InfiniteWidth(256, 1))
    answer = dmft.solve(problem, dmft.solvers.WideEnsemble((32, 64), 4))  # by the factory of the plan
    sizes = [float(f.square().mean().sqrt()) for f in (answer.outputs[0], before)]
    assert sizes[0] > 0.1 * sizes[1]
