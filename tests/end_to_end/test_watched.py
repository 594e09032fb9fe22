"""A run in which something else happens than the optimizer's steps is found out; one in which nothing does is left alone."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.utils.prune
from torch import Tensor, nn
from torch.optim import SGD

import torch_dmft as dmft
from tests.end_to_end.watched import INPUTS, TARGETS, Run, chain, refused, scale
from torch_dmft import solvers
from torch_dmft.core.errors import InvalidInputError, UnsupportedProblemError


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def test_steps_between_two_attaches() -> None:
    run = Run()
    run.train(4)
    run.steps(1)
    run.train(4)
    refused(run, "changed between steps")


def test_a_rollback() -> None:
    run = Run()
    early: dict[str, Any] = {}

    def back(step: int) -> None:
        if step == 2:
            early.update(copy.deepcopy(run.model.state_dict()))
        if step == 9:
            run.model.load_state_dict(early)

    run.train(12, back)
    refused(run, "changed between steps")


def test_a_second_optimizer_that_nobody_told_of() -> None:
    run = Run()
    other = SGD(run.model[2].parameters(), lr=0.01)
    run.train(12, lambda _: other.step())
    refused(run, "changed between steps \\(2.weight, 2.bias\\)")


@pytest.mark.parametrize("name", ["2.weight", "4.bias"])
def test_weights_edited_past_autograd(name: str) -> None:
    run = Run()
    run.train(12, lambda step: run.model.get_parameter(name).data.add_(0.01 * (step == 7)))
    refused(run, name)


def test_a_frozen_weight_that_is_edited() -> None:
    run = Run(before_attach=lambda plan: plan.model.get_parameter("2.weight").requires_grad_(False))
    run.train(12, lambda step: scale(run.model[2].weight))
    with pytest.raises(UnsupportedProblemError, match="changed between steps"):
        run.recorder.problem()


def test_averaged_weights_that_are_swapped_in_and_out_are_nobodys_business() -> None:
    run = Run()

    def evaluate(step: int) -> None:
        kept = copy.deepcopy(run.model.state_dict())
        run.model.load_state_dict({name: 0.9 * value for name, value in kept.items()})
        run.model(INPUTS)
        run.model.load_state_dict(kept)

    run.train(12, evaluate)
    assert run.recorder.training.notes == ()
    run.recorder.problem()


@pytest.mark.parametrize("noted", [True, False])
def test_a_loss_with_a_factor_is_told_where_to_say_it(noted: bool) -> None:
    run = Run()
    with run.recorder.attach(run.optimizer):
        for _ in range(4):
            if noted:
                run.recorder.batch(range(16))
            run.optimizer.zero_grad()
            (3 * nn.functional.mse_loss(run.model(INPUTS), TARGETS)).backward()
            run.optimizer.step()
    with pytest.raises(
        (UnsupportedProblemError, InvalidInputError), match=r"Recorder\(..., loss=\) with the whole of it"
    ):
        run.recorder.problem()


def test_a_hook_on_the_gradients_of_noted_rows() -> None:
    run = Run()
    with run.recorder.attach(run.optimizer):
        run.model[2].weight.register_hook(lambda gradient: gradient * 0.5)
        run.steps(6, lambda _: run.recorder.batch(range(16)))
    refused(run, "gradients were not those of MSELoss")
    with pytest.raises(UnsupportedProblemError, match="gradients were not those of MSELoss"):
        run.recorder.problem(data=(INPUTS, TARGETS))


def test_a_hook_on_a_module_that_changes_gradients() -> None:
    run = Run()
    with run.recorder.attach(run.optimizer):
        run.model[2].register_full_backward_hook(lambda *given: (given[1][0] * 0.5,))
        run.steps(6)
    refused(run, "gradients were not those of MSELoss")


def test_a_hook_that_only_looks_is_let_be() -> None:
    run = Run()
    seen: list[Tensor] = []
    with run.recorder.attach(run.optimizer):
        run.model[2].weight.register_hook(lambda gradient: seen.append(gradient))
        run.model[2].register_forward_hook(lambda *given: seen.append(given[2]))
        run.steps(6)
    assert seen
    run.recorder.problem()


def test_a_step_hook_that_comes_later_and_changes_gradients() -> None:
    run = Run()

    def clip(*_: Any) -> None:
        nn.utils.clip_grad_norm_(run.model.parameters(), 1e-3)

    with run.recorder.attach(run.optimizer):
        run.optimizer.register_step_pre_hook(clip)
        run.steps(6)
    refused(run, "gradients were not those of MSELoss")


def test_a_frozen_weight_that_keeps_its_gradient_is_stepped_and_said() -> None:
    run = Run()
    weight = run.model[2].weight
    with run.recorder.attach(run.optimizer):
        run.steps(4)
        weight.requires_grad_(False)
        before = weight.clone()
        for _ in range(4):
            for parameter in run.model.parameters():
                if parameter.requires_grad:
                    parameter.grad = None
            run.backward()
            run.optimizer.step()
    assert not torch.equal(before, weight)
    refused(run, "2.weight was stepped by a gradient from before it was frozen")


def test_one_weight_in_two_optimizers() -> None:
    run = Run()
    other = SGD(run.model[2].parameters(), lr=0.1)
    with run.recorder.attach(run.optimizer, other):
        run.steps(4, lambda _: other.step())
    refused(run, "2.weight is stepped by two optimizers")


@pytest.mark.parametrize("again", [True, False])
def test_two_optimizers_step_by_one_gradient_or_are_told(again: bool) -> None:
    run = Run()
    groups = run.plan.param_groups(0.1)
    parts = [SGD(groups[:1], momentum=0.5), SGD(groups[1:], momentum=0.5)]
    with run.recorder.attach(*parts):
        for _ in range(4):
            for part in parts:
                part.zero_grad()
            run.backward()
            parts[0].step()
            if again:
                parts[1].zero_grad()
                run.backward()
            parts[1].step()
    if again:
        refused(run, "gradients of different backward passes")
    else:
        assert len(run.recorder.problem().training.exceptions) == 0


@pytest.mark.parametrize("change", ["loss", "rows"])
def test_a_change_in_the_middle_is_found(change: str) -> None:
    run = Run()
    with run.recorder.attach(run.optimizer):
        for step in range(50):
            run.optimizer.zero_grad()
            late = step >= 39
            run.backward(slice(8) if late and change == "rows" else slice(None), 2 if late and change == "loss" else 1)
            run.optimizer.step()
    refused(run, "gradients were not those of MSELoss")


def test_closures_are_followed_and_checked() -> None:
    run, plain = Run(), Run()
    plain.train(8)
    right, wrong = (run, 1.0), (Run(), 2.0)
    for each, factor in (right, wrong):
        with each.recorder.attach(each.optimizer):
            for _ in range(8):

                def closure(each: Run = each, factor: float = factor) -> float:
                    each.optimizer.zero_grad()
                    each.backward(factor=factor)
                    return 0.0

                each.optimizer.step(closure)
    for mine, theirs in zip(run.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert run.recorder.problem().training == plain.recorder.problem().training
    refused(wrong[0], "not those of MSELoss")


def test_a_centered_run_is_not_judged_by_networks_that_are_not() -> None:
    run = Run()
    run.recorder = dmft.Recorder(run.plan, dmft.Probe(INPUTS, TARGETS), every=4, model=dmft.centered(run.plan.model))
    centered = run.recorder.subject.run
    with run.recorder.attach(run.optimizer):
        for _ in range(4):
            run.optimizer.zero_grad()
            nn.functional.mse_loss(centered(INPUTS), TARGETS).backward()
            run.optimizer.step()
    measured, problem = run.recorder.trajectory(), run.recorder.problem()
    dmft.compare(measured, dmft.solve(problem, solvers.StaticNTK(), record=measured.steps))
    with pytest.raises(InvalidInputError, match="is centered"):
        dmft.compare(measured, dmft.solve(problem, solvers.FiniteWidth(16, 4), record=measured.steps))


@pytest.mark.parametrize(
    ("layers", "told"),
    [(nn.ReLU, "behind weight 0 is tanh, gain 1 and relu, gain 1.4"), (nn.Tanh, "")],
)
def test_another_network_is_not_compared(layers: Any, told: str) -> None:
    run = Run()
    run.train(4)
    measured = run.recorder.trajectory()
    other = nn.Sequential(*[layers() if isinstance(layer, nn.Tanh) else layer for layer in chain()])
    plan = dmft.parameterize(other, INPUTS)
    problem = dmft.Problem.like(plan, run.recorder.probe, lr=0.1, steps=4, momentum=0.5)
    theory = dmft.solve(problem, solvers.StaticNTK(), record=measured.steps)
    with pytest.raises(InvalidInputError, match=told) if told else contextlib.nullcontext():
        dmft.compare(measured, theory)


class Thrice(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return 3 * self.inner(x)


def test_a_wrapper_around_the_model_is_measured_and_not_predicted() -> None:
    run = Run()
    outer = Thrice(run.model)
    run.recorder = dmft.Recorder(run.plan, dmft.Probe(INPUTS, TARGETS), model=outer)
    with run.recorder.attach(run.optimizer):
        for _ in range(3):
            run.optimizer.zero_grad()
            nn.functional.mse_loss(outer(INPUTS), TARGETS).backward()
            run.optimizer.step()
    assert len(run.recorder.trajectory().steps) == 4
    with pytest.raises(UnsupportedProblemError, match="must be the plan's model"):
        run.recorder.problem()


def test_a_weight_that_joins_later_is_said() -> None:
    run = Run(before_attach=lambda plan: plan.model.get_parameter("2.weight").requires_grad_(False))
    run.train(8, lambda step: run.model[2].weight.requires_grad_(step >= 3))
    with pytest.raises(UnsupportedProblemError, match="trained in some steps only"):
        run.recorder.problem()


def test_a_step_hook_from_before_that_edits_weights() -> None:
    run = Run()
    run.optimizer.register_step_post_hook(lambda *_: scale(run.model[2].weight, 0.99))
    run.train(6)
    refused(run, "changed between steps")


class Dropping(SGD):
    def _init_group(self, group: Any, params: Any, grads: Any, momenta: Any) -> Any:
        return super()._init_group(group, params, grads, momenta)  # type: ignore[misc]


def test_a_subclass_that_changes_more_than_its_name_is_another_optimizer() -> None:
    run = Run()
    run.optimizer = Dropping(run.plan.param_groups(0.1), momentum=0.5)
    run.train(4)
    assert run.recorder.training.optimizer == "Dropping"
    refused(run, "optimizer")


def test_a_step_is_recorded_once() -> None:
    run = Run()
    run.train(4)
    with pytest.raises(InvalidInputError, match="was recorded already"):
        run.recorder.record()


def test_a_weight_that_is_pruned_midway_is_refused_at_the_next_record() -> None:
    """It has another name then; the step itself goes on."""
    run = Run()

    def prune(step: int) -> None:
        if step == 1:
            nn.utils.prune.random_unstructured(run.model[2], "weight", 0.5)

    with pytest.raises(InvalidInputError, match=r"new: 2\.weight_orig; gone: 2\.weight"):
        run.train(12, prune)
    assert run.recorder.step == 4
