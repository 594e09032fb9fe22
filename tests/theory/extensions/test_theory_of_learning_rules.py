"""Learning rules at infinite width: against closed forms of the paper, many networks, and who refuses."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_dmft as dmft
from tests.reference.ensembles import Limit, observables, z_scores
from tests.reference.learning_rules import Rule
from tests.theory.extensions.rules import INPUTS, RECORD, RULES, TARGETS, pose
from tests.theory.extensions.written_down import Drawn, write_down
from torch_dmft.core.errors import UnsupportedProblemError
from torch_dmft.theory import solvers
from torch_dmft.theory.choose import choose
from torch_dmft.theory.engine.lazy_layer import LazyLayer
from torch_dmft.theory.engine.posed import twin_of
from torch_dmft.theory.engine.training import train_and_record
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.solvers import InfiniteWidth, StaticNTK

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
    flow = dmft.solve(pose(case), StaticNTK(time="continuous"), record=[5, 20])
    taught = dmft.solve(pose(case), StaticNTK(), record=[5, 20])
    torch.testing.assert_close(taught.outputs.double(), wanted, rtol=0, atol=1e-6)
    assert taught.known_ntk == static.at_steps(torch.tensor([5, 20], device="cpu")).known_ntk
    assert 0 < float((flow.outputs - taught.outputs).abs().max()) < 0.2
    z = (answer.outputs - wanted) / (answer.stderr.outputs + 1e-3)
    assert float(z.abs().max()) < 5
    if rho == 1:
        torch.testing.assert_close(answer.outputs, static.outputs[[5, 20]].to(answer.outputs), rtol=0, atol=0.01)
    else:
        assert float((static.outputs[20] - wanted[1]).abs().max()) > 0.1


# Many networks

WIDTHS = {32: 4096, 64: 2048, 128: 1024, 256: 512}
ALIKE = {("feedback_alignment", 0.0), ("direct_feedback_alignment", 0.0)}
"""Rules whose limits are 3.9 to 4.7 standard errors apart at gamma0 = 0.5, for all that so many networks tell."""
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
        if gamma0 < 1 and {(rule, rho), other} == ALIKE:
            continue
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
    lazy = pose(Rule(INPUTS, TARGETS, "hebb", gamma0=1e-3))  # whose features move by the order of gamma0
    for posed in (problem, lazy):
        solver, _ = choose(posed)
        assert isinstance(solver, InfiniteWidth)
        assert not solver.strides
    others = (
        solvers.GradientIndependence(),
        solvers.AlternatingMonteCarlo(),
        solvers.Perturbation(),
        solvers.DeepLinear(),
    )
    for other in (*others, InfiniteWidth(strides=True)):
        with pytest.raises(UnsupportedProblemError, match=r"learning by feedback alignment, rho 0.5"):
            other.check(pose(Rule(INPUTS, TARGETS, "feedback_alignment", 0.5), activation="linear"))
    with pytest.raises(UnsupportedProblemError, match=r"StaticNTK does not cover this training\. Got: weight decay"):
        StaticNTK().check(problem.trained(weight_decay=0.1))
    adam = Problem.mlp(INPUTS, TARGETS, optimizer="adam", rule="hebb")
    for taught in (InfiniteWidth(), solvers.FiniteWidth(64), solvers.WideEnsemble()):
        with pytest.raises(UnsupportedProblemError, match=r"Hebb's rule, and optimizer Adam"):
            taught.check(adam)
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
