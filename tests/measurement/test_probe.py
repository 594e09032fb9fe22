from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import torch_dmft as dmft
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.measurement import Probe


def test_forms_of_targets() -> None:
    inputs = torch.zeros(3, 2, dtype=torch.float64)
    assert Probe(inputs).target_values() is None
    assert Probe(inputs, torch.ones(3)).targets.shape == (3,)  # as the loss takes them
    assert Probe(inputs, torch.ones(3)).target_values().shape == (3, 1)
    classes = Probe(inputs, torch.tensor([0, 2, 2]))
    assert torch.equal(classes.targets, torch.tensor([0, 2, 2]))
    one_hot = torch.tensor([[1, 0, 0], [0, 0, 1], [0, 0, 1]], dtype=torch.float64)
    assert torch.equal(classes.target_values(), one_hot)
    assert torch.equal(classes.target_values(4)[:, :3], one_hot)
    assert classes.target_values(4).shape == (3, 4)
    places = Probe(inputs, torch.tensor([[0, 2], [1, 1], [2, 0]])).target_values(6)
    assert torch.equal(places[0], torch.tensor([1, 0, 0, 0, 0, 1], dtype=torch.float64))
    assert torch.equal(places.view(3, 2, 3).argmax(2), torch.tensor([[0, 2], [1, 1], [2, 0]]))


def test_train_mask() -> None:
    mask = torch.tensor([True, False, True])
    assert torch.equal(Probe(torch.zeros(3, 2), train=mask).train_rows, mask)
    assert Probe(torch.zeros(3, 2)).train_rows.all()


def test_token_ids_are_inputs_too() -> None:
    assert len(Probe(torch.zeros(4, 7, dtype=torch.int64))) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(()),), "two samples"),
        ((torch.zeros(0, 2),), "at least one sample"),
        ((torch.zeros(1, 2),), "two samples"),
        ((torch.zeros(3, 0),), "empty"),
        ((torch.tensor([[0.0], [math.nan], [1.0]]),), "sample 1 "),
        ((torch.zeros(3, 2), torch.tensor([0.0, 0.0, math.inf])), "targets hold NaN or infinity. Got: sample 2"),
        ((torch.zeros(3, 2), torch.zeros(2)), "one target per sample"),
        ((torch.zeros(3, 2), torch.zeros(3, 1, 1)), "Float targets"),
        ((torch.zeros(3, 2), torch.tensor([0, -1, 1])), "classes"),
        ((torch.zeros(3, 2), torch.zeros(3, 2, 1, dtype=torch.int64)), "classes"),
        ((torch.zeros(3, 2), torch.zeros(3, dtype=torch.bool)), "classes"),
        ((torch.zeros(3, 2), None, torch.zeros(3, dtype=torch.bool)), "at least one of them True"),
        ((torch.zeros(3, 2), None, torch.ones(2, dtype=torch.bool)), "one entry per sample"),
        ((torch.zeros(3, 2), None, torch.ones(3)), "bool mask"),
    ],
)
def test_refusals(arguments: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Probe(*arguments)


def test_a_probe_and_a_problem_are_one_line() -> None:
    inputs, targets = torch.randn(5, 3), torch.randn(5, 1)
    shown = repr(Probe(inputs, targets, train=torch.arange(5) < 4))
    assert shown == "Probe(inputs (5, 3), targets (5, 1), 4 rows trained on)"
    problem = dmft.Problem.mlp(inputs, targets, depth=2, lr=0.1, steps=7)
    assert "\n" not in repr(problem)
    assert repr(problem).startswith(
        "Problem(chain of depth 2, 5 training rows of 5, 1 outputs, gamma0=1, SGD, lr=0.1, steps=7"
    )
