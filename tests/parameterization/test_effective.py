"""Reading gamma0 and eta back from a model that was scaled, and from one that was not."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from torch_dmft.core.errors import InvalidInputError
from torch_dmft.parameterization import effective_scaling, parameterize

WIDTH, INPUTS = 512, 16


def mlp(**linear) -> nn.Sequential:
    sizes = (INPUTS, WIDTH, WIDTH)
    hidden = [[nn.Linear(a, b, **linear), nn.Tanh()] for a, b in pairwise(sizes)]
    return nn.Sequential(*(module for pair in hidden for module in pair), nn.Linear(WIDTH, 2, **linear))


@pytest.fixture
def model(generator) -> nn.Sequential:
    """PyTorch's own initialisation, of Linear(bias=False)."""
    model = mlp(bias=False)
    for parameter in model.parameters():
        nn.init.kaiming_uniform_(parameter, a=math.sqrt(5), generator=generator)
    return model


@pytest.mark.parametrize("gamma0", [0.2, 1.0, 3.0])
def test_a_scaled_model_shows_its_scaling_without_its_plan(model, generator, gamma0):
    x = torch.randn(4, INPUTS, generator=generator)
    plan = parameterize(model, x, gamma0=gamma0, gain=1.3, generator=generator)
    found = effective_scaling(model, x, torch.optim.SGD(plan.param_groups(0.7), lr=0.7).param_groups)
    error = 5 / math.sqrt(2 * 2 * WIDTH)  # of the standard deviation of 2 N_L draws
    assert found.gamma0 == pytest.approx(gamma0, rel=error)
    assert found.lr == pytest.approx(0.7, rel=1e-6)  # lr / m^2 gamma0^2 N_L = lr N_L: whatever m was drawn
    assert list(found.mismatch.values()) == pytest.approx([1, 1, 1], rel=3 * error)
    assert list(found.gains.values()) == pytest.approx([1.3, 1.3], rel=error)


def test_pytorchs_own_scaling_is_lazy_and_neglects_the_input(model, generator):
    x = torch.randn(4, INPUTS, generator=generator)
    found = effective_scaling(model, x, 0.01)
    error = 5 / math.sqrt(2 * WIDTH)
    assert found.gamma0 == pytest.approx(math.sqrt(3 / WIDTH), rel=error)
    assert found.lr == pytest.approx(0.01 * WIDTH)
    assert found.mismatch["0.weight"] == pytest.approx(INPUTS / WIDTH, rel=2 * error)
    assert found.mismatch["2.weight"] == pytest.approx(1, rel=2 * error)
    assert list(found.gains.values()) == pytest.approx([math.sqrt(1 / 3)] * 2, rel=error)


def test_it_is_the_same_network(model, generator):
    """Training by hand at the rates found in units of lr is training the mean-field network at gamma0 and lr."""
    x, y = torch.randn(4, INPUTS, generator=generator), torch.randn(4, 2, generator=generator)
    found = effective_scaling(model, x, 0.01)
    (loss,) = [nn.functional.mse_loss(model(x), y)]
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    for (name, parameter), gradient in zip(model.named_parameters(), gradients, strict=True):
        scale = float(parameter.detach().square().mean().sqrt())
        unit, unit_gradient = parameter / scale, scale * gradient
        moved = unit - found.lrs[name] * found.gamma0**2 * found.width * unit_gradient
        torch.testing.assert_close(scale * moved, parameter - 0.01 * gradient)


def test_biases_and_frozen_parameters(generator):
    model, x = mlp(), torch.randn(4, INPUTS, generator=generator)
    model[0].weight.requires_grad_(False)
    found = effective_scaling(model, x, 0.01)
    assert "0.weight" not in found.lrs
    assert found.lrs["2.bias"] == pytest.approx(0.01 / (found.gamma0**2 * WIDTH))
    assert found.lrs["4.bias"] == pytest.approx(0.01)


def test_zeros_have_no_scale(model, generator):
    nn.init.zeros_(model[4].weight)
    with pytest.raises(InvalidInputError, match=r"4\.weight"):
        effective_scaling(model, torch.randn(4, INPUTS, generator=generator), 0.1)
