from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

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
        ((torch.zeros(0, 2),), "two samples"),
        ((torch.zeros(1, 2),), "two samples"),
        ((torch.zeros(3, 0),), "empty"),
        ((torch.tensor([[0.0], [math.nan], [1.0]]),), "sample 1 "),
        ((torch.zeros(3, 2), torch.tensor([0.0, 0.0, math.inf])), "targets hold NaN or infinity. Got: sample 2"),
        ((torch.zeros(3, 2), torch.zeros(2)), "one target per sample"),
        ((torch.zeros(3, 2), torch.zeros(3, 1, 1)), "Float targets"),
        ((torch.zeros(3, 2), torch.tensor([0, -1, 1])), "classes"),
        ((torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.int64)), "classes"),
        ((torch.zeros(3, 2), torch.zeros(3, dtype=torch.bool)), "classes"),
        ((torch.zeros(3, 2), None, torch.zeros(3, dtype=torch.bool)), "at least one of them True"),
        ((torch.zeros(3, 2), None, torch.ones(2, dtype=torch.bool)), "one entry per sample"),
        ((torch.zeros(3, 2), None, torch.ones(3)), "bool mask"),
    ],
)
def test_refusals(arguments: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Probe(*arguments)
