"""Learning rules: gradients of networks by hand, the engine against one network, many networks and closed forms."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Any
from weakref import ReferenceType, ref

import pytest
import torch
from torch import Tensor, nn

import torch_dmft as dmft
from tests.reference.ensembles import Limit, observables, z_scores
from tests.reference.learning_rules import Rule
from tests.theory.extensions.written_down import Drawn, write_down
from torch_dmft.core.errors import InvalidInputError, UnsupportedModelError, UnsupportedProblemError
from torch_dmft.theory import solvers
from torch_dmft.theory.choose import choose
from torch_dmft.theory.engine.lazy_layer import LazyLayer
from torch_dmft.theory.engine.posed import twin_of
from torch_dmft.theory.engine.training import train_and_record
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.solvers import InfiniteWidth, StaticNTK

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(5, 6, generator=GENERATOR)
TARGETS = torch.tensor([[1.0], [-1.0], [1.0], [-1.0], [-1.0]])
RECORD = [0, 6, 12]
RULES = [
    ("feedback_alignment", 0.0),
    ("feedback_alignment", 0.5),
    ("feedback_alignment", 1.0),
    ("direct_feedback_alignment", 0.0),
    ("hebb", 0.0),
]


def pose(case: Rule, **settings: Any) -> Problem:
    """What the oracle trains, as a problem."""
    own = {name: getattr(case, name) for name in ("depth", "gamma0", "lr", "steps", "rule", "rho")}
    return Problem.mlp(case.inputs, case.targets, **{**own, **settings})


# Networks


def chain(*widths: int, outputs: int = 2) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in zip((6, *widths[:-1]), widths, strict=True):
        layers += [nn.Linear(fan_in, fan_out), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs, bias=False)).double()


@pytest.mark.parametrize(("rule", "rho"), RULES)
def test_gradients_are_those_of_the_rule(rule: str, rho: float) -> None:
    """In the second step, by hand, with biases, two outputs and unequal widths."""
    model, x = chain(24, 12, 16), INPUTS.double()
    plan = dmft.parameterize(model, x, gamma0=1.5, generator=torch.Generator().manual_seed(1))
    y = torch.randn(5, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    weights = [model[index].weight for index in (0, 2, 4, 6)]
    start = [weight.detach().clone() for weight in weights]
    stds = [plan.rule(f"{index}.weight").std for index in (2, 4, 6)]
    with dmft.learning_rule(plan, rule, rho=rho, generator=torch.Generator().manual_seed(3)):
        optimizer = torch.optim.SGD(plan.param_groups(0.1))
        for _ in range(2):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
    with torch.no_grad():
        for group in optimizer.param_groups:  # to before the second step
            for parameter in group["params"]:
                parameter += group["lr"] * parameter.grad
    source = torch.Generator().manual_seed(3)
    drawn = {"generator": source, "dtype": torch.float64}
    unit = 1 / (1.5 * 16)
    if rule == "direct_feedback_alignment":
        back = [unit * torch.randn(2, weight.shape[1], **drawn) for weight in start[1:]]
    else:
        noise = [std * torch.randn(weight.shape, **drawn) for std, weight in zip(stds, start[1:], strict=True)]
        back = [rho * weight + (1 - rho**2) ** 0.5 * each for weight, each in zip(start[1:], noise, strict=True)]
    h, phi = [], [x]
    for index in (0, 2, 4):
        h.append(model[index](phi[-1]))
        phi.append(torch.tanh(h[-1]))
    slope = 2 / 10 * (phi[-1] @ weights[-1].T - y)
    sent = slope
    torch.testing.assert_close(weights[-1].grad, slope.T @ phi[-1], rtol=1e-10, atol=1e-14)
    for layer in (2, 1, 0):
        if rule == "hebb":
            sent = -unit * slope.square().sum(1, keepdim=True) * phi[layer + 1]
        elif rule == "direct_feedback_alignment":
            sent = (slope @ back[layer]) * (1 - phi[layer + 1].square())
        else:
            sent = (sent @ back[layer]) * (1 - phi[layer + 1].square())
        torch.testing.assert_close(weights[layer].grad, sent.T @ phi[layer], rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(model[2 * layer].bias.grad, sent.sum(0), rtol=1e-10, atol=1e-14)


def slopes(model: nn.Module, x: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(model(x).square().sum(), list(model.parameters())))


def test_nothing_is_left_behind() -> None:
    model, x = chain(16, 16), INPUTS.double()
    plan = dmft.parameterize(model, x)
    before, outputs = slopes(model, x), model(x)
    with dmft.learning_rule(plan, "hebb") as rule:
        assert torch.equal(model(x), outputs)
        assert any(not torch.equal(*pair) for pair in zip(slopes(model, x), before, strict=True))
        assert plan.learns_by == ("hebb", 0.0)
        with pytest.raises(InvalidInputError, match=r"one rule at a time"), dmft.learning_rule(plan, "hebb"):
            pass
    assert plan.learns_by == ("gradient", 0.0)
    with pytest.raises(InvalidInputError, match=r"at work"):
        rule.alignment(x)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(*pair) for pair in zip(slopes(model, x), before, strict=True))


@pytest.mark.parametrize("rule", ["feedback_alignment", "direct_feedback_alignment", "hebb"])
@pytest.mark.parametrize("learned", [True, False])
def test_a_pass_is_forgotten_with_its_outputs(rule: str, learned: bool) -> None:
    """What a step remembers would hold itself: every step of a long run stayed in memory."""
    x, model = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64), chain(4, 5)
    plan, seen = dmft.parameterize(model, x), list[ReferenceType[Tensor]]()
    with dmft.learning_rule(plan, rule):
        with model[1].register_forward_hook(lambda _, __, h: seen.append(ref(h))):
            outputs = model(x)
        if learned:
            outputs.sum().backward()
        del outputs
        model(x)  # the next step
        assert seen[0]() is None


def test_the_initial_weights_send_back_gradients_at_first_alone() -> None:
    model, x = chain(16, 16), INPUTS.double()
    plan = dmft.parameterize(model, x)
    with dmft.learning_rule(plan, "feedback_alignment", rho=1.0) as rule:
        for taught, true in zip(slopes(model, x), before := _without(plan, model, x), strict=True):
            torch.testing.assert_close(taught, true)
        torch.testing.assert_close(rule.alignment(x), torch.ones(2, 5, dtype=torch.float64))
        with torch.no_grad():
            model[2].weight.mul_(-1)
        assert not torch.allclose(slopes(model, x)[0], _without(plan, model, x)[0])
        torch.testing.assert_close(rule.alignment(x)[1], torch.ones(5, dtype=torch.float64))
        assert float(rule.alignment(x)[0].max()) < 0
    assert before


def _without(plan: dmft.Plan, model: nn.Module, x: Tensor) -> list[Tensor]:
    """The gradients of the loss: of a network with the same weights that learns by no rule."""
    other = chain(16, 16)
    other.load_state_dict(model.state_dict())
    return slopes(other, x)


def test_a_rule_is_that_of_a_chain() -> None:
    normed = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 1))
    with (
        pytest.raises(UnsupportedModelError, match=r"chains"),
        dmft.learning_rule(dmft.parameterize(normed, INPUTS), "hebb"),
    ):
        pass
    with pytest.raises(InvalidInputError, match=r"rho between 0 and 1"):
        Problem.mlp(INPUTS, TARGETS, rule="feedback_alignment", rho=1.5)
    with pytest.raises(InvalidInputError, match=r"Only feedback alignment"):
        Problem.mlp(INPUTS, TARGETS, rule="hebb", rho=0.5)


# A run


@pytest.fixture
def run() -> Iterator[tuple[dmft.Recorder, dmft.LearningRule]]:
    model = nn.Sequential(nn.Linear(6, 64, bias=False), nn.Tanh(), nn.Linear(64, 64, bias=False), nn.Tanh())
    model.append(nn.Linear(64, 1, bias=False))
    plan = dmft.parameterize(model, INPUTS, gamma0=2.0, generator=torch.Generator().manual_seed(0))
    recorder = dmft.Recorder(plan, dmft.Probe(INPUTS, TARGETS))
    optimizer = torch.optim.SGD(plan.param_groups(0.2))
    with dmft.learning_rule(plan, "feedback_alignment", rho=0.5) as rule, recorder.attach(optimizer):
        for _ in range(6):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(INPUTS), TARGETS).backward()
            optimizer.step()
        yield recorder, rule


def test_a_run_is_posed_as_it_was_taught(run: tuple[dmft.Recorder, dmft.LearningRule]) -> None:
    recorder, _ = run
    problem, measured = recorder.problem(), recorder.trajectory()
    assert (problem.training.rule, problem.training.rho) == ("feedback_alignment", 0.5)
    assert not problem.training.notes
    assert problem.training.batches_known
    assert bool(measured.edge.isnan().all())
    predicted = dmft.solve(problem, InfiniteWidth(512, 2))
    dmft.compare(measured, predicted)
    other = dmft.solve(problem.trained(rule="gradient", rho=0.0), InfiniteWidth(512, 2))
    with pytest.raises(DIFFERS, match=r"learning rule: network feedback alignment with rho 0.5, theory gradient"):
        dmft.compare(measured, other)
    assert measured.training.differences(predicted.training) == []


DIFFERS = (InvalidInputError, UnsupportedProblemError)


def test_kernels_are_those_of_true_gradients(run: tuple[dmft.Recorder, dmft.LearningRule]) -> None:
    recorder, _ = run
    taken, model = recorder.look(), recorder.subject.model
    other = nn.Sequential(*(nn.Linear(i, o, bias=False) for i, o in ((6, 64), (64, 64), (64, 1))))
    for target, source in zip(other, (model[0], model[2], model[4]), strict=True):
        target.load_state_dict(source.state_dict())
    first = other[0](INPUTS)
    second = other[1](first.tanh())
    g = torch.autograd.grad(other[2](second.tanh()).sum(), [first, second])
    for layer, each in zip(taken.layers, g, strict=False):
        torch.testing.assert_close(layer.backward, (2.0 * 64) ** 2 * each @ each.T / 64)


def test_a_trajectory_keeps_its_rule(run: tuple[dmft.Recorder, dmft.LearningRule], tmp_path: Any) -> None:
    measured = run[0].trajectory()
    measured.save(tmp_path / "run")
    assert dmft.Trajectory.load(tmp_path / "run").training.rule == "feedback_alignment"
    state = run[0].state_dict()
    again = dmft.Recorder(run[0].subject.plan, run[0].probe)
    again.load_state_dict(state)
    assert again.trajectory().training.rho == 0.5


def test_a_rule_that_ends_in_the_middle_is_noted() -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
    plan = dmft.parameterize(model, INPUTS)
    recorder, optimizer = dmft.Recorder(plan, dmft.Probe(INPUTS, TARGETS)), torch.optim.SGD(plan.param_groups(0.1))

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.mse_loss(model(INPUTS), TARGETS).backward()
        optimizer.step()

    with recorder.attach(optimizer):
        with dmft.learning_rule(plan, "hebb"):
            step()
        step()
    assert "a learning rule that changes" in recorder.trajectory().training.notes[0]


# One network at infinite width


@pytest.mark.parametrize("rho", [0.0, 0.6, 1.0])
def test_the_engine_trains_one_network(rho: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """All matrices are written down, W~ too."""
    known = write_down(monkeypatch, Drawn(torch.Generator().manual_seed(5)))
    case = Rule(INPUTS[:4].double(), TARGETS[:4].double(), "feedback_alignment", rho, 2.0, depth=3, steps=5)
    problem, width = pose(case), 96
    source = torch.Generator().manual_seed(6)
    twin = twin_of(problem, width, tolerance=1e-13, generator=source, law="network", responses=True)
    twin.model(problem.tensor[:0])  # draws the readout
    hidden = [module for module in twin.model if isinstance(module, LazyLayer)]
    first, readout = twin.model[0].weight.detach().clone(), twin.model[-1].weight.detach().clone()
    start = [known[layer.matrix].clone() for layer in hidden]
    population = twin.model[-1].population
    drawn: list[Tensor] = []
    plain = population.draw
    monkeypatch.setattr(population, "draw", lambda count, **_: drawn.append(plain(count)) or drawn[-1])
    found = train_and_record(problem, twin, torch.arange(6), two_time=False, steps=range(6)).outputs
    others = [matrix for lazy, matrix in known.items() if all(lazy is not layer.matrix for layer in hidden)]
    if rho < 1:
        others.reverse()  # the last layer's is drawn first
    readout_other = drawn[0] / (2.0 * width)
    share = (1 - rho**2) ** 0.5
    back = [rho * w + (share * other if rho < 1 else 0) for w, other in zip(start, others or start, strict=True)]
    back.append(rho * readout + share * readout_other)
    weights, x = [first, *start, readout], problem.tensor
    outputs = []
    for _ in range(6):
        features = [x]
        for weight in weights[:-1]:
            features.append(torch.tanh(features[-1] @ weight.T))
        outputs.append(features[-1] @ weights[-1].T)
        sent = 2 / 4 * (outputs[-1] - problem.targets)
        pushes = [sent.T @ features[-1]]
        for phi, below, b in zip(features[:0:-1], features[-2::-1], reversed(back), strict=True):
            sent = (sent @ b) * (1 - phi.square())
            pushes.insert(0, sent.T @ below)
        rates = [rule.lr for rule in twin.rules if not rule.name.endswith("initial_scale")]
        weights = [w - 0.2 * rate * push for w, rate, push in zip(weights, rates, pushes, strict=True)]
    torch.testing.assert_close(found, torch.stack(outputs), rtol=1e-9, atol=1e-9)


# Closed forms


@pytest.mark.parametrize("rho", [0.0, 0.5, 1.0])
def test_two_linear_layers_end_where_the_paper_says(rho: float) -> None:
    """Whitened data: H_y = 1 + a^2 with a^3 / 2 + (1 + rho) a = gamma0 y (section 3.3.1), of gradient flow."""
    gamma0, y = 2.0, torch.tensor([[0.6], [-0.8]])
    problem = Problem.mlp(
        2**0.5 * torch.eye(2),
        y,
        depth=1,
        activation="linear",
        gamma0=gamma0,
        loss=lambda f, t: 0.5 * (f - t).square().sum(),
        lr=0.01,
        steps=1500,
        rule="feedback_alignment",
        rho=rho,
    )
    answer = dmft.solve(problem, InfiniteWidth(512, 1), record=[1500])
    phi = answer.layers[1].forward.equal_time[0].double()
    target = y[:, 0].double()

    def overlap(rho: float) -> float:
        a = 1.0
        for _ in range(50):
            a -= (a**3 / 2 + (1 + rho) * a - gamma0) / (1.5 * a**2 + 1 + rho)
        return 1 + a**2

    found = float(target @ phi @ target)
    assert float(answer.losses[0]) < 1e-6
    assert abs(found / overlap(rho) - 1) < 0.01
    assert abs(overlap(rho + 0.1) / overlap(rho) - 1) > 0.02


@pytest.mark.parametrize(("rule", "rho"), RULES)
def test_lazy_networks_learn_by_the_kernel_of_the_rule(rule: str, rho: float) -> None:
    """K = sum over layers of rho^(L - l) G^{l+1} Phi^l (Table 2); with rho = 1 that of gradient descent."""
    case = Rule(INPUTS, TARGETS, rule, rho, 1e-3, depth=3, steps=20)
    static = dmft.solve(pose(case, rule="gradient", rho=0.0), StaticNTK())
    answer = dmft.solve(pose(case), InfiniteWidth(4096, 4), record=[5, 20])
    shares = [rho ** (3 - layer) for layer in range(4)]
    kernels = [layer.ntk.equal_time[0].double() for layer in static.layers]
    kernel = sum(share * each for share, each in zip(shares, kernels, strict=True))
    f, outputs = torch.zeros(5, 1, dtype=torch.float64), []
    for _ in range(20):
        f = f + 0.2 * kernel @ (2 / 5 * (TARGETS.double() - f))
        outputs.append(f)
    wanted = torch.stack([outputs[4], outputs[19]])
    z = (answer.outputs - wanted) / (answer.stderr.outputs + 1e-3)
    assert float(z.abs().max()) < 5
    if rho == 1:
        torch.testing.assert_close(answer.outputs, static.outputs[[5, 20]].to(answer.outputs), rtol=0, atol=0.01)
    else:
        assert float((static.outputs[20] - wanted[1]).abs().max()) > 0.1


# Many networks

WIDTHS = {32: 4096, 64: 2048, 128: 1024, 256: 512}
FEW = {16: 1024, 32: 512, 64: 256, 128: 128}


@cache
def networks(rule: str, rho: float, gamma0: float, depth: int) -> tuple[Rule, Limit]:
    case = Rule(INPUTS, TARGETS, rule, rho, gamma0, depth, lr=0.3 if depth == 2 else 0.2)
    return case, case.limit(FEW if depth == 2 else WIDTHS, torch.Generator().manual_seed(1), RECORD)


def worst(limit: Limit, problem: Problem) -> float:
    """Standard errors between the engine and the networks, for the entry that is farthest off."""
    answer = dmft.solve(problem, InfiniteWidth(2048, 4), record=RECORD)
    values, errors = (
        {name: found[name].reshape(mean.shape) for name, mean in limit.mean.items()}
        for found in (observables(answer), observables(answer.stderr))
    )
    return max(float(z.abs().max()) for z in z_scores(limit, values, errors).values())


@pytest.mark.parametrize(("rule", "rho"), RULES)
def test_the_engine_is_the_limit_of_networks(rule: str, rho: float) -> None:
    case, limit = networks(rule, rho, 2.0, 2)
    assert limit.mean.keys() >= {"outputs", "ntk", "forward.1", "backward.0", "forward.2", "backward.1"}
    assert worst(limit, pose(case)) <= 5
    assert max(limit.goodness.values()) < 3
    assert worst(limit, pose(case, rule="gradient", rho=0.0)) > 15


@pytest.mark.long
@pytest.mark.parametrize("gamma0", [0.5, 2.0])
@pytest.mark.parametrize(("rule", "rho"), RULES)
def test_the_engine_is_the_limit_of_many_networks(rule: str, rho: float, gamma0: float) -> None:
    case, limit = networks(rule, rho, gamma0, 3)
    assert worst(limit, pose(case)) <= 5
    assert max(limit.goodness.values()) < 3
    for other in RULES:
        assert (worst(limit, pose(case, rule=other[0], rho=other[1])) > 5) == (other != (rule, rho))


def test_another_theory_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    case, limit = networks("feedback_alignment", 0.5, 2.0, 2)
    assert worst(limit, pose(case, rho=0.0)) > 15
    assert worst(limit, pose(case, rho=0.6)) > 5

    def learned_too(layer: LazyLayer, y: Tensor) -> Tensor:
        """W(t)^T in the place of W(0)^T."""
        back = layer.backward_rows(y)[1]
        assert back is not None
        return back / layer.gain

    with monkeypatch.context() as patch:
        patch.setattr(LazyLayer, "start_backward", learned_too)
        assert worst(limit, pose(case)) > 5


@pytest.mark.parametrize(
    ("rule", "rho"), [("feedback_alignment", 0.5), ("direct_feedback_alignment", 0.0), ("hebb", 0.0)]
)
def test_widened_networks_are_taught_alike(rule: str, rho: float) -> None:
    """Three classes, biases, minibatches, momentum and unequal widths."""
    classes = torch.tensor([0, 2, 1, 1, 0])
    batches = [torch.tensor([t % 5, (t + 2) % 5, (t + 3) % 5]) for t in range(8)]
    settings: dict[str, Any] = {"bias_std": 0.3, "momentum": 0.5, "batches": batches, "width_ratios": [0.5, 1.0]}
    problem = Problem.mlp(INPUTS, classes, depth=2, gamma0=1.0, lr=0.3, steps=8, rule=rule, rho=rho, **settings)
    wide = dmft.solve(problem, solvers.WideEnsemble((32, 64, 128), pairs=16), record=[8])
    for posed, agrees in ((problem, True), (problem.trained(rule="gradient", rho=0.0), False)):
        engine = dmft.solve(posed, InfiniteWidth(2048, 4), record=[8])
        limits = [(observables(run), observables(run.stderr)) for run in (wide, engine)]
        scores = []
        for name in ("outputs", "forward.1", "forward.2", "backward.0", "backward.1"):
            (mean, mean_error), (found, error) = ((values[name], errors[name]) for values, errors in limits)
            scores.append(float(((found - mean) / (mean_error**2 + error**2).sqrt()).abs().max()))
        assert (max(scores) <= 5) == agrees, scores


# What solve does


def test_solve_takes_the_engine_and_others_refuse() -> None:
    problem = pose(Rule(INPUTS, TARGETS, "feedback_alignment", 0.5))
    solver, _ = choose(problem)
    assert isinstance(solver, InfiniteWidth)
    assert not solver.strides
    for other in (
        solvers.StaticNTK(),
        solvers.GradientIndependence(),
        solvers.FiniteWidth(64),
        InfiniteWidth(strides=True),
    ):
        with pytest.raises(UnsupportedProblemError, match=r"learning by feedback alignment, rho 0.5"):
            other.check(problem)
    adam = Problem.mlp(INPUTS, TARGETS, optimizer="adam", rule="hebb")
    with pytest.raises(UnsupportedProblemError, match=r"Hebb's rule, and optimizer Adam"):
        InfiniteWidth().check(adam)
    assert math.isnan(float(dmft.solve(problem, InfiniteWidth(256, 1), record=[1]).edge[0]))


def test_a_twin_learns_in_a_loop_of_ones_own() -> None:
    """And is aligned as a wide network is."""
    found = []
    for width in (None, 512):
        model = nn.Sequential(
            nn.Linear(6, width or 8, bias=False), nn.Tanh(), nn.Linear(width or 8, width or 8, bias=False)
        )
        model.extend([nn.Tanh(), nn.Linear(width or 8, 1, bias=False)])
        plan = dmft.parameterize(model, INPUTS, gamma0=2.0, generator=torch.Generator().manual_seed(0))
        plan = dmft.infinite_width(plan, INPUTS, neurons=2048) if width is None else plan
        optimizer = torch.optim.SGD(plan.param_groups(0.2))
        with dmft.learning_rule(plan, "feedback_alignment", rho=0.5) as rule:
            cosines = [rule.alignment(INPUTS)]
            for _ in range(10):
                optimizer.zero_grad()
                nn.functional.mse_loss(plan.model(INPUTS), TARGETS).backward()
                optimizer.step()
            cosines.append(rule.alignment(INPUTS))
        found.append(torch.stack(cosines))
    twin, network = found
    torch.testing.assert_close(twin[0, 1], torch.full((5,), 0.5), rtol=0, atol=0.02)  # rho^(L - l + 1)
    torch.testing.assert_close(twin[0, 0], torch.full((5,), 0.25), rtol=0, atol=0.03)
    assert float((twin[1] - twin[0]).mean()) > 0.05
    torch.testing.assert_close(network, twin, rtol=0, atol=0.15)
