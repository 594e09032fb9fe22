"""The yardstick of the verdict: channels, not what a flattened image hands to the readout."""

import math
from dataclasses import replace

import torch
from torch import nn

import torch_dmft as dmft
from tests.trajectories import two_layers
from torch_dmft.comparison import compare
from torch_dmft.comparison.yardstick import narrowest
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
    return recorder.trajectory()


def test_a_convolutional_network_is_measured_by_its_channels(generator):
    measured, other = (convolutional(seed, generator) for seed in range(2))
    comparison = compare(measured, other)
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


def test_where_the_widths_are_not_known_the_readout_is_named_as_what_it_is(generator):
    measured, other = (convolutional(seed, generator) for seed in range(2))
    unknown = tuple(replace(layer, width=None) for layer in measured.layers)
    measured = replace(measured, layers=unknown)
    assert "N = 128, the inputs of the readout" in compare(measured, other).verdict


def test_a_narrow_layer_elsewhere_is_told():
    run = two_layers()
    off = replace(run.layers[1], forward=Kernel(1.5 * run.layers[1].forward.array))
    widths = (576, 4, None)
    layers = zip((run.layers[0], off, run.layers[2]), widths, strict=True)
    measured = replace(run, layers=tuple(replace(layer, width=width) for layer, width in layers))
    comparison = compare(measured, two_layers(origin="theory (N=inf)"))
    assert "12 / sqrt(N) with N = 576, the narrowest layer that it is an average over" in comparison.verdict
    assert "the narrowest layer of all does, 2 with N = 4: 1 / sqrt(4)" in comparison.verdict
    assert narrowest((576, 4, None), "forward", 1) == 576
    assert narrowest((576, 4, None), "backward", 0) == 4


def test_a_run_of_unknown_width_has_no_yardstick():
    run = replace(two_layers(noise=0.02), width=None)
    comparison = compare(run, two_layers(origin="theory (N=inf)"))
    assert comparison.narrowest is None
    assert "sqrt(N)" not in str(comparison)
