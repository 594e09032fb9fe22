"""The minimum of a loss in the rate, its interval, and what follows from it, against what is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from torch_dmft.referee.optimum import Estimate, best_of, estimated, loss_at, means, parabola, slope


@pytest.mark.parametrize("at", [-0.4, 0.0, 0.3])
@pytest.mark.parametrize("powers", [range(-2, 3), range(-2, 2), range(-1, 2)])
def test_a_parabola_in_the_log_is_found_exactly(at: float, powers: range) -> None:
    curve = {power: 0.2 * math.exp(0.3 * (power - at) ** 2) for power in powers}
    found = parabola(curve, best_of(curve))
    assert found.at == pytest.approx(at, abs=1e-9)
    assert found.least == pytest.approx(0.2, rel=1e-9)
    assert found(1.7) == pytest.approx(0.2 * math.exp(0.3 * (1.7 - at) ** 2), rel=1e-9)


def test_negative_losses_are_fitted_as_they_are() -> None:
    curve = {power: -3 + 0.5 * (power - 0.2) ** 2 for power in range(-2, 3)}
    found = parabola(curve, 0)
    assert (found.at, found.least) == (pytest.approx(0.2), pytest.approx(-3))
    assert found(1.0) == pytest.approx(-3 + 0.32)


def test_diverged_rates_are_left_out_and_what_is_no_minimum_is_the_best_rate() -> None:
    curve = {-2: 4.0, -1: 2.0, 0: 1.0, 1: math.inf, 2: math.inf}
    found = parabola(curve, 0)
    assert (found.at, found.least, found.bend) == (0.0, 1.0, 0.0)  # falls up to the edge of what is stable
    assert loss_at(curve, found, 0.5) == math.inf
    assert loss_at(curve, found, -1.5) == pytest.approx(math.sqrt(8))
    assert math.isnan(loss_at(curve, found, -2.5))


def test_the_interval_of_the_minimum_covers_the_truth_as_often_as_it_says() -> None:
    """95% of 400 experiments of 5 seeds, whose curves have noise of their own; the old way, the argmin, has no interval."""
    random = np.random.default_rng(0)
    covered, of_slope = [], []
    for _ in range(400):
        at = random.uniform(-0.5, 0.5)
        curves = [
            {
                power: [
                    math.exp(0.2 * (power - at - shift) ** 2 + 0.03 * random.standard_normal())
                    for shift in 0.2 * random.standard_normal(5)
                ]
                for power in range(-2, 3)
            }
            for _ in range(3)
        ]
        fits = [lambda seeds, curve=curve: parabola(means(curve, seeds), 0).at for curve in curves]
        found = estimated(fits[0], 5)
        covered.append(found.low <= at <= found.high)
        exponent = estimated(lambda seeds, fits=fits: slope((64, 128, 256), [fit(seeds) for fit in fits]), 5)
        of_slope.append(exponent.low <= 0 <= exponent.high)
    for hits in (covered, of_slope):
        assert np.mean(hits) == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 400))


def test_the_jackknife_of_a_mean_is_students_interval() -> None:
    values = [1.0, 2.0, 4.0, 4.5]
    found = estimated(lambda seeds: sum(values[seed] for seed in seeds) / len(seeds), 4)
    assert found.value == pytest.approx(np.mean(values))
    assert found.reach == pytest.approx(3.182446 * np.std(values, ddof=1) / 2, rel=1e-5)
    assert math.isnan(estimated(lambda seeds: 1.0, 1).reach)
    assert (Estimate(1.0, 0.5).low, Estimate(1.0, 0.5).high) == (0.5, 1.5)


def test_slopes() -> None:
    assert slope((64, 128, 256), [0.0, -0.5, -1.0]) == pytest.approx(-0.5)
    assert slope((2, 8), [1.0, 7.0]) == pytest.approx(3.0)


def test_means_over_seeds() -> None:
    assert means({0: [1.0, 4.0], 1: [1.0, math.inf]}, [0, 1]) == {0: pytest.approx(2.0), 1: math.inf}
    assert means({0: [-1.0, 4.0]}, [0, 1]) == {0: 1.5}
