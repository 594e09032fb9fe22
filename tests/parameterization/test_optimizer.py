"""Learning rates and decay of the groups against the unit form with explicit multipliers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.func import functional_call

from tests.architecture.models import ResidualMLP, cnn
from tests.parameterization.unit_form import UnitMLP, mlp, train
from torch_dmft.architecture import Role
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.parameterization import parameterize


def data(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    return x, torch.sin(x[:, :1])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("gamma0", [0.3, 2.0])
def test_sgd_trains_the_unit_form(gamma0: float, momentum: float, generator: torch.Generator) -> None:
    x, y = data(generator)
    plan = parameterize(mlp(16), x, gamma0, gain=1.5, generator=generator)
    unit = UnitMLP(plan, gain=1.5, gamma0=gamma0)
    eta, decay, rate = 0.05, 0.3, gamma0**2 * 16
    folded = torch.optim.SGD(plan.param_groups(eta, weight_decay=decay), momentum=momentum)
    explicit = torch.optim.SGD(unit.parameters(), lr=eta * rate, momentum=momentum, weight_decay=decay / rate)
    a, b = train(plan.model, folded, x, y, 20), train(unit, explicit, x, y, 20)
    assert torch.allclose(a, b, rtol=0, atol=1e-10)
    assert (a[-1] - a[0]).abs().max() > 0.1


class Explicit(nn.Module):
    """A model whose parameters are multipliers times the parameters that are trained."""

    def __init__(self, model: nn.Module, multipliers: dict[str, float]) -> None:
        super().__init__()
        self.model = [model]
        self.multipliers = multipliers
        self.unit = nn.ParameterList(p.detach() / multipliers[name] for name, p in model.named_parameters())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        names = self.multipliers
        parameters = {name: names[name] * p for name, p in zip(names, self.unit, strict=True)}
        return functional_call(self.model[0], parameters, (x,))


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_adam_trains_the_unit_form(optimizer: str, generator: torch.Generator) -> None:
    x, y = torch.randn(6, 5, generator=generator, dtype=torch.float64), torch.randn(6, 2, generator=generator).double()
    plan = parameterize(ResidualMLP(16).double(), x, 0.7, generator=generator)
    rate, eta, decay, eps = plan.gamma0**2 * plan.width, 0.02, 0.1, 1e-3
    m = {rule.name: 1.0 if rule.role in (Role.VECTOR, Role.OUTPUT_BIAS) else rule.std for rule in plan.rules}
    unit = Explicit(plan.model, m)
    groups = []
    for rule, parameter in zip(plan.rules, unit.unit, strict=True):
        size = 1.0 if rule.role in (Role.READOUT, Role.OUTPUT_BIAS) else 1 / (plan.gamma0 * plan.width)
        base = {
            Role.READOUT: 1 / rule.fan_in,
            Role.VECTOR: plan.gamma0,
            Role.OUTPUT_BIAS: 1.0,
        }.get(rule.role, plan.gamma0 / rule.fan_in)
        lr = eta * base / m[rule.name]
        # In unit form Adam's penalty has one strength for all (the readout bias is no unit-form parameter).
        penalty = decay if rule.role is Role.OUTPUT_BIAS else decay / rate
        weight_decay = penalty if optimizer == "adam" else eta * decay / lr
        groups.append({"params": [parameter], "lr": lr, "eps": eps * size * m[rule.name], "weight_decay": weight_decay})
    kind = torch.optim.Adam if optimizer == "adam" else torch.optim.AdamW
    folded = kind(plan.param_groups(eta, optimizer=optimizer, weight_decay=decay, eps=eps))
    a, b = train(unit, kind(groups), x, y, 20), train(plan.model, folded, x, y, 20)
    assert torch.allclose(a, b, rtol=0, atol=1e-10)
    assert (a[-1] - a[0]).abs().max() > 0.1


@pytest.mark.parametrize(("optimizer", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_one_step_of_decay_is_the_same_for_every_parameter(optimizer: str, kind: Callable) -> None:
    model = cnn().double()
    plan = parameterize(model, torch.randn(2, 3, 8, 8, dtype=torch.float64))
    nn.init.ones_(model[10].bias)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    steps = kind(plan.param_groups(0.1, optimizer=optimizer, weight_decay=0.2))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    steps.step()
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter, (1 - 0.1 * 0.2) * before[name], rtol=0, atol=1e-12), name


def test_groups_hold_every_parameter_once_under_a_readable_name() -> None:
    model = cnn()
    plan = parameterize(model, torch.randn(2, 3, 8, 8))
    groups = plan.param_groups(0.1)
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(map(id, model.parameters()))
    assert [group["name"] for group in groups] == [
        "input, fan-in 27",
        "vector",
        "hidden, fan-in 36",
        "readout, fan-in 16",
        "output bias",
    ]
    for group in groups:
        for parameter in group["params"]:
            name = next(name for name, other in model.named_parameters() if other is parameter)
            assert group["lr"] == pytest.approx(0.1 * plan.multipliers[name], rel=1e-12)


def test_frozen_parameters_are_left_out_and_add_nothing_to_the_ntk() -> None:
    model = mlp(8)
    model[0].requires_grad_(False)
    plan = parameterize(model, torch.randn(3, 5, dtype=torch.float64))
    assert plan.multipliers["0.weight"] == 0
    assert sum(len(group["params"]) for group in plan.param_groups(0.1)) == 3
    assert "frozen" in str(plan)


def test_schedulers_keep_the_ratios_of_the_rates() -> None:
    plan = parameterize(mlp(8), torch.randn(3, 5, dtype=torch.float64))
    groups = plan.param_groups(0.1)
    rates = torch.tensor([group["lr"] for group in groups])

    optimizer = torch.optim.SGD(groups)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    for step in range(1, 4):
        optimizer.step()
        decay.step()
        assert torch.allclose(torch.tensor(decay.get_last_lr()), rates * 0.5**step)

    groups = plan.param_groups(0.1)
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=[group["lr"] for group in groups], total_steps=10)
    for _ in range(9):
        optimizer.step()
        cycle.step()
        ratio = torch.tensor(cycle.get_last_lr()) / rates
        assert torch.allclose(ratio, ratio[:1].expand_as(ratio))


def test_unknown_optimisers_are_refused() -> None:
    plan = parameterize(mlp(8), torch.randn(3, 5, dtype=torch.float64))
    with pytest.raises(InvalidInputError, match="must be one whose rates"):
        plan.param_groups(0.1, optimizer="adagrad")
