"""What is true of the steps of a run reaches the theory: their rows, their numbers, and those that were taken before."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

import torch_dmft as dmft
from tests.end_to_end.user_run import INPUTS, STEPS, TARGETS, chain, far, run, steps_taken
from torch_dmft import solvers
from torch_dmft.core.errors import InvalidInputError, UnsupportedProblemError


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What torch.nn draws by itself: biases."""
    torch.manual_seed(2)


def test_numbers_of_the_wrong_optimizer_are_said_and_refused() -> None:
    model = chain()
    plan = dmft.parameterize(model, INPUTS)
    recorder = dmft.Recorder(plan, dmft.Probe(INPUTS, TARGETS))
    groups: Iterable[Any] = plan.param_groups(0.1, optimizer="adam")
    with pytest.warns(UserWarning, match="numbers of their own"), recorder.attach(SGD(groups)):
        pass
    assert recorder.training.exceptions
    static = dmft.solve(dmft.Problem.like(plan, recorder.probe, lr=0.1, steps=1), solvers.StaticNTK())
    differences = recorder.training.differences(static.training, until=1)
    assert any(line.startswith("learning rate") for line in differences)


def test_decay_in_the_constructor_beside_groups_that_carry_zero_is_no_decay() -> None:
    recorder = run(chain(), weight_decay=0.5)
    assert recorder.training.number("weight_decay") == 0.0


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_a_loader_reach_theory_and_training_goes_on_bit_for_bit(workers: int) -> None:
    data = TensorDataset(INPUTS, TARGETS)

    def fit(record: bool) -> tuple[nn.Module, dmft.Recorder]:
        torch.manual_seed(1)
        model = chain(64)
        plan = dmft.parameterize(model, INPUTS, generator=torch.Generator().manual_seed(0))
        optimizer = SGD(plan.param_groups(0.2), momentum=0.5)
        probe = dmft.Probe(
            torch.cat([INPUTS[3:6], INPUTS[:1] + 1]),
            torch.cat([TARGETS[3:6], TARGETS[:1]]),
            torch.tensor([True] * 3 + [False]),
        )
        recorder = dmft.Recorder(plan, probe, every=2)
        torch.manual_seed(4)
        loader = DataLoader(data, batch_size=3, shuffle=True, num_workers=workers)
        with recorder.attach(optimizer):
            for _ in range(3):
                for x, y in recorder.batches(loader) if record else loader:
                    optimizer.zero_grad()
                    nn.functional.mse_loss(model(x), y).backward()
                    optimizer.step()
        return model, recorder

    (seen, recorder), (plain, _) = fit(True), fit(False)
    for a, b in zip(seen.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)
    training = recorder.training
    assert training.batches_known
    assert training.notes == ()
    assert [len(rows) for rows in training.batches or ()] == [3, 3, 2] * 3
    for epoch in range(3):
        rows = torch.cat((training.batches or ())[3 * epoch : 3 * epoch + 3])
        assert rows.sort().values.tolist() == list(range(8))
    problem = recorder.problem()
    assert (problem.samples, problem.train_samples, problem.kept.tolist()) == (9, 8, [3, 4, 5, 8])
    measured = recorder.trajectory()
    for solver in (solvers.FiniteWidth(64, 8), solvers.StaticNTK(), solvers.InfiniteWidth(1024, replicas=2)):
        predicted = dmft.solve(problem, solver, record=measured.steps)
        assert predicted.outputs.shape == measured.outputs.shape
        dmft.compare(measured, predicted)
    assert far(measured, predicted, 64) < 1


def test_batches_that_were_left_and_other_training_sets_are_not_mistaken() -> None:
    model = chain(64)
    plan = dmft.parameterize(model, INPUTS, generator=torch.Generator().manual_seed(0))
    optimizer = SGD(plan.param_groups(0.1))
    recorder = dmft.Recorder(plan, dmft.Probe(INPUTS[:4], TARGETS[:4]))
    loader = DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=3, shuffle=True)
    with recorder.attach(optimizer):
        for _ in range(2):
            for number, (x, y) in enumerate(recorder.batches(loader)):
                if number == 2:
                    break
                optimizer.zero_grad()
                nn.functional.mse_loss(model(x), y).backward()
                optimizer.step()
        assert [len(rows) for rows in recorder.training.batches or ()] == [3] * 4
        for _ in recorder.batches(DataLoader(TensorDataset(INPUTS.flip(0), TARGETS.flip(0)), batch_size=3)):
            break
    with pytest.raises(UnsupportedProblemError, match="more than one training set"):
        recorder.problem()


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_a_network_that_was_trained_before_is_found_out(momentum: float) -> None:
    model = chain()
    plan = dmft.parameterize(model, INPUTS, generator=torch.Generator().manual_seed(0))
    optimizer = SGD(plan.param_groups(0.2), momentum=momentum)
    steps_taken(model, optimizer, 10)
    recorder = dmft.Recorder(plan, dmft.Probe(INPUTS, TARGETS))
    with recorder.attach(optimizer):
        steps_taken(model, optimizer, 2)
    with pytest.raises(UnsupportedProblemError, match=r"trained before|before the first record"):
        recorder.problem()


def test_momentum_that_begins_anew_is_found_out() -> None:
    model = chain(64)
    plan = dmft.parameterize(model, INPUTS, generator=torch.Generator().manual_seed(0))
    recorder = dmft.Recorder(plan, dmft.Probe(INPUTS, TARGETS))
    first = SGD(plan.param_groups(0.1), momentum=0.9)
    for _ in range(2):
        with recorder.attach(first):
            steps_taken(model, first, 2)
    assert recorder.training.notes == ()
    second = SGD(plan.param_groups(0.1), momentum=0.9)
    with recorder.attach(second):
        steps_taken(model, second, 2)
    with pytest.raises(UnsupportedProblemError, match="begins anew"):
        recorder.problem()


def cut(model: nn.Sequential, optimizer: torch.optim.Optimizer) -> Callable[[int], Any]:
    def change(step: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] *= 0.1 if step == 8 else 1.0

    return change


def without_biases(model: nn.Sequential, optimizer: torch.optim.Optimizer) -> Callable[[int], Any]:
    weights = [group for group in optimizer.param_groups if group["params"][0].ndim > 1]
    for group in weights:
        group["weight_decay"] = 0.1 / group["lr"]
    return lambda step: None


@pytest.mark.parametrize("habit", [cut, without_biases])
def test_habits_are_predicted_as_they_are(habit: Any) -> None:
    model = chain()
    plan = dmft.parameterize(model, INPUTS, generator=torch.Generator().manual_seed(0))
    optimizer = SGD([{**g, "params": [p]} for g in plan.param_groups(0.2) for p in g["params"]])
    recorder = dmft.Recorder(plan, dmft.Probe(INPUTS, TARGETS), every=5)
    before = habit(model, optimizer)
    with recorder.attach(optimizer):
        steps_taken(model, optimizer, STEPS, before)
    measured, problem = recorder.trajectory(), recorder.problem()
    predicted = dmft.solve(problem, solvers.FiniteWidth(256, 8), record=measured.steps)
    dmft.compare(measured, predicted)
    assert far(measured, predicted, 256) < 1
    with pytest.raises(UnsupportedProblemError) if problem.training.exceptions else contextlib.nullcontext():
        dmft.solve(problem, solvers.StaticNTK(), record=measured.steps)
    plain = dmft.Problem.like(plan, recorder.probe, lr=0.2, steps=STEPS)
    with pytest.raises(InvalidInputError, match=r"learning rate|weight decay"):
        dmft.compare(measured, dmft.solve(plain, solvers.StaticNTK(), record=measured.steps))


def test_batches_that_nobody_noted_can_be_predicted_as_others_and_are_labelled() -> None:
    recorder = run(chain(), loss=lambda f, y: nn.functional.mse_loss(f[:4], y[:4]))
    with pytest.raises(InvalidInputError, match="rows that the run was trained on are not known"):
        recorder.problem(batches=4)
    problem = recorder.problem(data=(INPUTS, TARGETS), batches=4)
    assert problem.training.assumptions == ("batches",)
    assert {len(rows) for rows in problem.training.batches or ()} == {4}
    measured = recorder.trajectory()
    comparison = dmft.compare(measured, dmft.solve(problem, solvers.StaticNTK(), record=measured.steps))
    assert "for other batches" in comparison.verdict
