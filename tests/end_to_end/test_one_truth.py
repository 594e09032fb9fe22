"""What is true of a run reaches the theory: what is frozen, how weights start, which loss it had.

Each case was compared with a theory of another run once, and is now predicted rightly (within five standard errors of networks
of this width, of which a wrong theory is outside) or refused with its place.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

import torch_dmft as dmft
from tests.end_to_end.user_run import INPUTS, STEPS, TARGETS, chain, far, run
from torch_dmft import solvers
from torch_dmft.core.errors import InvalidInputError, UnsupportedProblemError


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What torch.nn draws by itself: biases, and weights of init="keep"."""
    torch.manual_seed(2)


def residual(width: int) -> nn.Module:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.branch, self.last = nn.Linear(10, width), nn.Linear(width, width), nn.Linear(width, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            return self.last(torch.tanh(h + self.branch(torch.tanh(h))))

    return Residual()


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
