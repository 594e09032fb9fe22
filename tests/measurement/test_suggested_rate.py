"""The suggested base learning rate is where theory and training say it is, and the same at every width."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torch_dmft as dmft
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.parameterization.muon import MuonGroups
from torch_dmft.parameterization.optimizer import OPTIMIZERS


def wrapped(width: int, seed: int = 0, gamma0: float = 1.0) -> tuple[dmft.Plan, dmft.Probe]:
    torch.manual_seed(seed)  # biases keep the numbers that they are built with
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    model = nn.Sequential(
        nn.Linear(5, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
    ).double()
    return dmft.parameterize(model, x, gamma0, generator=generator), dmft.Probe(x, x[:, :1].sin())


def train(plan: dmft.Plan, probe: dmft.Probe, lr: float, steps: int, optimizer: str = "sgd") -> list[float]:
    groups = plan.param_groups(lr, optimizer=optimizer, eps=0.0)
    if isinstance(groups, MuonGroups):
        optimizers = [torch.optim.Muon(groups.muon), torch.optim.AdamW(groups.adamw)]
    else:
        optimizers = [OPTIMIZERS[optimizer](groups)]
    losses = []
    for _ in range(steps):
        plan.model.zero_grad()
        loss = nn.functional.mse_loss(plan.model(probe.inputs), probe.targets)
        losses.append(float(loss.detach()))
        loss.backward()
        for each in optimizers:
            each.step()
    return losses


@pytest.mark.parametrize("seed", [0, 1])
def test_sgd_is_stable_below_the_limit_and_not_above(seed) -> None:
    plan, probe = wrapped(256, seed, gamma0=0.02)  # lazy: the curvature stays
    rate = plan.suggest_lr(probe)
    assert float(rate) == rate.lr == pytest.approx(0.5 * rate.limit)
    losses = {factor: train(wrapped(256, seed, 0.02)[0], probe, factor * rate.limit, 60) for factor in (0.9, 1.1)}
    assert losses[0.9][-1] < max(losses[0.9]) <= 1.2 * losses[0.9][0]
    assert max(losses[1.1]) > 3 * losses[1.1][0]


needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")


@pytest.mark.parametrize("optimizer", ["adam", "adamw", pytest.param("muon", marks=needs_muon)])
def test_the_first_step_lowers_the_loss_most_at_its_limit(optimizer) -> None:
    def line(x: torch.Tensor) -> nn.Module:
        torch.manual_seed(0)
        hidden = [nn.Linear(64, 96, bias=False), nn.Linear(96, 64, bias=False)] if optimizer == "muon" else []
        return nn.Sequential(nn.Linear(5, 64, bias=False), *hidden, nn.Linear(64, 1, bias=False)).double()

    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    probe = dmft.Probe(x, x[:, :1].sin() * 1e-3)  # so small a step that the loss is quadratic along it
    limit = dmft.parameterize(line(x), x, init="keep").suggest_lr(probe, optimizer=optimizer).limit
    factors = torch.linspace(0.8, 1.2, 41)
    losses = [
        train(dmft.parameterize(line(x), x, init="keep"), probe, float(factor) * limit, 2, optimizer)[1]
        for factor in factors
    ]
    assert float(factors[losses.index(min(losses))]) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "muon"])
@pytest.mark.parametrize("gamma0", [0.5, 2.0])
def test_it_is_the_same_at_every_width(optimizer, gamma0) -> None:
    limits = []
    for width in (64, 1024):
        several = [wrapped(width, seed, gamma0) for seed in range(6)]
        found = torch.tensor([plan.suggest_lr(probe, optimizer=optimizer).limit for plan, probe in several]).log()
        limits.append((float(found.mean()), float(found.std()) / 6**0.5))
    (one, error), (other, other_error) = limits
    assert abs(one - other) < 4 * (error**2 + other_error**2) ** 0.5 + 0.1


def test_nothing_is_left_behind_and_what_it_rests_on_is_said() -> None:
    plan, probe = wrapped(32)
    before = {name: value.clone() for name, value in plan.model.state_dict().items()}
    for optimizer in ("sgd", "adam", "muon"):
        assert "full batch of the probe" in str(plan.suggest_lr(probe, optimizer=optimizer, fraction=0.25))
    assert all(torch.equal(value, before[name]) for name, value in plan.model.state_dict().items())
    assert all(parameter.grad is None for parameter in plan.model.parameters())


def test_bad_questions() -> None:
    plan, probe = wrapped(16)
    with pytest.raises(InvalidInputError, match="without targets"):
        plan.suggest_lr(dmft.Probe(probe.inputs))
    with pytest.raises(InvalidInputError, match="first step is known"):
        plan.suggest_lr(probe, optimizer="lbfgs")
    with pytest.raises(InvalidInputError, match="fraction"):
        plan.suggest_lr(probe, fraction=0.0)
    inputs = probe.inputs
    shallow = dmft.parameterize(nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 1)).double(), inputs)
    with pytest.raises(InvalidInputError, match="at least one hidden matrix"):
        shallow.suggest_lr(probe, optimizer="muon")
    with pytest.raises(InvalidInputError, match="no curvature"):
        plan.suggest_lr(probe, loss=lambda f, y: (f * y).sum())


@pytest.mark.parametrize(
    "loss", [nn.CrossEntropyLoss(), lambda outputs, classes: nn.functional.cross_entropy(outputs, classes)]
)
def test_classes_with_a_loss_of_ones_own_are_classes_with_the_usual_one(loss) -> None:
    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(7))
    torch.manual_seed(0)
    plan = dmft.parameterize(nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 3)), x)
    probe = dmft.Probe(x, torch.arange(12) % 3)
    assert plan.suggest_lr(probe, loss=loss).limit == pytest.approx(plan.suggest_lr(probe).limit)
