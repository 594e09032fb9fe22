"""Figures of responses and spectra: the data is the data, and causality can be seen."""

import numpy as np
import pytest
import torch

from tests.trajectories import two_layers
from torch_dmft.comparison import ntk_spectrum
from torch_dmft.report import dynamics
from torch_dmft.theory import Responses


@pytest.mark.parametrize("outputs", [1, 2])
def test_responses_are_averaged_over_equal_samples(outputs, generator):
    several = (outputs,) if outputs > 1 else ()
    a = torch.randn(5, 3, 5, 3, *several, generator=generator)
    b = torch.randn(5, 3, *several, 5, 3, generator=generator)
    figure = dynamics.responses([Responses("2", a, b), Responses("4", a, b)])
    images = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    assert len(images) == 4
    a, b = a.reshape(5, 3, 5, 3, outputs), b.reshape(5, 3, outputs, 5, 3)
    np.testing.assert_allclose(images[0], torch.einsum("tmsmc->ts", a) / 3, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(images[1], torch.einsum("tmcsm->ts", b) / 3, rtol=1e-5, atol=1e-6)
    assert "weight 4" in figure.axes[2].get_title()


def test_the_spectrum_shows_eigenvalues_and_shares():
    found = ntk_spectrum(two_layers())
    left, right = dynamics.spectrum(found, shown=4).axes
    assert len(left.lines) == 4
    np.testing.assert_allclose(left.lines[0].get_ydata(), found.eigenvalues[:, 0])
    np.testing.assert_allclose(left.lines[0].get_xdata(), found.times)
    assert len(right.collections) == 4
    assert right.get_ylim() == (0, 1)
