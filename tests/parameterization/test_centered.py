"""f - f_0: zero at first, the same gradients, and one set of parameters."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.architecture.models import Gated, cnn
from tests.parameterization.unit_form import mlp, train
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.parameterization import centered, parameterize


def test_groups_made_before_and_after_wrapping_train_alike() -> None:
    x = torch.randn(4, 5, dtype=torch.float64)
    y = torch.sin(x[:, :1])
    network = mlp(8)
    outputs = []
    for before in (True, False):
        plan = parameterize(copy.deepcopy(network), x, 0.2, generator=torch.Generator().manual_seed(0))
        start = plan.model(x).detach()
        groups = plan.param_groups(0.1) if before else None
        model = centered(plan.model)
        f = train(model, torch.optim.SGD(groups or plan.param_groups(0.1)), x, y, 10)
        assert not f[0].any()
        assert torch.allclose(model(x), plan.model(x) - start, rtol=0, atol=1e-14)
        outputs.append(f)
    assert torch.equal(outputs[0], outputs[1])
    assert outputs[0][-1].abs().max() > 1e-3


@pytest.mark.parametrize("train_mode", [True, False])
def test_it_starts_at_zero_with_batch_norm_in_both_modes(train_mode: bool) -> None:
    network = cnn()
    network[9].p = 0.0
    model = centered(network).train(train_mode)
    assert not model(torch.randn(4, 3, 8, 8)).any()


def test_the_start_has_no_dropout_and_no_randomness() -> None:
    model = centered(nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 1))).train()
    assert model.model[1].training
    assert not model.initial[1].training


def test_only_the_model_is_trained_and_both_are_saved() -> None:
    network = mlp(8)
    model = centered(network)
    assert list(model.parameters()) == list(network.parameters())
    assert set(model.state_dict()) == {
        f"{part}.{name}" for part in ("model", "initial") for name in network.state_dict()
    }
    x = torch.randn(3, 5, dtype=torch.float64)
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), x, torch.ones(3, 1, dtype=torch.float64), 2)
    other = centered(mlp(8))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))


def test_several_outputs_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="one tensor"):
        centered(Gated())(torch.randn(2, 4), torch.randn(2, 3))


def test_gradients_are_those_of_the_model() -> None:
    network = mlp(8)
    x = torch.randn(3, 5, dtype=torch.float64)

    def gradients(outputs: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(outputs.sum(), list(network.parameters())))

    pairs = zip(gradients(network(x)), gradients(centered(network)(x)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
