"""The NTK as an operator, against the NTK written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import torch_dmft as dmft
from benchmarks.memory import peak_bytes
from tests.measurement.zoo import ZOO
from torch_dmft.core.errors import InsufficientMemoryError, InvalidInputError
from torch_dmft.measurement import NTKOperator, empirical_ntk
from torch_dmft.uses.outputs import select


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)
    ).double()


@pytest.mark.parametrize("block", [1, 4, 100])
@pytest.mark.parametrize("batch_norm", ["probe", "run"])
def test_products_are_those_of_the_kernel(block: int, batch_norm: str) -> None:
    model, inputs = convolutional(), torch.randn(7, 1, 6, 6, dtype=torch.float64)
    model[5].bias.requires_grad_(False)
    before = [value.clone() for value in model.state_dict().values()]
    kernel = empirical_ntk(model, inputs, batch_norm=batch_norm)
    operator = NTKOperator(model, inputs, batch_norm=batch_norm, block=block)
    vector = torch.randn(7, 3, dtype=torch.float64)
    torch.testing.assert_close(operator @ vector, torch.einsum("mcad,ad->mc", kernel, vector), rtol=1e-9, atol=1e-11)
    assert operator.shape == (21, 21)
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))


def test_a_plans_rates_count(generator: torch.Generator) -> None:
    inputs = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)).double()
    plan = dmft.parameterize(model, inputs, gamma0=2.0, generator=generator)
    vector = torch.randn(9, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(NTKOperator(plan, inputs) @ vector, empirical_ntk(plan, inputs) @ vector)


@pytest.mark.parametrize("name", ["gpt", "lstm", "vit"])
def test_models_of_many_kinds(name: str, generator: torch.Generator) -> None:
    model, inputs = next(entry for entry in ZOO if entry.name == name).make(generator)
    flattened = {"outputs": lambda returned: select(returned, None).flatten(1)}
    kernel, operator = empirical_ntk(model, inputs, **flattened), NTKOperator(model, inputs, block=2, **flattened)
    vector = torch.randn(operator.samples, operator.outputs, dtype=kernel.dtype)
    flat = kernel.reshape(operator.shape) @ vector.flatten()
    torch.testing.assert_close((operator @ vector).flatten(), flat, rtol=1e-5, atol=1e-6)


def test_the_largest_eigenvalues() -> None:
    model, inputs = convolutional(), torch.randn(8, 1, 6, 6, dtype=torch.float64)
    values, vectors = NTKOperator(model, inputs).largest(4, tolerance=1e-10)
    kernel = empirical_ntk(model, inputs).reshape(24, 24)
    torch.testing.assert_close(values, torch.linalg.eigvalsh(kernel).flip(0)[:4], rtol=1e-8, atol=1e-10)
    flat = vectors.reshape(24, 4)
    torch.testing.assert_close(kernel @ flat, flat * values, rtol=1e-6, atol=1e-8)
    with pytest.raises(InvalidInputError, match="24 of 24"):
        NTKOperator(model, inputs).largest(24)
    with pytest.raises(InvalidInputError, match="one number per sample"):
        NTKOperator(model, inputs) @ torch.zeros(7)


def test_ten_thousand_samples(generator: torch.Generator) -> None:
    """The kernel itself would take 800 MB."""
    inputs = torch.randn(10_000, 8, generator=generator)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
    operator = NTKOperator(model, inputs, block=2500)
    values, vectors = operator.largest(3)
    product = operator @ vectors[..., 0].float()
    torch.testing.assert_close(product.double(), values[0] * vectors[..., 0], rtol=1e-3, atol=1e-2 * float(values[0]))


WIDE = {
    "dense": lambda: (
        nn.Sequential(nn.Linear(64, 512), nn.Tanh(), nn.Linear(512, 512), nn.Tanh(), nn.Linear(512, 2)),
        (64,),
    ),
    "convolutions": lambda: (
        nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(32, 2),
        ),
        (3, 24, 24),
    ),
    "attention": lambda: (
        nn.Sequential(nn.TransformerEncoderLayer(64, 4, 256, 0.0, batch_first=True), nn.Flatten(), nn.Linear(1024, 2)),
        (16, 64),
    ),
}


@pytest.mark.parametrize("kind", WIDE)
@pytest.mark.parametrize("block", [16, 64])
def test_the_stated_memory_is_an_upper_bound_of_what_a_product_takes(kind: str, block: int) -> None:
    model, shape = WIDE[kind]()
    operator = NTKOperator(model, torch.randn(128, *shape), block=block)
    vector = torch.randn(128, 2)
    _ = operator @ vector
    taken = peak_bytes(lambda: operator @ vector)
    assert taken <= operator.memory <= 1.5 * taken


def test_the_block_follows_from_the_memory() -> None:
    model, shape = WIDE["convolutions"]()
    inputs = torch.randn(128, *shape)
    whole = NTKOperator(model, inputs)
    assert whole.block == 128
    small = NTKOperator(model, inputs, memory=whole.memory // 4)
    assert 1 <= small.block < 64
    assert small.memory <= whole.memory // 4
    vector = torch.randn(128, 2)
    assert peak_bytes(lambda: small @ vector) <= small.memory
    torch.testing.assert_close(small @ vector, whole @ vector, rtol=1e-4, atol=1e-4)
    with pytest.raises(InvalidInputError, match=r"enough for one sample.*memory=(\d+) or more") as refusal:
        NTKOperator(model, inputs, memory=1000)
    enough = int(str(refusal.value).partition("memory=")[2].partition(" ")[0])
    assert NTKOperator(model, inputs, memory=enough).block == 1


def test_a_block_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, shape = WIDE["convolutions"]()
    inputs = torch.randn(128, *shape)
    needed = NTKOperator(model, inputs).memory
    monkeypatch.setattr("torch_dmft.core.memory.free_memory", lambda device: needed - 1)
    monkeypatch.setattr("torch_dmft.core.memory._was_plenty", lambda *given: False)
    with pytest.raises(InsufficientMemoryError, match=r"blocks of 128 samples.*smaller block="):
        NTKOperator(model, inputs)
    NTKOperator(model, inputs, block=64)


def some_twin() -> tuple[dmft.Plan, Tensor]:
    inputs = torch.randn(4, 3)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    return dmft.infinite_width(model, inputs, neurons=64), inputs


def test_a_twin_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="NTKOperator cannot be used with an infinite-width twin"):
        NTKOperator(*some_twin())
