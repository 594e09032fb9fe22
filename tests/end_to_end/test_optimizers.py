"""Every optimizer and every scheduler of torch: a run is predicted as it was, or refused by value; a new one cannot slip by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer, lr_scheduler

import torch_dmft as dmft
from torch_dmft.core.errors import InvalidInputError, UnsupportedProblemError

WIDTH, STEPS = 64, 12
GENERATOR = torch.Generator().manual_seed(5)
INPUTS = torch.randn(6, 8, generator=GENERATOR)
TARGETS = torch.sign(torch.randn(6, 1, generator=GENERATOR))

OPTIMIZERS = sorted(
    name
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, Optimizer) and kind is not Optimizer
)
FOLLOWED = {"SGD": "sgd", "Adam": "adam", "AdamW": "adamw"}

SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.8),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 4, 0.3),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [3, 8], 0.3),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.3, 5),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, 1.0, 6),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, 1.0, 4), lr_scheduler.CosineAnnealingLR(o, 8)], [4]
    ),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 10),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5, 3), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=0.5, factor=0.3),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(
        o, [0.2 * g["lr"] for g in o.param_groups], [g["lr"] for g in o.param_groups], step_size_up=3
    ),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, [g["lr"] for g in o.param_groups], total_steps=STEPS + 1),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4),
}
KINDS = sorted(
    name
    for name, kind in vars(lr_scheduler).items()
    if isinstance(kind, type)
    and issubclass(kind, lr_scheduler.LRScheduler)
    and kind is not lr_scheduler.LRScheduler
    and not name.startswith("_")
)


def trained(
    make: Callable[[dmft.Plan], Optimizer], schedule: Callable[[Optimizer], Any] | None = None
) -> dmft.Recorder:
    """A network that somebody trains."""
    model = nn.Sequential(nn.Linear(8, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))
    plan = dmft.parameterize(model, INPUTS, generator=torch.Generator().manual_seed(3))
    optimizer = make(plan)
    recorder = dmft.Recorder(plan, dmft.Probe(INPUTS, TARGETS), every=3)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(INPUTS), TARGETS)
        loss.backward()
        return loss

    with recorder.attach(optimizer):
        scheduler = None if schedule is None else schedule(optimizer)
        for _ in range(STEPS):
            loss = optimizer.step(closure) if isinstance(optimizer, torch.optim.LBFGS) else closure()
            if not isinstance(optimizer, torch.optim.LBFGS):
                optimizer.step()
            if scheduler is not None:
                scheduler.step(*([float(loss)] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []))
    return recorder


def farthest(measured: dmft.Trajectory, networks: dmft.Trajectory) -> float:
    """The largest z-score of the outputs and the NTK among networks of this width."""
    spread = networks.spread
    scores = [
        ((measured.outputs - networks.outputs) / spread.outputs).abs(),
        ((measured.ntk.array - networks.ntk.array) / spread.ntk.array).abs(),
    ]
    return max(float(score.nan_to_num(0.0).max()) for score in scores)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_is_predicted_or_refused_by_value(name: str) -> None:
    kind = getattr(torch.optim, name)
    plain = dmft.Problem.mlp(INPUTS, TARGETS, depth=2, lr=0.1, steps=STEPS)

    def make(plan: dmft.Plan) -> Optimizer:
        if name in FOLLOWED:
            return kind(plan.param_groups(0.1, optimizer=FOLLOWED[name]))
        if name == "SparseAdam":
            pytest.skip("takes sparse gradients alone")
        weights = [p for p in plan.model.parameters() if p.ndim == 2]
        return kind(weights if name in ("LBFGS", "Muon") else plan.model.parameters(), lr=1e-3)

    recorder = trained(make)
    measured = recorder.trajectory()
    theory = dmft.solve(plain, dmft.solvers.StaticNTK(), record=measured.steps)
    if name == "SGD":
        dmft.compare(measured, dmft.solve(recorder.problem(), dmft.solvers.StaticNTK(), record=measured.steps))
        return
    with pytest.raises(InvalidInputError, match=f"optimizer: network {name}, theory SGD"):
        dmft.compare(measured, theory)
    if name in FOLLOWED or name == "Muon":
        ensemble = dmft.solvers.WideEnsemble(widths=(32, 64), pairs=4)
        found = dmft.compare(measured, dmft.solve(recorder.problem(), ensemble, record=measured.steps))
        assert float(found.deviations[0].outputs.rms[-1]) < 0.5  # 5 standard errors of networks of width 64
    else:
        with pytest.raises((UnsupportedProblemError, InvalidInputError), match=name):
            dmft.solve(recorder.problem())


def test_every_scheduler_is_known_here() -> None:
    assert set(KINDS) == set(SCHEDULERS)


@pytest.mark.parametrize("name", KINDS)
def test_every_schedule_is_predicted_as_it_was(name: str) -> None:
    def make(plan: dmft.Plan) -> Optimizer:
        return SGD(plan.param_groups(0.3, weight_decay=0.02), momentum=0.5)

    recorder = trained(make, SCHEDULERS[name])
    measured = recorder.trajectory()
    networks = dmft.solve(recorder.problem(), dmft.solvers.FiniteWidth(WIDTH, 24), record=measured.steps)
    assert farthest(measured, networks) < 5
    dmft.compare(measured, networks)
    constant = recorder.problem().trained(lr=0.3, momentum=0.5)
    with pytest.raises(InvalidInputError, match="learning rate at step"):
        dmft.compare(measured, dmft.solve(constant, dmft.solvers.StaticNTK(), record=measured.steps))


def test_a_prediction_without_the_schedule_would_be_seen() -> None:
    recorder = trained(lambda plan: SGD(plan.param_groups(0.3)), lambda o: lr_scheduler.StepLR(o, 1, 0.1))
    measured = recorder.trajectory()
    wrong = dmft.solve(recorder.problem().trained(lr=0.3), dmft.solvers.FiniteWidth(WIDTH, 24), record=measured.steps)
    assert farthest(measured, wrong) > 7


def test_a_constant_schedule_is_none() -> None:
    recorder = trained(
        lambda plan: SGD(plan.param_groups(0.1)), lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    )
    assert set(recorder.training.traits) == {"uniform starts"}
    assert recorder.training.number("lr") == 0.1
