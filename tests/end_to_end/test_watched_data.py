"""The rows and the loss that a run is trained on are seen as they are, or said to be unknown."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

import torch_dmft as dmft
from tests.end_to_end.watched import INPUTS, TARGETS, Run, chain, with_loader
from torch_dmft import solvers
from torch_dmft.core.errors import InvalidInputError, UnsupportedProblemError


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


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


def test_one_subset_made_anew_every_epoch_is_one_training_set() -> None:
    run = Run()
    run.recorder = dmft.Recorder(run.plan, dmft.Probe(INPUTS[:4], TARGETS[:4]), every=4)
    with_loader(run, lambda: Subset(TensorDataset(INPUTS, TARGETS), range(12)))
    assert run.recorder.problem().train_samples == 12


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
