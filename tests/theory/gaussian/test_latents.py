"""Latents have the moments they promise."""

import math

import pytest
import torch

from torch_dmft.theory.gaussian.latents import Population


def _population(law: str, size: int = 256, seed: int = 0) -> Population:
    generator = torch.Generator().manual_seed(seed)
    return Population(size, law=law, generator=generator, dtype=torch.float64, device="cpu")


def test_limit_latents_are_orthogonal_to_everything_known() -> None:
    population = _population("limit")
    first = population.draw(5)
    variables = torch.tanh(first[:3] + 0.3 * first[1] ** 2)
    variables = variables / variables.norm(dim=1, keepdim=True)
    population.observe(variables)
    later = torch.cat([population.draw(70), population.draw(2)])
    identity = torch.eye(72, dtype=torch.float64)
    torch.testing.assert_close(later @ later.T / 256, identity, rtol=0, atol=1e-10)
    known = torch.cat([first, variables, torch.ones(1, 256, dtype=torch.float64)])
    assert float((later @ known.T).abs().max()) < 1e-9 * 256


def _draws(law: str, size: int, dims: slice) -> torch.Tensor:
    return torch.stack([_population(law, size, seed).draw(80)[dims] for seed in range(20)]).flatten(0, 1)


@pytest.mark.parametrize("law", ["limit", "network"])
@pytest.mark.parametrize(("power", "moment"), [(4, 3.0), (6, 15.0)])
def test_plain_latents_are_gaussian(law: str, power: int, moment: float) -> None:
    """Higher moments; matched latents are points of a sphere, whose moments are smaller by S / (S + 2) and so on."""
    size = 1024
    sphere = math.prod(size / (size + 2 * k) for k in range(power // 2)) if law == "limit" else 1.0
    values = (_draws(law, size, slice(64, 80)) ** power).mean(1)
    z = (values.mean() - moment * sphere) / (values.std() / len(values) ** 0.5)
    assert abs(float(z)) < 5


def test_quasi_random_latents_become_gaussian() -> None:
    """Matching 80 Sobol dimensions biases their fourth moment; the bias falls at least like 1/S."""
    bias = [abs(float((_draws("limit", size, slice(0, 64)) ** 4).mean()) - 3) for size in (256, 1024, 4096)]
    slope = math.log(bias[2] / bias[0]) / math.log(4096 / 256)
    assert slope < -0.8, bias


@pytest.mark.parametrize(("size", "largest"), [(1024, 0.19), (4096, 0.1), (8192, 0.15), (16384, 0.15)])
def test_no_three_latents_are_tied_to_each_other(size: int, largest: float) -> None:
    """Sobol points of many dimensions have triples whose mean product does not fall with S: .3 and more."""
    for seed in range(6):
        latents = _population("limit", size, seed).draw(32)
        products = torch.einsum("is,js,ks->ijk", latents, latents, latents) / size
        i, j, k = torch.meshgrid(*3 * [torch.arange(32)], indexing="ij")
        assert float(products[(i < j) & (j < k)].abs().max()) < largest


def test_a_full_population_goes_on_with_plain_latents() -> None:
    population = _population("limit", size=32)
    draws = torch.cat([population.draw(10) for _ in range(8)])
    assert draws.shape == (80, 32)
    assert bool(torch.isfinite(draws).all())
    assert not population.can_match(10)


def test_state_dict_continues_the_stream() -> None:
    population = _population("limit")
    population.draw(70)
    state = population.state_dict()
    expected = population.draw(3)
    other = _population("limit", seed=1)
    other.load_state_dict(state)
    torch.testing.assert_close(other.draw(3), expected, rtol=0, atol=0)
