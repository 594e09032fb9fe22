"""The twin is an ordinary module: trained by an ordinary loop, measured by the ordinary recorder."""

import pytest
import torch
from torch import nn

from torch_dmft import Probe, Recorder, infinite_width
from torch_dmft.core.errors import InvalidInputError, UnsupportedModelError


def test_a_recorder_measures_the_twin_while_it_trains() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    targets = torch.sign(torch.randn(6, 1, generator=generator, dtype=torch.float64))
    probe = Probe(inputs, targets)

    def factory(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))

    limit = infinite_width(factory, inputs, neurons=512, tolerance=1e-6)
    optimizer = torch.optim.SGD(limit.param_groups(0.3))
    recorder = Recorder(limit, probe)
    found = []
    with recorder.attach(optimizer):
        for _ in range(8):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(limit.model(inputs), targets)
            loss.backward()
            optimizer.step()
            found.append(loss.item())

    measured = recorder.trajectory()
    assert measured.origin == "theory (N=inf)"
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.5 * found[0]
    torch.testing.assert_close(measured.losses[:-1], torch.tensor(found, dtype=torch.float64), rtol=1e-6, atol=0)


def test_adam_is_refused_since_it_sees_single_entries_of_a_weight() -> None:
    model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))
    limit = infinite_width(model, torch.zeros(2, 5), neurons=64)
    with pytest.raises(InvalidInputError, match="sgd"):
        limit.param_groups(0.1, optimizer="adam")


def test_norm_layers_that_start_elsewhere_are_refused() -> None:
    model = nn.Sequential(nn.Linear(5, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 1))
    nn.init.constant_(model[1].weight, 0.5)
    nn.init.constant_(model[1].bias, 0.3)
    with pytest.raises(UnsupportedModelError, match=r"(?s)1\.weight.*1\.bias"):
        infinite_width(model, torch.zeros(2, 5), neurons=64)
