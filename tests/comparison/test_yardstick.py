"""The yardstick of the verdict: channels, not what a flattened image hands to the readout."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import torch_dmft as dmft
from tests.trajectories import two_layers
from torch_dmft.comparison import compare
from torch_dmft.comparison.yardstick import narrowest
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.kernel import Kernel


def convolutional(seed: int, generator: torch.Generator):
    """A network of 16 and 8 channels that hands 8 * 16 numbers to its readout, recorded over two steps."""
    inputs = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    targets = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(16, 8, 3, padding=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(128, 1),
    )
    plan = dmft.parameterize(model, inputs, generator=generator)
    recorder = dmft.Recorder(plan, dmft.Probe(inputs, targets))
    optimizer = torch.optim.SGD(plan.param_groups(lr=0.1))
    with recorder.attach(optimizer):
        for _ in range(2):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(inputs), targets).backward()
            optimizer.step()
    return recorder.trajectory(), plan


def test_a_convolutional_network_is_measured_by_its_channels(generator):
    (measured, plan), (other, _) = (convolutional(seed, generator) for seed in range(2))
    comparison = compare(measured, other, plan=plan)
    assert comparison.widths == (16, 8, None)
    assert measured.origin == "network (8 channels)"
    assert comparison.narrowest == 8
    assert [comparison.yardstick("forward", position) for position in range(3)] == [None, 16, 8]
    assert [comparison.yardstick("backward", position) for position in range(3)] == [8, 8, None]
    errors = [kernel.relative_error[-1].item() for kernel in comparison.deviations[0].predicted.values()]
    verdict = comparison.verdict
    assert "N = 128" not in verdict
    assert any(
        f"or {max(errors) * math.sqrt(n):.2g} / sqrt(N) with N = {n}, the narrowest layer" in verdict for n in (8, 16)
    )
    shown = str(comparison)
    for position, row in enumerate(((), ("16", "8"), ("8",))):
        line = next(line for line in shown.splitlines() if line.startswith(f"{position} "))
        assert all(width in line.split() for width in row)


def test_without_a_plan_the_readout_is_named_as_what_it_is(generator):
    (measured, _), (other, _) = (convolutional(seed, generator) for seed in range(2))
    assert "N = 128, the inputs of the readout" in compare(measured, other).verdict


def test_a_narrow_layer_elsewhere_is_told():
    run = two_layers()
    off = replace(run.layers[1], forward=Kernel(1.5 * run.layers[1].forward.array))
    measured = replace(run, layers=(run.layers[0], off, run.layers[2]))
    comparison = replace(compare(measured, two_layers(origin="theory (N=inf)")), widths=(576, 4, None))
    assert "12 / sqrt(N) with N = 576, the narrowest layer that it is an average over" in comparison.verdict
    assert "the narrowest layer of all does, 2 with N = 4: 1 / sqrt(4)" in comparison.verdict
    assert narrowest((576, 4, None), "forward", 1) == 576
    assert narrowest((576, 4, None), "backward", 0) == 4


def test_the_plan_of_another_model_is_refused(generator):
    measured, _ = convolutional(0, generator)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    plan = dmft.parameterize(model, torch.ones(2, 4), generator=generator)
    with pytest.raises(InvalidInputError, match="plan of the measured network"):
        compare(measured, measured, plan=plan)


def test_a_run_of_unknown_width_has_no_yardstick():
    run = replace(two_layers(noise=0.02), metadata={})
    comparison = compare(run, two_layers(origin="theory (N=inf)"))
    assert comparison.narrowest is None
    assert "sqrt(N)" not in str(comparison)
