"""Figures: every run is in them under its origin, axes are labelled, and the data is the data."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest

from tests.trajectories import two_layers
from torch_dmft.comparison import compare, movement
from torch_dmft.core.errors import NotRecordedError
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.report import figures

ORIGINS = ["network (N=256)", "theory (N=inf)", "static NTK (N=inf)"]


def without_fields(run: Trajectory) -> Trajectory:
    return replace(run, layers=tuple(replace(layer, fields=None) for layer in run.layers))


def test_all_of_them_are_drawn_and_none_is_kept(comparison):
    drawn = comparison.figures()
    assert set(drawn) == {
        *("loss", "alignment", "relative_error", "target_alignment"),
        *("forward_kernels", "backward_kernels", "preactivations", "gradients"),
    }
    assert plt.get_fignums() == []
    for figure in drawn.values():
        figure.canvas.draw()
        outer = [axes for axes in figure.axes if axes.get_subplotspec() is not None]
        assert all(axes.get_xlabel() for axes in outer if axes.get_subplotspec().is_last_row())
        assert all(axes.get_ylabel() for axes in outer if axes.get_subplotspec().is_first_col())


def test_losses_show_every_run_and_a_band_where_there_is_an_error(comparison):
    axes = figures.losses(comparison).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ORIGINS
    for line, run in zip(axes.lines, comparison.runs, strict=True):
        np.testing.assert_allclose(line.get_ydata(), run.losses.numpy())
        np.testing.assert_allclose(line.get_xdata(), 0.1 * run.steps.numpy())
    assert len(axes.collections) == 1
    assert axes.get_yscale() == "log"


def test_kernels_share_a_scale_and_show_their_difference(comparison):
    figure = figures.kernels(comparison, "backward")
    rows = [axes for axes in figure.axes if axes.images]
    assert len(rows) == 2 * 3  # G of the readout is given
    network, theory, difference = (axes.images[0] for axes in rows[:3])
    assert network.get_clim() == theory.get_clim()
    np.testing.assert_allclose(difference.get_array(), network.get_array() - theory.get_array())
    assert difference.get_clim()[0] == -difference.get_clim()[1]
    assert f"{comparison.deviations[0].layers[0].backward.relative_error[-1]:.2g}" in rows[2].get_title()


def test_samples_are_sorted_by_target(comparison):
    """Blocks: once learned, Phi is larger within a class than between them."""
    shown = figures.kernels(comparison, "forward").axes[0].images[0].get_array()
    classes = np.sort(comparison.measured.targets[:, 0].numpy())
    same = classes[:, None] == classes[None, :]
    assert shown[same].mean() > shown[~same].mean() + 0.5


def test_deviations_have_a_row_for_each_prediction_and_a_line_for_each_weight(comparison):
    figure = figures.relative_errors(comparison)
    titles = [axes.get_title() for axes in figure.axes]
    assert len(titles) == 6
    assert all(ORIGINS[1] in title for title in titles[:3])
    assert all(ORIGINS[2] in title for title in titles[3:])
    assert [len(axes.lines) for axes in figure.axes[:3]] == [2, 2, 3]
    np.testing.assert_allclose(
        figure.axes[1].lines[1].get_ydata(), comparison.deviations[0].layers[1].backward.relative_error
    )


def test_target_alignment_grows_in_the_network_only(comparison):
    axes = figures.target_alignment(comparison).axes[2]
    network, _, static = (line.get_ydata() for line in axes.lines)
    assert network[-1] - network[0] > 0.5
    assert np.ptp(static) < 1e-12


def test_densities_integrate_to_one(comparison):
    figure = figures.preactivations(comparison)
    assert len(figure.axes) == 4
    for axes in figure.axes:
        for line in axes.lines:
            x, density = line.get_data()
            assert (density * (x[1] - x[0])).sum() == pytest.approx(1, abs=1e-6)


def test_what_was_not_kept_is_left_out_or_refused():
    bare = [without_fields(replace(run, targets=None)) for run in (two_layers(), two_layers(origin="theory (N=inf)"))]
    comparison = compare(*bare)
    assert not {"preactivations", "target_alignment"} & set(comparison.figures())
    with pytest.raises(NotRecordedError, match="fields=True"):
        figures.preactivations(comparison)
    with pytest.raises(NotRecordedError, match="targets"):
        figures.target_alignment(comparison)


def test_a_deep_model_shows_eight_weights():
    run = two_layers()
    deep = replace(run, layers=run.layers[:1] + run.layers[1:2] * 20 + run.layers[2:])
    figure = figures.kernels(compare(deep, replace(deep, origin="theory (N=inf)")), "forward")
    assert len([axes for axes in figure.axes if axes.images]) == 8 * 3


def test_what_one_run_learned_is_drawn_weight_by_weight(comparison):
    run = comparison.measured
    drawn = figures.learned(run)
    panels = drawn.axes[:3]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == [layer.name for layer in run.layers]
    for axes, which in zip(panels, ("forward", "backward", "ntk"), strict=True):
        rows = [movement(getattr(layer, which)).numpy() for layer in run.layers]
        np.testing.assert_allclose(axes.images[0].get_array(), rows)
        assert axes.get_xlabel() == "step"
