"""Whether numbers are uniform, told from the numbers alone: right for torch's own biases of any length, so that seeds agree."""

import math

import pytest
import torch
from torch import nn

import torch_dmft as dmft
from torch_dmft.parameterization.start import starts_of
from torch_dmft.parameterization.uniform import bound_of, own_bound, size_of

SETS = 2000


def uniform(n: int, bound: float, generator: torch.Generator) -> torch.Tensor:
    return bound * (2 * torch.rand(n, generator=generator, dtype=torch.float64) - 1)


@pytest.mark.parametrize("n", [1, 3, 8, 16, 32, 64, 256])
def test_biases_as_torch_draws_them_are_uniform_however_few_they_are(generator, n):
    """A likelihood that is asked for no more than to be the larger one misses 9% of the sets of 16."""
    own = own_bound(9)
    missed = sum(bound_of(uniform(n, own, generator), own=own) != own for _ in range(SETS))
    assert missed <= SETS * 0.005


@pytest.mark.parametrize(
    ("n", "size"), [(16, 0.1), (16, 2.0), (32, 0.2), (64, 0.2), (128, 0.5), (256, 1 / math.sqrt(3))]
)
def test_gaussian_biases_of_other_sizes_are_gaussian(generator, n, size):
    own = own_bound(9)
    numbers = (size * own * torch.randn(n, generator=generator, dtype=torch.float64) for _ in range(SETS))
    assert sum(bound_of(one, own=own) is not None for one in numbers) <= SETS * 0.005


@pytest.mark.parametrize("n", [128, 512])
def test_a_bound_that_nothing_tells_of_takes_many_numbers(generator, n):
    gaussian = sum(bound_of(torch.randn(n, generator=generator)) is not None for _ in range(SETS))
    missed = sum(bound_of(uniform(n, 0.7, generator)) is None for _ in range(SETS))
    assert gaussian <= SETS * 0.001
    assert missed <= SETS * 0.005
    assert bound_of(uniform(127, 0.7, generator)) is None


@pytest.mark.parametrize("n", [2, 5, 40])
def test_constants_are_not_drawn(n):
    assert bound_of(torch.full((n,), 0.3), own=own_bound(9)) is None
    assert size_of(torch.full((n,), 0.3), own=own_bound(9)) == pytest.approx(0.3)


@pytest.mark.parametrize("width", [4, 8, 16, 32])
def test_networks_of_several_seeds_and_widths_start_alike(width, make_generator):
    """Runs that differ in nothing but their numbers can be compared."""
    inputs = torch.randn(4, 5, generator=make_generator(3))
    for seed in range(40):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = nn.Sequential(
                nn.Linear(5, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
            )
        plan = dmft.parameterize(model, inputs, generator=make_generator(seed))
        assert starts_of(plan, untrained=True) == {"0.bias": "uniform", "2.bias": "uniform"}
