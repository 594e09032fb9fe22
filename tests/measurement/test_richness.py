"""Lazy or rich: a verdict that does not change with width, seed or optimizer, and follows gamma0."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_dmft as dmft
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.measurement.richness import RICH, Richness
from torch_dmft.parameterization.steppers import steppers

RATES = {"sgd": 0.1, "adam": 0.03, "muon": 0.03}


def mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))


def task(seed: int) -> dmft.Probe:
    inputs = torch.randn(16, 8, generator=torch.Generator().manual_seed(seed))
    return dmft.Probe(inputs, torch.sign(inputs[:, :1]))


def judged(gamma0: float, width: int, optimizer: str, seed: int) -> Richness:
    probe = task(seed)
    torch.manual_seed(seed)
    plan = dmft.parameterize(mlp(width), probe.inputs, gamma0, generator=torch.Generator().manual_seed(seed))
    return dmft.richness(plan, steppers(plan, RATES[optimizer], optimizer), probe)


@pytest.mark.parametrize("optimizer", RATES)
@pytest.mark.parametrize(("gamma0", "verdict"), [(0.1, "lazy"), (1.0, "between or rich"), (4.0, "rich")])
def test_the_verdict_follows_gamma0_at_every_width_and_seed(gamma0: float, verdict: str, optimizer: str) -> None:
    for width, seed in ((64, 0), (128, 1), (256, 2)):
        found = judged(gamma0, width, optimizer, seed)
        assert found.verdict in verdict.split(" or "), f"{width}, {seed}: {found}"
        assert found.gamma0 == gamma0
        assert found.losses[1] <= 0.11 * found.losses[0]
        assert found.features["0"] == 0
        assert found.margin > 1, str(found)


def test_gamma0_between_is_between() -> None:
    assert {judged(0.3, width, "sgd", seed).verdict for width, seed in ((64, 1), (256, 2))} == {"between"}


def test_what_it_is_of_stays_as_it_was() -> None:
    probe = task(0)
    model = nn.Sequential(*mlp(32), nn.Dropout(0.1)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.001)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    nn.functional.mse_loss(model(probe.inputs), probe.targets).backward()
    optimizer.step()
    scheduler.step()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.tensor([float(value["exp_avg_sq"].sum()) for value in optimizer.state.values()])
    gradient = model[0].weight.grad.clone()
    drawn = torch.get_rng_state()
    found = dmft.richness(model[:5], optimizer, probe, steps=3)
    assert found.steps == 3
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model[0].weight.grad, gradient)
    assert torch.equal(torch.tensor([float(v["exp_avg_sq"].sum()) for v in optimizer.state.values()]), state)
    assert scheduler.last_epoch == 1
    assert found.verdict == "not decided"
    assert "more steps" in str(found)


def test_pytorchs_own_networks_become_lazy_with_the_width() -> None:
    """gamma0 = sqrt(3/N) of PyTorch's initialisation, and a movement that falls with it."""
    found = {}
    for width in (64, 1024):
        torch.manual_seed(0)
        model, probe = mlp(width), task(3)
        found[width] = dmft.richness(model, torch.optim.SGD(model.parameters(), lr=0.05), probe, steps=4000)
        assert found[width].gamma0 == pytest.approx(math.sqrt(3 / width), rel=0.2)
    assert found[1024].ntk < 0.6 * found[64].ntk
    assert found[1024].gamma0 < found[64].gamma0


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.5, False), (0.5, True)])
def test_the_margin_of_sgd_is_where_it_becomes_unstable(momentum: float, nesterov: bool) -> None:
    """A linear model's kernel is constant, so that training is stable just below the margin and unstable just beyond."""
    probe = task(0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 1, bias=False))

    def grows(lr: float) -> bool:
        model[0].weight.data.fill_(0.3)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, nesterov=nesterov)
        seen = []
        for _ in range(300):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(probe.inputs), probe.targets)
            seen.append(loss.item())
            loss.backward()
            optimizer.step()
        return not seen[-1] < 2 * seen[0]

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum, nesterov=nesterov)
    margin = dmft.richness(model, optimizer, probe, steps=2).margin
    assert not grows(0.1 * margin * 0.97)
    assert grows(0.1 * margin * 1.03)


def test_the_margin_of_other_optimizers_is_that_of_their_first_step() -> None:
    """A squared error along a step is a parabola in c; its second root is the c at which the loss is what it was."""
    probe = dmft.Probe(torch.tensor([[1.0, 2.0], [1.0, 2.0]]), torch.tensor([[1.0], [1.0]]))
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    nn.init.zeros_(model[0].weight)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(3):  # a memory of other steps, which does not count
        model[0].weight.grad = -torch.ones(1, 2)
        optimizer.step()
    nn.init.zeros_(model[0].weight)
    found = dmft.richness(model, optimizer, probe, steps=1)
    # Both weights move by lr, so that f goes from 0 to 0.03; the loss is what it was at f = 2.
    assert found.margin == pytest.approx(2 / 0.03, rel=1e-3)
    assert "the optimizer's first step" in found.margin_by
    # SGD: f = 1 is lr k / P sum = lr * 2 * 5 away, at lr = 1/10; 2 / lr over the curvature is 2 there, as the first step is.
    sgd = dmft.richness(model, torch.optim.SGD(model.parameters(), lr=0.02), probe, steps=1)
    assert sgd.margin == pytest.approx(2 / (0.02 * 10), rel=1e-3)


def test_rates_of_their_own_have_no_edge_but_a_first_step() -> None:
    """A head that learns 500 times faster than what is before it: one base rate and K said 270 times as large."""
    probe = task(0)
    torch.manual_seed(0)
    model = mlp(64)

    def groups(factor: float = 1.0) -> list[dict[str, Any]]:
        return [
            {"params": model[:4].parameters(), "lr": 1e-4 * factor},
            {"params": model[4].parameters(), "lr": 0.05 * factor},
        ]

    found = dmft.richness(model, torch.optim.SGD(groups()), probe, steps=2)
    assert "the optimizer's first step" in found.margin_by
    one = dmft.richness(model, torch.optim.SGD(groups(0.99 * found.margin)), probe, steps=1)
    other = dmft.richness(model, torch.optim.SGD(groups(1.2 * found.margin)), probe, steps=1)
    assert one.losses[1] < one.losses[0]
    assert other.losses[1] > other.losses[0]

    recorder = dmft.Recorder(model, probe, schedule=[0, 1, 2])
    optimizer = torch.optim.SGD([{"params": model[:4].parameters(), "weight_decay": 1.0}, *groups()[1:]], lr=0.05)
    with recorder.attach(optimizer):
        for step in range(3):
            if step == 2:
                optimizer.param_groups[1]["lr"] *= 2
            optimizer.zero_grad()
            nn.functional.mse_loss(model(probe.inputs), probe.targets).backward()
            optimizer.step()
    edge = recorder.trajectory().edge
    assert edge is not None
    assert edge.isnan().tolist() == [False, False, True]  # decay moves no edge


def test_of_a_negative_loss_nobody_knows_how_much_is_learned() -> None:
    """Its first step is below a tenth of a negative number at once: that was called lazy."""
    probe = task(0)
    torch.manual_seed(0)
    model = mlp(64)

    def shifted(outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.mse_loss(outputs, targets) - 5

    found = dmft.richness(model, torch.optim.SGD(model.parameters(), lr=0.01), probe, loss=shifted, steps=20)
    assert (found.verdict, found.steps) == ("not decided", 20)
    assert "a loss that is negative" in str(found)


def test_a_recorded_run_is_judged_alike() -> None:
    probe = task(0)
    plan = dmft.parameterize(mlp(64), probe.inputs, 1.0, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(plan.param_groups(0.1))
    ahead = dmft.richness(plan, optimizer, probe)
    recorder = dmft.Recorder(plan, probe, every=ahead.steps)
    with recorder.attach(optimizer):
        for _ in range(ahead.steps):
            optimizer.zero_grad()
            nn.functional.mse_loss(plan.model(probe.inputs), probe.targets).backward()
            optimizer.step()
    for run in (recorder, recorder.trajectory()):
        found = dmft.richness(run)
        assert found.ntk == pytest.approx(ahead.ntk, rel=1e-6)
        assert found.features == pytest.approx(dict(ahead.features), rel=1e-6)
        assert (found.steps, found.verdict, found.gamma0) == (ahead.steps, ahead.verdict, 1.0)


def test_verdicts_of_what_was_measured() -> None:
    def with_numbers(ntk: float | None, last: float, features: float = 0.7) -> Richness:
        return Richness(10, (1.0, last), {"0": 0.0, "2": features}, ntk, 1.0, 2.0, "")

    assert with_numbers(0.09, 0.2).verdict == "lazy"
    assert with_numbers(0.09, 0.6).verdict == "not decided"
    assert with_numbers(RICH, 0.9).verdict == "rich"
    assert with_numbers(0.2, 0.2).verdict == "between"
    assert with_numbers(None, 0.2).verdict == "rich"
    assert with_numbers(0.2, math.nan).verdict == "diverged"
    assert "3.3%" in str(with_numbers(0.09, 0.2))


def test_the_error_of_a_frozen_kernel_is_at_most_eps_over_e() -> None:
    """What the threshold rests on, by brute force over times, eigenvalues and ways to move."""
    times = torch.linspace(0, 50, 5001, dtype=torch.float64)
    for eps in (0.02, 0.1, 0.5):
        for rate in (0.1, 1.0, 5.0):
            for way in (torch.ones_like(times), times / times[-1], 1 - torch.exp(-times)):
                moved = torch.cumulative_trapezoid(rate * (1 + eps * way), times)
                error = torch.exp(-rate * times[1:]) - torch.exp(-moved)
                assert error.abs().max() <= eps / math.e + 1e-3


def test_wrong_calls() -> None:
    model, probe = mlp(8), task(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InvalidInputError, match="how it learns"):
        dmft.richness(model, optimizer)
    with pytest.raises(InvalidInputError, match="how it learns"):
        dmft.richness(model, [], probe)
    with pytest.raises(InvalidInputError, match="without a closure"):
        dmft.richness(model, torch.optim.LBFGS(model.parameters()), probe)
    recorder = dmft.Recorder(model, probe)
    recorder.record()
    with pytest.raises(InvalidInputError, match="recorded twice"):
        dmft.richness(recorder)
