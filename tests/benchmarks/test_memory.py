"""A record takes the memory of at most two passes, on the networks of the benchmark, smaller."""

import pytest
import torch
from torch import nn

import torch_dmft as dmft
from benchmarks.memory import peak_bytes
from benchmarks.record import _MODELS, Settings

SMALL = Settings(width=256, channels=16, features=64, pixels=16, samples=32)


def test_the_peak_counts_what_is_there_at_once():
    def two_after_each_other():
        for _ in range(2):
            torch.zeros(1000, dtype=torch.float64)

    def two_at_once():
        return [torch.zeros(1000, dtype=torch.float64) for _ in range(2)]

    assert peak_bytes(two_after_each_other) == 8000
    assert peak_bytes(two_at_once) == 16000


@pytest.mark.parametrize("name", ["mlp", "cnn", "vit", "resnet18"])
def test_a_record_takes_the_memory_of_two_passes(name):
    model = _MODELS[name](SMALL).eval()
    inputs = torch.randn(SMALL.samples, 3, SMALL.pixels, SMALL.pixels)
    recorder = dmft.Recorder(model, dmft.Probe(inputs, torch.zeros(SMALL.samples, 1)), fields=False)
    recorder.record()

    def one_pass():
        model(inputs).sum().backward()
        model.zero_grad()

    one_pass()
    assert peak_bytes(recorder.look) <= 2.0 * peak_bytes(one_pass)


def test_averaged_over_outputs_a_record_takes_the_memory_of_one_output():
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 50)
    )
    inputs = torch.randn(16, 3, 16, 16)

    def peak(**settings) -> int:
        recorder = dmft.Recorder(model, dmft.Probe(inputs), fields=False, **settings)
        recorder.record()
        return peak_bytes(recorder.look)

    one = peak(outputs=lambda out: out[:, :1])
    assert peak(per_output=False) <= 3 * one  # the graph is there until the last output
    assert peak() >= 20 * one
