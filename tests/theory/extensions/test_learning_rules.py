"""Learning rules: gradients of networks by hand, the engine against one network, many networks and closed forms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from weakref import ReferenceType, ref

import pytest
import torch
from torch import Tensor, nn

import torch_dmft as dmft
from tests.theory.extensions.rules import INPUTS, RULES, TARGETS
from torch_dmft.core.errors import InvalidInputError, UnsupportedModelError, UnsupportedProblemError
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.solvers import InfiniteWidth

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
