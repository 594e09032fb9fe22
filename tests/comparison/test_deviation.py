"""Deviations against the scalar metrics, and their error bars against the spread they claim to bound."""

import math

import pytest
import torch

from torch_dmft.comparison import alignment, deviation, relative_error
from torch_dmft.core.kernel import Kernel


def noisy(base: torch.Tensor, spread: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    draw = spread * torch.randn(base.shape, generator=generator, dtype=torch.float64)
    return base + (draw + draw.mT) / math.sqrt(2)


@pytest.fixture
def pair(generator):
    x = torch.randn(3, 5, 8, generator=generator, dtype=torch.float64)
    y = x + 0.3 * torch.randn(3, 5, 8, generator=generator, dtype=torch.float64)
    return x @ x.mT / 8, y @ y.mT / 8


def test_it_is_the_scalar_metrics_at_each_time(pair):
    x, y = pair
    found = deviation(Kernel(x), Kernel(y))
    for time in range(3):
        assert found.alignment[time].item() == pytest.approx(alignment(x[time], y[time]), abs=1e-10)
        assert found.relative_error[time].item() == pytest.approx(relative_error(x[time], y[time]), abs=1e-10)


def test_two_time_kernels_are_compared_at_equal_times(pair):
    x, y = pair
    times = torch.arange(3)
    two_time = torch.zeros(3, 5, 3, 5, dtype=torch.float64)
    two_time[times, :, times] = x
    found, expected = deviation(Kernel(two_time), Kernel(y)), deviation(Kernel(x), Kernel(y))
    torch.testing.assert_close(found.relative_error, expected.relative_error)


def test_without_standard_errors_the_bars_are_unknown(pair):
    found = deviation(*map(Kernel, pair))
    for bar in (found.alignment_stderr, found.relative_error_stderr, found.noise):
        assert bar.isnan().all()


def test_noise_is_the_relative_error_of_noise_alone(pair, generator):
    """Statistical: the rms over 2000 draws of |Y' - Y| / |Y|, within 5 standard errors."""
    y = pair[1]
    spread = 0.05 * (1 + torch.rand(y.shape, generator=generator, dtype=torch.float64))
    spread = (spread + spread.mT) / 2
    draws = torch.stack([noisy(y, spread, generator) for _ in range(2000)])
    # The diagonal of (draw + draw^T)/sqrt(2) is sqrt(2) draw.
    stderr = spread * (1 + (math.sqrt(2) - 1) * torch.eye(5, dtype=torch.float64))
    squared = (draws - y).flatten(2).norm(dim=2).square() / y.flatten(1).norm(dim=1).square()
    claimed = deviation(Kernel(y), Kernel(y), None, Kernel(stderr)).noise.square()
    z = (squared.mean(0) - claimed) / (squared.std(0) / math.sqrt(2000))
    assert z.abs().max() < 5


@pytest.mark.parametrize("side", ["predicted", "measured", "both"])
@pytest.mark.parametrize("common", [False, True], ids=["independent entries", "one common factor"])
def test_bars_bound_the_spread_they_stand_for(pair, generator, side, common):
    """Whether entries err independently or all together, the bar is no smaller than the spread.

    The spread of 2000 draws is known to about 2 percent, hence the factor 1.1.
    """
    x, y = pair
    errors, alignments = [], []
    for _ in range(2000):
        shaken = []
        for kernel, is_shaken in ((x, side != "predicted"), (y, side != "measured")):
            factor = torch.randn(() if common else kernel.shape, generator=generator, dtype=torch.float64)
            shaken.append(kernel + 0.02 * is_shaken * kernel.abs() * factor)
        found = deviation(*map(Kernel, shaken))
        errors.append(found.relative_error)
        alignments.append(found.alignment)
    stderr = [
        Kernel(0.02 * kernel.abs()) if side in (name, "both") else None
        for name, kernel in (("measured", x), ("predicted", y))
    ]
    claimed = deviation(Kernel(x), Kernel(y), *stderr)
    error_spread, alignment_spread = torch.stack(errors).std(0), torch.stack(alignments).std(0)
    assert (error_spread <= 1.1 * claimed.relative_error_stderr).all()
    assert (alignment_spread <= 1.1 * claimed.alignment_stderr).all()


def test_bars_are_no_larger_than_they_must_be(pair, generator):
    """Errors along the gradient of the relative error, of relative size 1e-3, attain the bar (to 5 percent)."""
    x, y = (kernel[:1] for kernel in pair)
    distance = (x - y).norm()
    gradient = -(x - y) / (distance * y.norm()) - distance * y / y.norm() ** 3
    worst = 1e-3 * y.norm() * gradient / gradient.norm()
    factors = torch.randn(2000, generator=generator, dtype=torch.float64)
    spread = torch.stack([deviation(Kernel(x), Kernel(y + a * worst)).relative_error for a in factors]).std()
    claimed = deviation(Kernel(x), Kernel(y), None, Kernel(worst.abs())).relative_error_stderr
    assert claimed.item() == pytest.approx(spread.item(), rel=0.05)


def test_vanishing_and_broken_kernels():
    zero, one = torch.zeros(1, 2, 2), torch.ones(1, 2, 2)
    both = deviation(Kernel(zero), Kernel(zero))
    assert (both.alignment.item(), both.relative_error.item()) == (1, 0)
    only_measured = deviation(Kernel(one), Kernel(zero))
    assert (only_measured.alignment.item(), only_measured.relative_error.item()) == (0, math.inf)
    broken = deviation(Kernel(one * math.nan), Kernel(one))
    assert broken.alignment.isnan().all()
    assert broken.relative_error.isnan().all()
