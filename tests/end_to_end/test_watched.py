"""A run in which something else happens than the optimizer's steps is found out; one in which nothing does is left alone."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.utils.prune
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

import torch_dmft as dmft
from torch_dmft import solvers
from torch_dmft.core.errors import InvalidInputError, UnsupportedProblemError

SOURCE = torch.Generator().manual_seed(3)
INPUTS = torch.randn(16, 6, generator=SOURCE)
TARGETS = torch.randn(16, 1, generator=SOURCE)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def chain(width: int = 48, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(6, width, bias), nn.Tanh(), nn.Linear(width, width, bias), nn.Tanh(), nn.Linear(width, 1, bias)
    )


class Run:
    """A user's run of ``chain``, with places to do something else."""

    def __init__(self, *, before_attach: Callable[[dmft.Plan], Any] = lambda _: None, **settings: Any) -> None:
        torch.manual_seed(0)  # biases
        self.model: Any = chain()
        self.plan = dmft.parameterize(self.model, INPUTS, generator=torch.Generator().manual_seed(0))
        before_attach(self.plan)
        self.optimizer: Optimizer = SGD(self.plan.param_groups(0.1), momentum=0.5)
        self.recorder = dmft.Recorder(self.plan, dmft.Probe(INPUTS, TARGETS), every=4, **settings)

    def backward(self, rows: Any = slice(None), factor: float = 1.0) -> None:
        (factor * nn.functional.mse_loss(self.model(INPUTS[rows]), TARGETS[rows])).backward()

    def steps(self, count: int, before: Callable[[int], Any] = lambda _: None) -> None:
        for step in range(count):
            self.optimizer.zero_grad()
            self.backward()
            before(step)
            self.optimizer.step()

    def train(self, count: int = 12, before: Callable[[int], Any] = lambda _: None) -> None:
        with self.recorder.attach(self.optimizer):
            self.steps(count, before)


def refused(run: Run, told: str) -> None:
    """The run is told from its theory, and from networks trained as it is said to be."""
    with pytest.raises((UnsupportedProblemError, InvalidInputError), match=told):
        run.recorder.problem()
    plain = Run()
    plain.train(run.recorder.step)
    theory = dmft.solve(plain.recorder.problem(), solvers.FiniteWidth(16, 4), record=run.recorder.trajectory().steps)
    dmft.compare(plain.recorder.trajectory(), theory)
    with pytest.raises(InvalidInputError, match=told):
        dmft.compare(run.recorder.trajectory(), theory)


@torch.no_grad()
def scale(weight: Tensor, factor: float = 1.01) -> None:
    weight.mul_(factor)


def test_steps_between_two_attaches() -> None:
    run = Run()
    run.train(4)
    run.steps(1)
    run.train(4)
    refused(run, "changed between steps")


def test_weights_drawn_anew_after_the_first_record() -> None:
    run = Run()
    with run.recorder.attach(run.optimizer):
        run.model[0].reset_parameters()
        run.steps(4)
    refused(run, r"changed between steps \(0.weight, 0.bias\)")


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


@pytest.mark.parametrize("divided", [True, False])
def test_accumulated_batches_are_one_batch_if_their_loss_is_its_mean(divided: bool) -> None:
    run = Run()
    loader = DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=4)
    with run.recorder.attach(run.optimizer):
        for epoch in range(20):
            parts = 2 if epoch >= 17 else 1
            for number, (x, y) in enumerate(run.recorder.batches(loader), start=1):
                (nn.functional.mse_loss(run.model(x), y) / (parts if divided else 1)).backward()
                if number % parts == 0:
                    run.optimizer.step()
                    run.optimizer.zero_grad()
    if divided:
        run.recorder.problem()
    else:
        with pytest.raises(UnsupportedProblemError, match=r"not those of MSELoss.* on the rows noted"):
            run.recorder.problem()


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


def test_a_training_set_given_afterwards() -> None:
    """Rows 0..7 of a training set of 16 are not all rows, though the probe has eight."""
    run = Run()
    run.recorder = dmft.Recorder(run.plan, dmft.Probe(INPUTS[8:], TARGETS[8:]), every=4)
    with run.recorder.attach(run.optimizer):
        for step in range(8):
            rows = range(8) if step % 2 else range(8, 16)
            run.optimizer.zero_grad()
            run.recorder.batch(rows)
            run.backward(list(rows))
            run.optimizer.step()
    problem = run.recorder.problem(data=(INPUTS, TARGETS))
    assert [rows.tolist() for rows in problem.batches or ()] == [list(range(8, 16)), list(range(8))] * 4
    assert "data" in problem.training.assumptions
    measured = run.recorder.trajectory()
    comparison = dmft.compare(measured, dmft.solve(problem, solvers.FiniteWidth(48, 4), record=measured.steps))
    assert "training set that was given" in comparison.verdict


def test_notes_hold_whatever_batches_are_put_in_place() -> None:
    run = Run()
    run.train(4)
    run.steps(1)
    run.train(4)
    with pytest.raises(UnsupportedProblemError, match="changed between steps"):
        run.recorder.problem(batches=4)


@torch.no_grad()
def constant_bias(plan: dmft.Plan) -> None:
    plan.model.get_parameter("2.bias").fill_(0.3)


def larger(plan: dmft.Plan) -> None:
    scale(plan.model.get_parameter("2.weight"), 1.5)


@torch.no_grad()
def output_bias(plan: dmft.Plan) -> None:
    plan.model.get_parameter("4.bias").fill_(0.3)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (constant_bias, "2.bias: numbers of size 0.3, which were"),
        (larger, "2.weight: numbers 1.52 times as large"),
        (output_bias, "4.bias: numbers of size 0.3 instead of zero"),
    ],
)
def test_starts_that_theory_does_not_have(change: Any, told: str) -> None:
    run = Run(before_attach=change)
    run.train(4)
    with pytest.raises(UnsupportedProblemError, match=told):
        run.recorder.problem()
    assert run.recorder.problem(assume_gaussian=True).training.assumptions == ("start",)


@pytest.mark.parametrize(("bias", "told"), [(0.3, "mean 1 of their size"), (0.0, "")])
def test_biases_that_are_constant_when_the_model_is_wrapped(bias: float, told: str) -> None:
    model = chain()
    nn.init.constant_(model.get_parameter("2.bias"), bias)
    plan = dmft.parameterize(model, INPUTS)
    with pytest.raises(UnsupportedProblemError, match=told) if told else contextlib.nullcontext():
        dmft.Problem.like(plan, dmft.Probe(INPUTS, TARGETS), lr=0.1, steps=4)


@pytest.mark.parametrize("gain", [1.0, 1.5, 0.0])
def test_norm_layers_that_do_not_start_at_one(gain: float) -> None:
    model = nn.Sequential(nn.Linear(6, 32), nn.LayerNorm(32), nn.Tanh(), nn.Linear(32, 1))
    nn.init.constant_(model.get_parameter("1.weight"), gain)
    plan = dmft.parameterize(model, INPUTS)
    with pytest.raises(UnsupportedProblemError, match=r"1\.weight") if gain != 1 else contextlib.nullcontext():
        dmft.Problem.like(plan, dmft.Probe(INPUTS, TARGETS), lr=0.1, steps=4)


def test_other_inputs_are_not_compared() -> None:
    run = Run()
    run.train(4)
    measured = run.recorder.trajectory()
    other = Run()
    other.recorder = dmft.Recorder(other.plan, dmft.Probe(INPUTS.flip(0), TARGETS))
    problem = dmft.Problem.like(other.plan, other.recorder.probe, lr=0.1, steps=4, momentum=0.5)
    theory = dmft.solve(problem, solvers.StaticNTK(), record=measured.steps)
    with pytest.raises(InvalidInputError, match="inputs of the probe differ; training set: the two have other rows"):
        dmft.compare(measured, theory)


def test_one_other_row_of_the_training_set_is_seen() -> None:
    run, changed = Run(data=(INPUTS, TARGETS)), INPUTS.clone()
    run.train(4)
    measured = run.recorder.trajectory()
    changed[11, 3] += 0.1
    with pytest.raises(InvalidInputError, match="must be the training set of the run"):
        run.recorder.problem(data=(changed, TARGETS))
    other = Run(data=(changed, TARGETS))
    with other.recorder.attach(other.optimizer):
        for _ in range(4):
            other.optimizer.zero_grad()
            nn.functional.mse_loss(other.model(changed), TARGETS).backward()
            other.optimizer.step()
    with pytest.raises(InvalidInputError, match="training set: the two have other rows"):
        dmft.compare(measured, other.recorder.trajectory())


def with_loader(run: Run, dataset: Callable[[], Any], epochs: int = 2) -> None:
    with run.recorder.attach(run.optimizer):
        for _ in range(epochs):
            for x, y in run.recorder.batches(DataLoader(dataset(), batch_size=4, shuffle=True)):
                run.optimizer.zero_grad()
                nn.functional.mse_loss(run.model(x), y).backward()
                run.optimizer.step()


def test_one_subset_made_anew_every_epoch_is_one_training_set() -> None:
    run = Run()
    run.recorder = dmft.Recorder(run.plan, dmft.Probe(INPUTS[:4], TARGETS[:4]), every=4)
    with_loader(run, lambda: Subset(TensorDataset(INPUTS, TARGETS), range(12)))
    assert run.recorder.problem().train_samples == 12


def resumed(run: Run, **settings: Any) -> Run:
    later = Run()
    later.recorder = dmft.Recorder(later.plan, run.recorder.probe, every=4, **settings)
    later.model.load_state_dict(run.model.state_dict())
    later.optimizer.load_state_dict(run.optimizer.state_dict())
    later.recorder.load_state_dict(run.recorder.state_dict())
    return later


def test_a_run_that_is_resumed_remembers_its_training_set() -> None:
    run = Run()
    run.recorder = dmft.Recorder(run.plan, dmft.Probe(INPUTS[:4], TARGETS[:4]), every=4)
    with_loader(run, lambda: TensorDataset(INPUTS, TARGETS))
    later = resumed(run)
    with pytest.raises(InvalidInputError, match="training set of its own"):
        later.recorder.problem()
    assert later.recorder.problem(data=(INPUTS, TARGETS)).training == run.recorder.problem().training
    with pytest.raises(InvalidInputError, match="must be the training set"):
        later.recorder.problem(data=(INPUTS[1:], TARGETS[1:]))
    with_loader(later, lambda: TensorDataset(INPUTS, TARGETS))
    assert later.recorder.problem().train_samples == 16
    with pytest.raises(InvalidInputError, match="another training set"):
        resumed(run, data=(INPUTS[1:], TARGETS[1:]))


def test_a_run_that_is_resumed_with_other_weights_is_found_out() -> None:
    run = Run()
    run.train(4)
    later = resumed(run)
    scale(later.model.get_parameter("2.weight"))
    later.train(4)
    refused(later, "changed between steps")


def test_zeros_of_either_sign_are_zero_and_equal_rows_with_two_labels_are_two() -> None:
    inputs = torch.cat([INPUTS[:6], INPUTS[:1]])
    inputs[2, 1] = 0.0
    targets = TARGETS[:7]
    probe_inputs = torch.stack([inputs[2], inputs[6]])
    probe_inputs[0, 1] = -0.0
    run = Run()
    run.recorder = dmft.Recorder(run.plan, dmft.Probe(probe_inputs, targets[[2, 6]]), data=(inputs, targets))
    with run.recorder.attach(run.optimizer):
        for _ in range(3):
            run.optimizer.zero_grad()
            nn.functional.mse_loss(run.model(inputs), targets).backward()
            run.optimizer.step()
    assert run.recorder.problem().kept.tolist() == [2, 6]


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


class Augmented(Dataset[Any]):
    """Items with noise of two kinds; python's own random numbers are also drawn by the checks of types in these tests."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        noise = torch.randn(6) + float(np.random.randn())  # noqa: NPY002
        return INPUTS[row] + noise, TARGETS[row]


def test_augmentation_is_left_as_it_is_and_refused_by_name() -> None:
    def fit(watched: bool) -> tuple[Run, list[Tensor]]:
        run = Run()
        np.random.seed(5)  # noqa: NPY002
        torch.manual_seed(5)
        run.recorder = dmft.Recorder(run.plan, dmft.Probe(INPUTS, TARGETS), every=2)
        loader = DataLoader(Augmented(), batch_size=4, shuffle=True)
        batches = []
        with run.recorder.attach(run.optimizer):
            for x, y in run.recorder.batches(loader) if watched else loader:
                batches.append(x)
                run.optimizer.zero_grad()
                nn.functional.mse_loss(run.model(x), y).backward()
                run.optimizer.step()
                if watched:
                    assert run.recorder.training.steps
        return run, batches

    (run, mine), (_, theirs) = fit(True), fit(False)
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    with pytest.raises((UnsupportedProblemError, InvalidInputError), match="on the rows noted"):
        run.recorder.problem()


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


def test_momenta_that_are_reset() -> None:
    run = Run()

    def reset(step: int) -> None:
        if step == 6:
            for state in run.optimizer.state.values():
                state["momentum_buffer"].zero_()

    run.train(12, reset)
    refused(run, "momenta or other states of optimizers that were changed between steps")


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


def test_a_loss_and_a_training_set_that_drift() -> None:
    factor, targets = [1.0], TARGETS.clone()
    drifting, moving = Run(loss=lambda f, y: factor[0] * nn.functional.mse_loss(f, y)), Run(data=(INPUTS, targets))
    with drifting.recorder.attach(drifting.optimizer), moving.recorder.attach(moving.optimizer):
        for _ in range(12):
            for run, scaled, wanted in ((drifting, factor[0], TARGETS), (moving, 1.0, targets)):
                run.optimizer.zero_grad()
                (scaled * nn.functional.mse_loss(run.model(INPUTS), wanted)).backward()
                run.optimizer.step()
            factor[0] *= 0.9
            targets *= 0.95
    for run, what in ((drifting, "a loss"), (moving, "a training set")):
        with pytest.raises(UnsupportedProblemError, match=f"{what} that changes during the run"):
            run.recorder.problem()


def test_a_run_that_is_resumed_at_another_richness_is_refused() -> None:
    run, later = Run(), Run()
    run.train(4)
    later.plan.undo()
    plan = dmft.parameterize(later.model, INPUTS, gamma0=3.0)
    recorder = dmft.Recorder(plan, run.recorder.probe, every=4)
    with pytest.raises(InvalidInputError, match=r"another plan .*3\.0"):
        recorder.load_state_dict(run.recorder.state_dict())


def test_weights_of_the_rows_in_the_loss_are_told_apart() -> None:
    def weighted(seed: int) -> Any:
        weights = torch.rand(16, 1, generator=torch.Generator().manual_seed(seed))
        return lambda f, y: (weights * (f - y) ** 2).mean()

    runs = [Run(loss=weighted(seed)) for seed in range(2)]
    for seed, run in enumerate(runs):
        with run.recorder.attach(run.optimizer):
            for _ in range(4):
                run.optimizer.zero_grad()
                weighted(seed)(run.model(INPUTS), TARGETS).backward()
                run.optimizer.step()
    measured = [run.recorder.trajectory() for run in runs]
    theory = dmft.solve(runs[0].recorder.problem(), solvers.FiniteWidth(16, 4), record=measured[0].steps)
    dmft.compare(measured[0], theory)
    with pytest.raises(InvalidInputError, match="loss: network"):
        dmft.compare(measured[1], theory)


class Counting(nn.Module):
    """A loss that divides by a running mean, as some do."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.ones(()))

    def forward(self, f: Tensor, y: Tensor) -> Tensor:
        loss = (f - y).square().mean()
        self.mean.mul_(0.9).add_(0.1 * loss.detach())
        return loss / self.mean


def test_a_loss_that_counts_its_calls_is_left_alone() -> None:
    def fit(watched: bool) -> nn.Module:
        run, loss = Run(), Counting()
        recorder = dmft.Recorder(run.plan, dmft.Probe(INPUTS, TARGETS), loss=loss)
        with recorder.attach(run.optimizer) if watched else contextlib.nullcontext():
            for _ in range(8):
                run.optimizer.zero_grad()
                loss(run.model(INPUTS), TARGETS).backward()
                run.optimizer.step()
        return run.model

    for mine, theirs in zip(fit(True).parameters(), fit(False).parameters(), strict=True):
        assert torch.equal(mine, theirs)


class Dicts(Dataset[Any]):
    def __len__(self) -> int:
        return 16

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {"x": INPUTS[row], "y": TARGETS[row]}


def test_items_that_are_no_pairs_do_not_stop_training() -> None:
    run = Run()
    with run.recorder.attach(run.optimizer):
        for batch in run.recorder.batches(DataLoader(Dicts(), batch_size=4)):
            run.optimizer.zero_grad()
            nn.functional.mse_loss(run.model(batch["x"]), batch["y"]).backward()
            run.optimizer.step()
    with pytest.raises(InvalidInputError, match="must be pairs"):
        run.recorder.problem()


def test_a_step_is_recorded_once() -> None:
    run = Run()
    run.train(4)
    with pytest.raises(InvalidInputError, match="was recorded already"):
        run.recorder.record()


def test_skipped_rows_are_forgotten() -> None:
    run = Run()
    with run.recorder.attach(run.optimizer):
        for step in range(6):
            run.recorder.batch([0, 1, 2])
            if step % 2:
                run.recorder.forget()
                continue
            run.optimizer.zero_grad()
            run.backward([0, 1, 2])
            run.optimizer.step()
    assert [rows.tolist() for rows in run.recorder.problem().batches or ()] == [[0, 1, 2]] * 3


def test_rows_that_noise_hides_are_said_to_be_assumed() -> None:
    run = Run(temperature=1e-8)
    run.train(4)
    problem = run.recorder.problem()
    assert problem.training.assumptions == ("rows beside noise",)
    noted = Run(temperature=1e-8)
    noted.train(4, lambda _: noted.recorder.batch(range(16)))
    assert noted.recorder.problem().training.assumptions == ()


def test_a_network_that_was_trained_before_its_recorder() -> None:
    """Without biases nothing but the weights tells; another draw in their place is as good as theirs."""

    def bias_free(train: int, redraw: bool = False) -> dmft.Recorder:
        model = chain(64, bias=False)
        plan = dmft.parameterize(model, INPUTS, generator=torch.Generator().manual_seed(0))
        if redraw:
            other = dmft.parameterize(chain(64, bias=False), INPUTS, generator=torch.Generator().manual_seed(1))
            model.load_state_dict(other.model.state_dict())
        optimizer = SGD(plan.param_groups(0.1))

        def steps(count: int) -> None:
            for _ in range(count):
                optimizer.zero_grad()
                nn.functional.mse_loss(model(INPUTS), TARGETS).backward()
                optimizer.step()

        steps(train)
        recorder = dmft.Recorder(plan, dmft.Probe(INPUTS, TARGETS))
        with recorder.attach(optimizer):
            steps(3)
        return recorder

    for recorder in (bias_free(0), bias_free(0, redraw=True)):
        assert recorder.training.starts == {}
        recorder.problem()
    late = bias_free(2)
    assert set(late.training.starts) == {"0.weight", "2.weight", "4.weight"}
    with pytest.raises(UnsupportedProblemError, match="changed since the model was wrapped"):
        late.problem()
    theory = dmft.solve(bias_free(0).problem(), solvers.StaticNTK(), record=[0, 1, 2, 3])
    with pytest.raises(InvalidInputError, match=r"start of 2\.weight: network numbers that were changed"):
        dmft.compare(late.trajectory(), theory)


class Gated(nn.Module):
    """A chain with what a forward pass may depend on beside parameters, and with what it may not."""

    def __init__(self) -> None:
        super().__init__()
        self.chain = chain()
        self.gate, self.warm, self.acts = 1.0, None, [torch.tanh]
        self.settings, self.plain = SimpleNamespace(factor=1.0), torch.ones(1)
        self.calls, self.last, self.metric = 0, 0.0, None
        self.register_buffer("shift", torch.zeros(1))
        self.register_buffer("mask", torch.zeros(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.mask.numel() == 0:
            self.mask = torch.ones(48)
        h = self.acts[0](self.chain[0](x)) * self.gate * self.settings.factor * self.plain * self.mask
        h = h * (1.0 if self.warm is None else self.warm)
        out = self.chain[4](self.chain[3](self.chain[2](h)) + self.shift)
        self.last = float(out.detach().mean())
        return out

    def forward_otherwise(self, x: Tensor) -> Tensor:
        return 0.5 * self.forward_as_it_was(x)


def swap_method(model: Gated) -> None:
    model.forward_as_it_was = model.forward
    model.forward = model.forward_otherwise


CHANGES: dict[str, Callable[[Gated], Any]] = {
    "gate": lambda model: setattr(model, "gate", 0.5),
    "acts": lambda model: model.acts.__setitem__(0, torch.sin),
    "settings": lambda model: setattr(model.settings, "factor", 0.5),
    "warm": lambda model: setattr(model, "warm", 0.5),
    "plain": lambda model: model.plain.mul_(0.5),
    "shift": lambda model: model.shift.add_(0.5),
    "chain.3": lambda model: model.chain.__setitem__(3, nn.Sigmoid()),
    "forward": swap_method,
}
HARMLESS: dict[str, Callable[[Gated], Any]] = {
    "nothing": lambda model: None,
    "another module of the kind": lambda model: model.chain.__setitem__(3, nn.Tanh()),
    "a module that is not used": lambda model: setattr(model, "metric", nn.Identity()),
    "a counter": lambda model: setattr(model, "calls", model.calls + 5),
}


def gated(change: Callable[[Gated], Any], lr: float = 0.1) -> tuple[Gated, dmft.Recorder]:
    model = Gated()
    recorder = dmft.Recorder(model, dmft.Probe(INPUTS, TARGETS), every=4)
    optimizer = SGD(model.parameters(), lr=lr)
    with recorder.attach(optimizer):
        for step in range(12):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(INPUTS), TARGETS).backward()
            optimizer.step()
            if step == 1:
                change(model)
    return model, recorder


def forward_notes(recorder: dmft.Recorder) -> list[str]:
    return [note for note in recorder.trajectory().training.notes if "forward pass" in note]


@pytest.mark.parametrize("name", CHANGES)
def test_a_forward_pass_that_changes(name: str) -> None:
    _, recorder = gated(CHANGES[name])
    (note,) = forward_notes(recorder)
    assert name in note


@pytest.mark.parametrize("name", HARMLESS)
def test_what_changes_no_output_is_no_change(name: str) -> None:
    model, recorder = gated(HARMLESS[name])
    assert forward_notes(recorder) == []
    assert model.calls >= 12
    assert model.mask.shape == (48,)


def test_rows_that_only_some_change_touches() -> None:
    """The first rows alone tell nothing."""

    def clip(model: Gated) -> None:
        bound = INPUTS[:2].abs().max()
        model.chain[0].register_forward_pre_hook(lambda module, args: (args[0],))  # a hook of the user changes nothing
        model.acts[0] = lambda h: torch.where(far(h), torch.zeros_like(h), torch.tanh(h))
        far = lambda h: (h.abs() > bound + 100) | (torch.arange(len(h)) == 7)[:, None]  # noqa: E731

    assert forward_notes(gated(clip)[1])


def test_a_run_that_diverges_is_not_called_changed() -> None:
    _, recorder = gated(lambda model: None, lr=1e8)
    assert not recorder.records[-1].outputs.isfinite().all()
    assert forward_notes(recorder) == []


@pytest.mark.parametrize(
    "norm", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm, nn.utils.parametrizations.weight_norm]
)
def test_norms_of_weights_are_no_change(norm: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), norm(nn.Linear(16, 16)), nn.Tanh(), nn.Linear(16, 1))
    recorder = dmft.Recorder(model, dmft.Probe(INPUTS, TARGETS), every=4)
    optimizer = SGD(model.parameters(), lr=0.1)
    with recorder.attach(optimizer):
        for _ in range(12):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(INPUTS), TARGETS).backward()
            optimizer.step()
    assert forward_notes(recorder) == []


WRITES: dict[str, tuple[Callable[[Tensor], Any], bool]] = {
    "nothing": (lambda rows: None, False),
    "one row": (lambda rows: rows[513].add_(0.01), True),
    "other rows of the same memory": (lambda rows: rows._base[1000:].zero_(), False),
    "the same numbers": (lambda rows: rows.copy_(rows.clone()), False),
}


@pytest.mark.parametrize("last", [False, True], ids=["midway", "after the last check"])
@pytest.mark.parametrize("name", WRITES)
def test_a_training_set_that_is_written_to(name: str, last: bool) -> None:
    """A print looks at some rows; tensors know that any was written to, by how often is of no matter."""
    write, told = WRITES[name]
    whole = torch.empty(1200, 6)
    for row, values in enumerate(torch.randn(1200, 6, generator=torch.Generator().manual_seed(4))):
        whole[row] = values
    for _ in range(20_000):
        whole[0].add_(0)
    inputs, targets = whole[:1000], torch.randn(1000, 1, generator=torch.Generator().manual_seed(5))
    model = chain()
    plan = dmft.parameterize(model, inputs, generator=torch.Generator().manual_seed(0))
    optimizer = SGD(plan.param_groups(0.1))
    recorder = dmft.Recorder(plan, dmft.Probe(INPUTS, TARGETS), data=(inputs, targets))
    with recorder.attach(optimizer):
        for step in range(6):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(inputs), targets).backward()
            optimizer.step()
            if step == (5 if last else 2):
                write(inputs)
    changed = "a training set that changes during the run" in recorder.training.notes
    assert changed == told


def test_a_weight_that_is_pruned_midway_is_refused_at_the_next_record() -> None:
    """It has another name then; the step itself goes on."""
    run = Run()

    def prune(step: int) -> None:
        if step == 1:
            nn.utils.prune.random_unstructured(run.model[2], "weight", 0.5)

    with pytest.raises(InvalidInputError, match=r"new: 2\.weight_orig; gone: 2\.weight"):
        run.train(12, prune)
    assert run.recorder.step == 4


def test_a_training_set_that_is_no_pairs_ends_no_training() -> None:
    """Also not at the last look, after a checkpoint."""
    three = TensorDataset(INPUTS, INPUTS, TARGETS)
    earlier = Run(data=three)
    earlier.train(4)
    later = Run(data=three)
    later.recorder.load_state_dict({**earlier.recorder.state_dict(), "observer": _with_a_print_of_the_loss(earlier)})
    later.train(4)
    assert later.recorder.step == 8


def _with_a_print_of_the_loss(run: Run) -> dict[str, Any]:
    return {**run.recorder.state_dict()["observer"], "loss_print": (1.0, 2.0, 3.0)}
