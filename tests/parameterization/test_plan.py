"""A plan as a value: its table, the way back, and checkpoints."""

from __future__ import annotations

import json
import re

import pytest
import torch
from torch import nn

from tests.architecture.models import cnn
from tests.parameterization.unit_form import mlp, train
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.parameterization import Plan, parameterize


def test_undo_restores_every_bit_also_after_training() -> None:
    model = cnn().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x, y = torch.randn(4, 3, 8, 8), torch.randn(4, 10)
    plan = parameterize(model, x)
    train(model, torch.optim.SGD(plan.param_groups(0.1), momentum=0.9), x, y, 3)
    assert not torch.equal(model[1].running_mean, before["1.running_mean"])
    plan.undo()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(InvalidInputError, match="once"):
        plan.undo()


def test_a_plan_put_together_by_hand_cannot_be_undone() -> None:
    made = parameterize(mlp(8), torch.randn(2, 5, dtype=torch.float64))
    by_hand = Plan(made.model, made.architecture, made.rules, gamma0=made.gamma0)
    assert by_hand.multipliers == made.multipliers
    with pytest.raises(InvalidInputError, match="can be undone"):
        by_hand.undo()


def test_the_scaling_survives_a_checkpoint(generator: torch.Generator) -> None:
    x = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    y = torch.sin(x[:, :1])
    plan = parameterize(mlp(8), x, 0.4, gain=1.2, generator=generator)
    optimizer = torch.optim.Adam(plan.param_groups(0.01, optimizer="adam"))
    train(plan.model, optimizer, x, y, 5)
    saved = json.loads(json.dumps(plan.state_dict()))
    weights = {name: tensor.clone() for name, tensor in plan.model.state_dict().items()}
    before = plan.model(x).detach()

    resumed = parameterize(mlp(8), x)
    resumed.load_state_dict(saved)
    resumed.model.load_state_dict(weights)
    assert (resumed.rules, resumed.gamma0, resumed.scheme) == (plan.rules, 0.4, "mean_field")
    again = torch.optim.Adam(resumed.param_groups(0.01, optimizer="adam"))
    assert [g["lr"] for g in again.param_groups] == [g["lr"] for g in optimizer.param_groups]
    assert torch.equal(before, resumed.model(x).detach())


def test_a_checkpoint_of_another_model_or_format_is_refused() -> None:
    x = torch.randn(2, 5, dtype=torch.float64)
    plan = parameterize(mlp(8), x)
    deeper = parameterize(nn.Sequential(nn.Linear(5, 8), nn.Tanh(), mlp(8)[2:]).double(), x)
    with pytest.raises(InvalidInputError, match="parameters of this plan"):
        plan.load_state_dict(deeper.state_dict())
    with pytest.raises(InvalidInputError, match="version 99"):
        plan.load_state_dict({**plan.state_dict(), "version": 99})


def test_the_table_names_every_parameter() -> None:
    plan = parameterize(cnn(), torch.randn(2, 3, 8, 8), gamma0=0.5)
    text = str(plan)
    assert "mean_field, gamma0 = 0.5, width = 16" in text
    assert max(map(len, text.splitlines())) <= 80
    for rule in plan.rules:
        cells = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
        row = next(row for row in cells if row[:2] == rule.name.split("."))
        assert row[2:4] == [rule.role.value, str(rule.fan_in)]
        assert row[4].removesuffix(" (own)") == f"{rule.std:.4g}"
        assert row[5:] == [f"{rule.lr:.4g}", f"{rule.adam_lr:.4g}"]


def test_one_line_says_what_it_is_and_a_notebook_shows_the_table() -> None:
    plan = parameterize(cnn(), torch.randn(2, 3, 8, 8), gamma0=0.5)
    assert repr(plan) == f"<Plan of {plan.origin!r}: mean_field, gamma0 0.5, {len(plan.rules)} parameters>"
    html = plan._repr_html_()
    assert html.startswith("<table>")
    assert all(f"<td>{rule.std:.4g}" in html for rule in plan.rules)


def test_unknown_parameters_are_named() -> None:
    plan = parameterize(mlp(8), torch.randn(2, 5, dtype=torch.float64))
    with pytest.raises(InvalidInputError, match=r"0\.weight"):
        plan.rule("weight")
