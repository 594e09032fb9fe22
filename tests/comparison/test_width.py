"""The gap between networks and theory against width."""

from dataclasses import replace

import pytest

from tests.trajectories import two_layers
from torch_dmft.comparison import compare
from torch_dmft.comparison.width import Gap, gap, slope
from torch_dmft.core.errors import InvalidInputError, NotRecordedError

THEORY = two_layers(origin="theory (N=inf)")


def test_a_gap_is_the_mean_relative_error_of_the_kernels_that_are_not_given():
    comparison = compare(two_layers(noise=0.1, width=256), THEORY)
    _, second, third = layers = comparison.deviations[0].layers
    found = gap(comparison)
    assert found.width == 256
    forward = (second.forward.relative_error + third.forward.relative_error).mean() / 2
    backward = (layers[0].backward.relative_error + second.backward.relative_error).mean() / 2
    assert found.forward == pytest.approx(float(forward), abs=1e-10)
    assert found.backward == pytest.approx(float(backward), abs=1e-10)
    assert found.ntk == pytest.approx(float(comparison.deviations[0].ntk.relative_error.mean()), abs=1e-10)
    assert found.forward > 0.01


def test_equal_runs_have_no_gap():
    found = gap(compare(two_layers(), THEORY))
    assert found == Gap(256, 0.0, 0.0, 0.0)


def test_a_run_without_width_has_no_gap():
    run = replace(two_layers(), width=None)
    with pytest.raises(NotRecordedError, match="Recorder"):
        gap(compare(run, THEORY))


@pytest.mark.parametrize("kind", ["forward", "backward", "ntk"])
def test_the_slope_is_the_exponent(kind):
    exponents = {"forward": -0.5, "backward": -1.0, "ntk": 0.25}
    gaps = [Gap(width, *(3 * width**exponent for exponent in exponents.values())) for width in (10, 40, 300)]
    assert slope(gaps, kind) == pytest.approx(exponents[kind], abs=1e-10)


def test_noise_of_one_over_the_root_of_the_width_has_slope_one_half():
    runs = (two_layers(noise=width**-0.5, width=width) for width in (64, 256, 1024))
    gaps = [gap(compare(run, THEORY)) for run in runs]
    assert slope(gaps, "forward") == pytest.approx(-0.5, abs=0.2)


def test_one_width_has_no_slope():
    with pytest.raises(InvalidInputError, match="two widths"):
        slope([Gap(8, 1.0, 1.0, 1.0)] * 2, "forward")
