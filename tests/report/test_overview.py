"""The one picture of a comparison: its panels hold the comparison's numbers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.trajectories import two_layers
from torch_dmft.comparison import compare
from torch_dmft.report.overview import overview


def panels(comparison):
    figure = overview(comparison)
    figure.canvas.draw()
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]


def lines(axes) -> dict[str, np.ndarray]:
    return {line.get_label(): np.asarray(line.get_ydata(), dtype=float) for line in axes.lines}


def test_losses_and_errors_are_those_of_the_comparison(comparison):
    loss, error, *_ = panels(comparison)
    assert list(lines(loss)) == [run.origin for run in comparison.runs]
    for run in comparison.runs:
        np.testing.assert_allclose(lines(loss)[run.origin], run.losses, rtol=1e-10)
    for prediction, deviations in zip(comparison.predictions, comparison.deviations, strict=True):
        kernels = [layer.forward for layer in deviations.layers[1:]] + [
            layer.backward for layer in deviations.layers[:-1]
        ]
        expected = torch.stack([kernel.relative_error for kernel in kernels]).mean(0)
        np.testing.assert_allclose(lines(error)[prediction.origin], expected, rtol=1e-10)


def test_the_last_features_are_sorted_by_target_and_share_a_colour_scale(comparison):
    shown = [axes.images[0] for axes in panels(comparison)[2:4]]
    order = comparison.targets[:, 0].argsort(stable=True)
    for image, run in zip(shown, (comparison.measured, comparison.predictions[0]), strict=True):
        np.testing.assert_allclose(image.get_array(), run.layers[-1].forward.array[-1][order][:, order], rtol=1e-10)
    assert shown[0].get_clim() == shown[1].get_clim()


def test_densities_are_of_the_last_hidden_layer_and_normalised(comparison):
    axes = panels(comparison)[4]
    assert list(lines(axes)) == ["theory, start", "theory, end"]
    width = np.diff(axes.lines[0].get_xdata())[0]
    for density in lines(axes).values():
        assert density.sum() * width == pytest.approx(1, abs=0.02)
    assert axes.get_xlabel() == "last preactivation h"


def test_without_fields_there_are_no_densities():
    bare = replace(two_layers(), layers=tuple(replace(layer, fields=None) for layer in two_layers().layers))
    assert len(panels(compare(bare, two_layers(origin="theory (N=inf)")))) == 4


def test_several_outputs_are_shown_too():
    assert panels(compare(two_layers(outputs=3, noise=0.1), two_layers(outputs=3, origin="theory (N=inf)")))


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_network_with_a_single_weight_has_a_picture(outputs):
    """Its two kernels are given by data and outputs, so there is nothing to err about."""
    run = two_layers(outputs=outputs)
    single = replace(run, layers=run.layers[-1:], ntk=run.layers[-1].ntk)
    assert panels(compare(single, replace(single, origin="theory (N=inf)")))


def test_a_loss_of_zero_is_drawn():
    run = two_layers()
    zero = replace(run, losses=torch.zeros_like(run.losses))
    assert panels(compare(zero, replace(zero, origin="theory (N=inf)")))
