"""The layerwise NTK against the full Jacobian, for every kind of layer."""

from __future__ import annotations

import math

import psutil
import pytest
import torch
from torch import Tensor, nn

from tests.measurement.cases import CASES, Case, Tokens, mlp
from torch_dmft.core.errors import InsufficientMemoryError, InvalidInputError
from torch_dmft.measurement import empirical_ntk
from torch_dmft.parameterization import parameterize
from torch_dmft.theory import infinite_width
from torch_dmft.uses.products import weight_ntk


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= 1e-10 * b.abs().max())


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def test_the_three_methods_agree(case: Case, generator: torch.Generator) -> None:
    model, inputs = case.make(generator)
    oracle = empirical_ntk(model, inputs, method="jacobian")
    assert close(empirical_ntk(model, inputs, method="layerwise"), oracle)
    assert close(empirical_ntk(model, inputs, method="vjp"), oracle)


def test_plan_multiplies_by_learning_rates(case: Case, generator: torch.Generator) -> None:
    """K is df/dt under one small SGD step of the plan's own parameter groups."""
    model, inputs = case.make(generator)
    plan = parameterize(model, inputs, gamma0=0.5, generator=generator)
    kernel = empirical_ntk(plan, inputs, batch_norm="run")
    assert close(kernel, empirical_ntk(plan, inputs, method="jacobian", batch_norm="run"))
    assert close(kernel, empirical_ntk(plan, inputs, method="vjp", batch_norm="run"))
    model.eval()
    outputs = model(inputs)
    error = torch.randn(outputs.shape, generator=generator, dtype=torch.float64)
    lr = 1e-7
    (-(error * outputs).sum()).backward()
    torch.optim.SGD(plan.param_groups(lr)).step()
    moved = (model(inputs) - outputs).detach() / lr
    expected = kernel @ error[:, 0] if kernel.ndim == 2 else torch.einsum("mcad,ad->mc", kernel, error)
    assert torch.allclose(moved.flatten(), expected.flatten(), rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_jacobian_against_single_gradients(generator: torch.Generator) -> None:
    model, inputs = CASES[1].make(generator)
    outputs = model(inputs).flatten()
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(f, list(model.parameters()), retain_graph=True)])
        for f in outputs
    ]
    explicit = torch.stack(rows) @ torch.stack(rows).T
    assert close(empirical_ntk(model, inputs, method="jacobian").reshape(15, 15), explicit)


def test_one_output_has_no_output_axes(generator: torch.Generator) -> None:
    model, inputs = CASES[0].make(generator)
    assert empirical_ntk(model, inputs).shape == (5, 5)
    model, inputs = CASES[1].make(generator)
    assert empirical_ntk(model, inputs).shape == (5, 3, 5, 3)


@pytest.mark.parametrize("method", ["layerwise", "jacobian", "vjp"])
def test_targets_select_outputs(method: str, generator: torch.Generator) -> None:
    model, inputs = CASES[1].make(generator)
    classes = torch.tensor([2, 0, 1, 1, 0])
    full = empirical_ntk(model, inputs)
    rows = torch.arange(5)
    assert close(empirical_ntk(model, inputs, classes, method=method), full[rows, classes][:, rows, classes])


@pytest.mark.parametrize("method", ["layerwise", "jacobian", "vjp"])
def test_frozen_parameters_do_not_count(method: str, generator: torch.Generator) -> None:
    model, inputs = CASES[0].make(generator)
    whole = empirical_ntk(model, inputs)
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    rest = empirical_ntk(model, inputs, method=method)
    for parameter in model.parameters():
        parameter.requires_grad_(not parameter.requires_grad)
    assert close(rest + empirical_ntk(model, inputs, method=method), whole)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("shape", [(1, 30, 40), (9, 2, 3), (4, 50, 60)])
def test_both_contractions_agree(shape: tuple[int, int, int], shared: bool, generator: torch.Generator) -> None:
    positions, features, neurons = shape
    x = torch.randn(1 if shared else 3, positions, 1, features, generator=generator, dtype=torch.float64)
    g = torch.randn(3, 2, positions, neurons, generator=generator, dtype=torch.float64)
    jacobian = torch.einsum("scan,saf->scnf", g, x.expand(3, -1, -1, -1)[:, :, 0]).reshape(6, -1)
    assert close(weight_ntk(x, g).reshape(6, 6), jacobian @ jacobian.T)


def test_blocks_of_neurons_add_up(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3, 4, 2, 5, generator=generator, dtype=torch.float64)
    g = torch.randn(3, 2, 4, 14, generator=generator, dtype=torch.float64)
    whole = weight_ntk(x, g)
    monkeypatch.setattr("torch_dmft.uses.products._BLOCK", 90)
    assert close(weight_ntk(x, g), whole)


def test_as_many_positions_as_samples(generator: torch.Generator) -> None:
    """Position embeddings of shape (6, feature) look like one row for each of six samples."""
    case = next(case for case in CASES if case.build is Tokens)
    model, inputs = case.make(generator, samples=6)
    assert close(empirical_ntk(model, inputs), empirical_ntk(model, inputs, method="jacobian"))


def test_too_large_is_refused_with_the_number(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = CASES[1].make(generator)

    class Full:
        available = 1000

    monkeypatch.setattr(psutil, "virtual_memory", Full)
    monkeypatch.setattr("torch_dmft.core.memory._looked", [-math.inf, math.inf])  # nobody looked yet
    for method in ("layerwise", "jacobian"):
        with pytest.raises(InsufficientMemoryError, match="GiB free"):
            empirical_ntk(model, inputs, method=method)
    assert empirical_ntk(model, inputs, method="vjp").shape == (5, 3, 5, 3)


def test_outputs_must_be_rows(generator: torch.Generator) -> None:
    model = nn.Sequential(mlp(), nn.Unflatten(1, (1, 1))).double()
    inputs = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    for method in ("jacobian", "vjp"):
        with pytest.raises(InvalidInputError, match="one row of outputs"):
            empirical_ntk(model, inputs, method=method)


def test_unknown_method(generator: torch.Generator) -> None:
    model, inputs = CASES[0].make(generator)
    with pytest.raises(InvalidInputError, match="layerwise"):
        empirical_ntk(model, inputs, method="exact")


@pytest.mark.parametrize("method", ["jacobian", "vjp"])
def test_a_lazily_sampled_twin_is_refused_by_name(method: str, generator: torch.Generator) -> None:
    model, inputs = CASES[0].make(generator)
    twin = infinite_width(model, inputs, neurons=64, generator=generator)
    kernel = empirical_ntk(twin, inputs)
    for given in (twin, twin.model):
        with pytest.raises(InvalidInputError, match=rf'method=.{method}.*twin.*Got: 2\S*: \w+\. .*method="layerwise"'):
            empirical_ntk(given, inputs, method=method)
    # The refused call left no trace; the first one drew the weights, and rounds otherwise.
    torch.testing.assert_close(empirical_ntk(twin, inputs), kernel, rtol=1e-13, atol=1e-13)
