"""Diverged runs and diverged theories are said to have diverged, and nothing is claimed of what comes after."""

from dataclasses import replace

import pytest
import torch

from tests.trajectories import two_layers
from torch_dmft.comparison import compare
from torch_dmft.core.divergence import diverged_at, last_sane, not_finite
from torch_dmft.core.kernel import Kernel

THEORY, STATIC = "theory (N=inf)", "static NTK (N=inf)"


def broken(run, time: int, value: float = torch.nan):
    """The same run with outputs and kernels that are not finite from a time on."""

    def spoil(array):
        array = array.clone()
        array[time:] = value
        return array

    layers = tuple(
        replace(layer, forward=layer.forward, backward=Kernel(spoil(layer.backward.array))) for layer in run.layers
    )
    return replace(run, outputs=spoil(run.outputs), losses=spoil(run.losses), layers=layers)


def exploded(run, time: int):
    """The same run with outputs that double in every step from a time on."""
    grown = torch.cat([torch.ones(time), 100 * 2.0 ** torch.arange(len(run.steps) - time)]).double()
    outputs = run.outputs * grown[:, None, None]
    return replace(run, outputs=outputs, losses=(outputs - run.targets).square().mean((1, 2)))


@pytest.mark.parametrize("spoiled", [broken, exploded])
def test_the_first_diverged_time_is_found(spoiled):
    run = two_layers()
    assert diverged_at(run) is None
    assert diverged_at(spoiled(run, 4)) == 4
    assert last_sane([run, spoiled(run, 4)]) == 3
    assert last_sane([run]) == 9


def test_what_is_not_finite_is_named():
    run = two_layers()
    assert not_finite(run, 4) == []
    spoiled = replace(run.layers[1], backward=Kernel(torch.full_like(run.layers[1].backward.array, torch.nan)))
    spoiled = replace(run, layers=(run.layers[0], spoiled, run.layers[2]))
    assert not_finite(spoiled, 4) == ["G of weight 1 (module 2)"]
    verdict = compare(spoiled, two_layers(origin=THEORY)).verdict
    assert "network (N=256) diverged: at step 0 G of weight 1 (module 2) not finite." in verdict
    assert "nothing left to compare" in verdict
    assert "relative error" not in verdict


def test_a_run_that_only_learns_badly_has_not_diverged():
    run = two_layers()
    assert diverged_at(replace(run, losses=run.losses * torch.linspace(1, 50, 10))) is None
    assert diverged_at(replace(run, outputs=40 * run.outputs)) is None  # logits grow while the loss falls


@pytest.mark.parametrize("spoiled", [broken, exploded])
def test_a_diverged_network_is_compared_up_to_where_it_was_sane(spoiled):
    comparison = compare(
        spoiled(two_layers(noise=0.02), 4), two_layers(origin=THEORY), two_layers(richness=0, origin=STATIC)
    )
    assert "network (N=256) diverged: at step 20" in comparison.verdict
    assert "Compared is what was before, up to step 15." in comparison.verdict
    assert "At step 15, network (N=256) is farthest" in comparison.verdict
    assert "nan" not in comparison.verdict
    assert "at step 15" in str(comparison)
    assert "nan" not in str(comparison).lower()


def test_a_diverged_theory_is_told_and_left_out_of_the_ranking():
    comparison = compare(
        two_layers(), two_layers(noise=0.01, origin=THEORY), broken(two_layers(richness=0, origin=STATIC), 3)
    )
    assert "static NTK (N=inf) diverged: at step 15" in comparison.verdict
    assert "nearest prediction first: theory" in comparison.verdict
    assert "nan" not in comparison.verdict
    assert comparison.end == 9


@pytest.mark.parametrize("time", [0, 4])
@pytest.mark.parametrize("spoiled", [broken, exploded])
def test_diverged_runs_are_written_and_drawn(spoiled, time, tmp_path):
    run = spoiled(two_layers(), time)
    comparison = compare(run, two_layers(origin=THEORY))
    comparison.write_tensorboard(tmp_path)
    for figure in comparison.figures().values():
        figure.canvas.draw()
    assert str(comparison.details())
    assert comparison._repr_html_()
