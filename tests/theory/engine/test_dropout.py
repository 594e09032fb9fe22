"""Dropout of neurons: its limit is that of wide networks, and another than without; other random draws are refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torch_dmft as dmft
from tests.reference.ensembles import Limit, observables, z_scores
from tests.theory.engine import stacks
from tests.theory.validation.agreement import assert_agrees, moved
from torch_dmft.core.errors import UnsupportedModelError, UnsupportedProblemError

P, RECORD = 0.4, (0, 4, 8)
RATES = {0.5: 0.3, 2.0: 0.15}
NETWORKS = {64: 384, 128: 192, 256: 96}


def model(width: int = 16, p: float = P) -> nn.Module:
    def weight(fan_in: int) -> list[nn.Module]:
        return [nn.Linear(fan_in, width, bias=False), nn.Tanh(), nn.Dropout(p)]

    return nn.Sequential(*weight(5), *weight(width), nn.Linear(width, 1, bias=False))


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 5, generator=generator), torch.sign(torch.randn(4, 1, generator=generator))


def pose(gamma0: float, p: float = P) -> dmft.Problem:
    inputs, targets = data()
    plan = dmft.parameterize(model(p=p), inputs, gamma0=gamma0)
    return dmft.Problem.like(plan, dmft.Probe(inputs, targets), lr=RATES[gamma0], steps=RECORD[-1])


@cache
def networks(gamma0: float) -> Limit:
    def forward(apply, x, vectors, drop):
        return drop(torch.tanh(apply("b", drop(torch.tanh(apply("a", x)), P))), P)

    inputs, targets = data()
    settings = {"lr": RATES[gamma0], "gamma0": gamma0, "record": RECORD, "generator": torch.Generator().manual_seed(1)}
    return stacks.limit(stacks.Wiring(("a", "b"), forward), inputs[:, None], targets[:, 0], NETWORKS, **settings)


@pytest.mark.parametrize("gamma0", RATES)
def test_limit_is_that_of_wide_networks(gamma0: float) -> None:
    limit = networks(gamma0)
    assert_agrees(limit, dmft.solve(pose(gamma0), dmft.solvers.InfiniteWidth(1024, 6), record=RECORD), 0.06)
    assert moved(limit, "forward.2") > 0.2


@pytest.mark.parametrize("gamma0", RATES)
def test_it_is_not_that_without_dropout(gamma0: float) -> None:
    answer = dmft.solve(pose(gamma0, p=0.0), dmft.solvers.InfiniteWidth(1024, 6), record=RECORD)
    with pytest.raises(AssertionError, match=r"outputs is .* off"):
        assert_agrees(networks(gamma0), answer, 0.06)


def test_networks_of_the_package_have_it_too() -> None:
    limit = networks(2.0)
    assert_agrees(limit, dmft.solve(pose(2.0), dmft.solvers.WideEnsemble((64, 128, 256), 6), record=RECORD), 0.3)
    narrow = limit.estimates[0]
    answer = dmft.solve(pose(2.0), dmft.solvers.FiniteWidth(narrow.width, 24), record=RECORD)
    for name, scores in z_scores(narrow, observables(answer), observables(answer.stderr)).items():
        assert float(scores.abs().max()) <= 5, name


TOKENS, MORE = 4, 0.7


def channels(width: int = 16, mask: str = "channel", p: float = MORE) -> nn.Module:
    def drop() -> nn.Module:
        return nn.Dropout1d(p) if mask == "channel" else nn.Dropout(p)

    first, second = (nn.Conv1d(fan_in, width, 1, bias=False) for fan_in in (5, width))
    pool = [nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(width, 1, bias=False)]
    return nn.Sequential(first, nn.Tanh(), drop(), second, nn.Tanh(), drop(), *pool)


def positions() -> Tensor:
    """Rows of much the same at every position, over which a network averages."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(4, 5, 1, generator=generator) + 0.1 * torch.randn(4, 5, TOKENS, generator=generator)


def pose_channels(mask: str, gamma0: float) -> dmft.Problem:
    inputs = positions()
    plan = dmft.parameterize(channels(mask=mask), inputs, gamma0=gamma0)
    return dmft.Problem.like(plan, dmft.Probe(inputs, data()[1]), lr=RATES[gamma0], steps=RECORD[-1])


@cache
def networks_of_channels(mask: str, gamma0: float) -> Limit:
    def forward(apply, x, vectors, drop):
        def masked(h: Tensor) -> Tensor:
            return h * drop(torch.ones_like(h[:, :, :1]), MORE) if mask == "channel" else drop(h, MORE)

        return masked(torch.tanh(apply("b", masked(torch.tanh(apply("a", x))))))

    inputs = positions().mT
    settings = {"lr": RATES[gamma0], "gamma0": gamma0, "record": RECORD, "generator": torch.Generator().manual_seed(1)}
    return stacks.limit(stacks.Wiring(("a", "b"), forward), inputs, data()[1][:, 0], NETWORKS, **settings)


@pytest.mark.parametrize("gamma0", RATES)
def test_channels_are_dropped_at_all_positions_together(gamma0: float) -> None:
    right = dmft.solve(pose_channels("channel", gamma0), dmft.solvers.InfiniteWidth(1024, 6), record=RECORD)
    assert_agrees(networks_of_channels("channel", gamma0), right, 0.09)
    other = dmft.solve(pose_channels("entry", gamma0), dmft.solvers.InfiniteWidth(1024, 6), record=RECORD)
    with pytest.raises(AssertionError, match=r"is .* off"):
        assert_agrees(networks_of_channels("channel", gamma0), other, 0.09)
    if gamma0 > 1:
        assert_agrees(networks_of_channels("entry", gamma0), other, 0.09)


@pytest.mark.parametrize("make", [model, channels])
def test_two_widths_say_the_same(make: Callable[[], nn.Module]) -> None:
    inputs = data()[0] if make is model else positions()
    answers = []
    for wider in (None, make):
        plan = dmft.parameterize(make(), inputs, wider=wider)
        problem = dmft.Problem.like(plan, dmft.Probe(inputs, data()[1]), lr=0.1, steps=3)
        answers.append(dmft.solve(problem, dmft.solvers.InfiniteWidth(128, 2)).outputs)
    assert torch.equal(*answers)


def test_masks_are_a_function_of_the_generator() -> None:
    problem, answers = pose(2.0), []
    for solver in (dmft.solvers.InfiniteWidth(128, 2), dmft.solvers.FiniteWidth(32, 4)):
        state = torch.get_rng_state()
        answers += [dmft.solve(problem, solver).outputs for _ in range(2)]
        assert torch.equal(torch.get_rng_state(), state)
        torch.rand(3)
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[2], answers[3])


# A run.


def run(plan: dmft.Plan, steps: int = 3, *, train: bool = True) -> dmft.Recorder:
    inputs, targets = data()
    recorder, optimizer = dmft.Recorder(plan, dmft.Probe(inputs, targets)), torch.optim.SGD(plan.param_groups(0.1))
    plan.model.train(train)
    with recorder.attach(optimizer):
        for _ in range(steps):
            recorder.batch(range(len(inputs)))
            optimizer.zero_grad()
            F.mse_loss(plan.model(inputs), targets).backward()
            optimizer.step()
    return recorder


def test_a_run_is_predicted_in_train_mode() -> None:
    recorder = run(dmft.parameterize(model(), data()[0]))
    recorder.subject.model.eval()  # as after training
    problem = recorder.problem()
    predicted = dmft.solve(problem, dmft.solvers.InfiniteWidth(128, 1))
    recorder.subject.model.train()
    assert torch.equal(dmft.solve(problem, dmft.solvers.InfiniteWidth(128, 1)).outputs, predicted.outputs)
    still = dmft.solve(pose(2.0, p=0.0).trained(lr=0.1, steps=3, gamma0=1.0), dmft.solvers.InfiniteWidth(128, 1))
    assert not torch.allclose(still.outputs, predicted.outputs, atol=1e-3)


def test_runs_whose_dropout_is_off_or_changes_are_refused() -> None:
    inputs = data()[0]
    with pytest.raises(UnsupportedProblemError, match="evaluation mode, without dropout"):
        run(dmft.parameterize(model(), inputs), train=False).problem()
    plan = dmft.parameterize(model(), inputs)
    recorder = run(plan, 1)
    plan.model[2].p = 0.1
    optimizer = torch.optim.SGD(plan.param_groups(0.1))
    with recorder.attach(optimizer):
        F.mse_loss(plan.model(inputs), data()[1]).backward()
        recorder.batch(range(4))
        optimizer.step()
    with pytest.raises(UnsupportedProblemError, match="dropout that changes"):
        recorder.problem()


class Inside(nn.Module):
    """Two layers with something between them."""

    def __init__(self, between, width: int = 16) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, width), nn.Linear(width, width), nn.Linear(width, 1)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.second(self.between(self, torch.tanh(self.first(x))))))


def heads(module: nn.Module, h: Tensor) -> Tensor:
    """A mask per head."""
    return (h.unflatten(-1, (2, -1)) * F.dropout(h.new_ones(len(h), 2, 1), 0.3, module.training)).flatten(1)


class DropPath(nn.Module):
    """Stochastic depth: a branch is left out for some of the rows."""

    def forward(self, h: Tensor) -> Tensor:
        return h * h.new_empty(len(h), 1).bernoulli_(0.7) / 0.7 if self.training else h


RANDOM = {
    "stochastic depth": lambda: Inside(lambda m, h: h + DropPath().train(m.training)(torch.sin(h))),
    "of the data": lambda: nn.Sequential(nn.Dropout(0.2), model(p=0.0)),
    "of whole rows": lambda: Inside(lambda m, h: h * F.dropout(h.new_ones(len(h), 1), 0.3, m.training)),
    "of heads": lambda: Inside(heads),
    "noise": lambda: Inside(lambda m, h: F.dropout(h, 0.3, m.training) + 0.1 * torch.randn_like(h) * m.training),
    "in train mode only": lambda: Inside(lambda m, h: F.dropout(h, 0.3) if m.training else h),
    "of channels that are tokens": lambda: Inside(
        lambda m, h: F.dropout2d(h[:, None, :, None].expand(-1, 3, -1, 1), 0.3, m.training)[..., 0].mean(1)
    ),
}


@pytest.mark.parametrize("which", RANDOM)
def test_what_does_not_average_out_is_refused_at_once(which: str) -> None:
    inputs, targets = data()
    plan = dmft.parameterize(RANDOM[which](), inputs)
    assert plan.architecture.train_differs
    assert not plan.architecture.averages_out
    recorder = dmft.Recorder(plan, dmft.Probe(inputs, targets))
    optimizer = torch.optim.SGD(plan.param_groups(0.1))
    with recorder.attach(optimizer):
        F.mse_loss(plan.model(inputs), targets).backward()
        optimizer.step()
    assert len(recorder.trajectory().steps) == 2  # measuring goes on
    for ask in (
        recorder.problem,
        lambda: dmft.Problem.like(plan, recorder.probe, lr=0.1, steps=1),
        lambda: dmft.infinite_width(plan, inputs, neurons=64),
    ):
        with pytest.raises(UnsupportedModelError, match=r"train mode"):
            ask()


AVERAGED = {
    "a function": lambda: Inside(lambda m, h: F.dropout(h, 0.3, m.training)),
    "of neurons of heads": lambda: Inside(lambda m, h: F.dropout(h.unflatten(-1, (2, -1)), 0.3, m.training).flatten(1)),
    "alpha": lambda: nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.AlphaDropout(0.2), nn.Linear(16, 1)),
    "of channels": lambda: nn.Sequential(
        *(nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 16, 3), nn.Tanh(), nn.Dropout1d(0.2), nn.Conv1d(16, 16, 3)),
        *(nn.Tanh(), nn.Flatten(), nn.Linear(16, 1)),
    ),
}


@pytest.mark.parametrize("which", AVERAGED)
def test_what_averages_out_has_a_twin(which: str) -> None:
    inputs = data()[0]
    twin = dmft.infinite_width(AVERAGED[which](), inputs, neurons=64)
    assert twin.architecture.averages_out
    twin.model.train()
    assert not torch.equal(twin.model(inputs), twin.model(inputs))
