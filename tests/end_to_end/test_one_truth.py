"""What is true of a run reaches the theory: what is frozen, how weights start, which rows a step saw, which loss it had.

Each case was compared with a theory of another run once, and is now predicted rightly (within five standard errors of networks
of this width, of which a wrong theory is outside) or refused with its place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

import torch_dmft as dmft
from torch_dmft import solvers
from torch_dmft.core.errors import InvalidInputError, UnsupportedProblemError

GENERATOR = torch.Generator().manual_seed(11)
INPUTS = torch.randn(8, 10, generator=GENERATOR)
TARGETS = torch.sign(torch.randn(8, 1, generator=GENERATOR))
STEPS = 20


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What torch.nn draws by itself: biases, and weights of init="keep"."""
    torch.manual_seed(2)


def chain(width: int = 256, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(10, width, bias), nn.Tanh(), nn.Linear(width, width, bias), nn.Tanh(), nn.Linear(width, 1, bias)
    )


def residual(width: int) -> nn.Module:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.branch, self.last = nn.Linear(10, width), nn.Linear(width, width), nn.Linear(width, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            return self.last(torch.tanh(h + self.branch(torch.tanh(h))))

    return Residual()


def run(
    model: nn.Module,
    *,
    prepare: Callable[[nn.Module], Any] = lambda _: None,
    before: Callable[[nn.Module], Any] = lambda _: None,
    groups: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] = lambda groups: groups,
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.mse_loss,
    recorder_loss: Any = None,
    targets: Tensor = TARGETS,
    init: str = "normal",
    seed: int = 0,
    lr: float = 0.2,
    **numbers: float,
) -> dmft.Recorder:
    """A user's run, with something done before and after the model is wrapped."""
    before(model)
    plan = dmft.parameterize(model, INPUTS, init=init, generator=torch.Generator().manual_seed(seed))
    prepare(model)
    optimizer = SGD(groups(plan.param_groups(lr)), **numbers)
    recorder = dmft.Recorder(plan, dmft.Probe(INPUTS, targets), every=5, loss=recorder_loss)
    with recorder.attach(optimizer):
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss(model(INPUTS), targets).backward()
            optimizer.step()
    return recorder


def far(measured: dmft.Trajectory, predicted: dmft.Trajectory, width: int) -> float:
    """The largest relative error of a kernel in units of what one network of this width has at most, 7 / sqrt(N)."""
    worst = max(
        float((a.equal_time - b.equal_time).norm() / b.equal_time.norm())
        for mine, theirs in zip(measured.layers, predicted.layers, strict=True)
        for a, b in ((mine.forward, theirs.forward), (mine.backward, theirs.backward), (mine.ntk, theirs.ntk))
        if float(b.equal_time.norm()) > 1e-6
    )
    return worst * width**0.5 / 7


ENGINES: dict[str, Any] = {
    "twin": solvers.InfiniteWidth(2048, replicas=2),
    "networks": solvers.FiniteWidth(256, 8),
    "ensemble": solvers.WideEnsemble((64, 128, 256), pairs=6),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "frozen", [("2.weight",), ("0.weight", "0.bias"), ("0.weight", "2.weight"), ("4.bias", "2.bias")], ids=str
)
def test_what_is_frozen_stays_frozen_in_every_solver(frozen: tuple[str, ...], engine: str) -> None:
    def freeze(model: nn.Module) -> None:
        for name in frozen:
            model.get_parameter(name).requires_grad_(False)

    recorder = run(chain(), prepare=freeze, lr=0.5)
    assert set(recorder.training.frozen) == set(frozen)
    measured = recorder.trajectory()
    predicted = dmft.solve(recorder.problem(), ENGINES[engine], record=measured.steps)
    dmft.compare(measured, predicted)
    assert far(measured, predicted, 256) < 1
    if frozen != ("4.bias", "2.bias"):
        everything = recorder.problem().trained(frozen=())
        wrong = dmft.solve(everything, ENGINES[engine], record=measured.steps)
        assert far(measured, wrong, 256) > 1
        with pytest.raises(InvalidInputError, match=r"frozen parameters: network .*theory none"):
            dmft.compare(measured, wrong)


@pytest.mark.parametrize(
    "solver", [solvers.StaticNTK(), solvers.DeepLinear(), solvers.AlternatingMonteCarlo(200, replicas=1)]
)
def test_closed_forms_refuse_frozen_weights_by_name(solver: Any) -> None:
    problem = dmft.Problem.mlp(INPUTS, TARGETS, depth=2, activation="linear", steps=3).trained(frozen=("2.weight",))
    with pytest.raises(UnsupportedProblemError, match=r"frozen parameters \(2\.weight\).*InfiniteWidth"):
        dmft.solve(problem, solver)


def test_a_parameter_that_no_optimizer_has_is_frozen_too() -> None:
    recorder = run(chain(), groups=lambda groups: groups[-2:])
    assert recorder.training.frozen
    assert "frozen" in recorder.training.traits
    frozen = recorder.training.frozen[0]
    layer = frozen.rpartition(".")[0]
    kernels = recorder.trajectory().layer(layer)
    if {f"{layer}.weight", f"{layer}.bias"} <= set(recorder.training.frozen):
        assert not bool(kernels.ntk.array.any())


def test_frozen_weights_keep_their_values_when_wrapped() -> None:
    model = chain()
    model[2].weight.requires_grad_(False)
    before = model[2].weight.clone()
    plan = dmft.parameterize(model, INPUTS)
    assert torch.equal(model[2].weight, before)
    size = float(before.square().mean().sqrt())
    assert plan.rule("2.weight").gain == pytest.approx(size * 16)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_zero_branch_starts_at_zero_in_every_solver(engine: str) -> None:
    recorder = run(residual(1024), prepare=lambda model: nn.init.zeros_(model.branch.weight))
    assert recorder.training.starts["branch.weight"] == "zero"
    measured = recorder.trajectory()
    predicted = dmft.solve(recorder.problem(), ENGINES[engine], record=measured.steps)
    assert far(measured, predicted, 1024) < 1
    wrong = dmft.solve(recorder.problem().trained(starts={}), ENGINES[engine], record=measured.steps)
    assert far(measured, wrong, 1024) > 1


@pytest.mark.parametrize(
    ("before", "init", "told"),
    [
        (lambda model: nn.init.orthogonal_(model[2].weight), "keep", r"2\.weight: a matrix whose rows are orthogonal"),
        (lambda model: model[2].weight.data.pow_(3), "keep", r"2\.weight: numbers with a fourth moment of"),
    ],
    ids=["orthogonal", "cubed"],
)
def test_structured_starts_are_refused_or_taken_for_gaussian(before: Any, init: str, told: str) -> None:
    recorder = run(chain(), before=before, init=init)
    with pytest.raises(UnsupportedProblemError, match=told):
        recorder.problem()
    assumed = recorder.problem(assume_gaussian=True)
    assert assumed.training.assumptions == ("start",)
    measured = recorder.trajectory()
    dmft.compare(measured, dmft.solve(assumed, solvers.StaticNTK(), record=measured.steps))
    plain = dmft.Problem.mlp(INPUTS, TARGETS, depth=2, bias_std=0.0, lr=0.2, steps=STEPS)
    with pytest.raises(InvalidInputError, match=r"start of 2\.weight|start of 0\.weight"):
        dmft.compare(measured, dmft.solve(plain, solvers.StaticNTK(), record=measured.steps))


def test_a_layer_added_after_wrapping_is_seen_at_attach_and_at_every_record() -> None:
    model = chain()
    plan = dmft.parameterize(model, INPUTS)
    recorder = dmft.Recorder(plan, dmft.Probe(INPUTS, TARGETS))
    optimizer = SGD(plan.param_groups(0.1))
    with recorder.attach(optimizer):
        model.add_module("extra", nn.Linear(1, 1))
        recorder.step = 1
        with pytest.raises(InvalidInputError, match=r"new: extra\.bias, extra\.weight"):
            recorder.record()
    with pytest.raises(InvalidInputError, match="changed after it was wrapped"), recorder.attach(optimizer):
        pass


@pytest.mark.parametrize(
    ("recorder_loss", "loss"),
    [
        (lambda f, y: (f.squeeze(-1) - y).square().mean(), lambda f, y: (f.squeeze(-1) - y).square().mean()),
        (None, lambda f, y: nn.functional.mse_loss(f.squeeze(-1), y)),
        (
            nn.BCEWithLogitsLoss(),
            lambda f, y: nn.functional.binary_cross_entropy_with_logits(f.squeeze(-1), y),
        ),
    ],
    ids=["squeezes", "default", "BCE"],
)
def test_flat_targets_meet_outputs_row_by_row(recorder_loss: Any, loss: Any) -> None:
    flat = (TARGETS[:, 0] + 1) / 2
    recorder = run(chain(), loss=loss, recorder_loss=recorder_loss, targets=flat)
    measured = recorder.trajectory()
    assert recorder.training.batches_known  # the gradients are those of the recorder's loss
    with torch.no_grad():
        expected = loss(measured.outputs[-1], flat)
    torch.testing.assert_close(measured.losses[-1], expected)
    predicted = dmft.solve(recorder.problem(), solvers.FiniteWidth(256, 8), record=measured.steps)
    dmft.compare(measured, predicted)
    assert abs(float(predicted.losses[-1] - measured.losses[-1])) < 0.2 * float(measured.losses[0])
    torch.testing.assert_close(
        predicted.losses[0],
        predicted.losses[0].new_tensor(float(loss(measured.outputs[:1, :, 0].T * 0, flat))),
        rtol=0.2,
        atol=0.02,
    )


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        (lambda f, y: nn.functional.l1_loss(f, y), "not those of MSELoss"),
        (lambda f, y: 3 * nn.functional.mse_loss(f, y), "not those of MSELoss"),
        (lambda f, y: nn.functional.mse_loss(f[:4], y[:4]), "not those of MSELoss"),
    ],
    ids=["another loss", "scaled", "half of the rows"],
)
def test_another_loss_or_other_rows_are_found_out_by_their_gradients(loss: Any, told: str) -> None:
    recorder = run(chain(), loss=loss)
    assert not recorder.training.batches_known
    with pytest.raises(InvalidInputError, match=told):
        recorder.problem()
    measured = recorder.trajectory()
    plain = dmft.Problem.like(recorder.subject.plan, recorder.probe, lr=0.2, steps=STEPS)
    with pytest.raises(InvalidInputError, match=told):
        dmft.compare(measured, dmft.solve(plain, solvers.StaticNTK(), record=measured.steps))


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


def test_a_weight_without_its_gradient_is_found_out_beside_a_large_readout() -> None:
    model = chain()
    plan = dmft.parameterize(model, INPUTS, generator=torch.Generator().manual_seed(0))
    optimizer = SGD(plan.param_groups(0.2))
    recorder = dmft.Recorder(plan, dmft.Probe(INPUTS, TARGETS))
    with recorder.attach(optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(INPUTS), TARGETS).backward()
            model[0].weight.grad.zero_()
            optimizer.step()
    with pytest.raises(InvalidInputError, match="not those of MSELoss"):
        recorder.problem()


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


def steps_taken(
    model: nn.Module, optimizer: torch.optim.Optimizer, count: int, before: Callable[[int], Any] = lambda _: None
) -> None:
    for step in range(count):
        before(step)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(INPUTS), TARGETS).backward()
        optimizer.step()


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
