"""Fields of single neurons: at which records they are kept, and that they are those of the network."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from torch_dmft.measurement import Probe, Recorder, fields
from torch_dmft.measurement.fields import handful
from torch_dmft.measurement.normal_form import Stream
from torch_dmft.parameterization import parameterize

P, WIDTH, OUTPUTS = 4, 12, 2


def network(activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    layers = nn.Linear(5, WIDTH), activation(), nn.Linear(WIDTH, WIDTH), activation(), nn.Linear(WIDTH, OUTPUTS)
    return nn.Sequential(*layers).double()


@pytest.fixture
def data(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    shapes = (P, 5), (P, OUTPUTS)
    x, y = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return x, y


def trained(model: nn.Module, data: tuple[Tensor, Tensor], steps: int, recorder: Recorder) -> list[list[Tensor]]:
    """Train while recording; h, z and g of the second hidden layer at all steps, by autograd."""
    truth, optimizer = [], torch.optim.SGD(model.parameters(), lr=0.3)
    with recorder.attach(optimizer):
        for step in range(steps + 1):
            h = model[:3](data[0]).detach().requires_grad_()
            x = model[3](h)
            outputs = model[4](x)
            both = [torch.autograd.grad(f.sum(), (x, h), retain_graph=True) for f in outputs.T]
            scale = WIDTH**0.5  # gamma0 N with gamma0 = 1 / sqrt(N), as for any bare model
            z, g = (scale * torch.stack(each, dim=1) for each in zip(*both, strict=True))
            truth.append([h.detach(), z, g])
            if step < steps:
                optimizer.zero_grad()
                (model(data[0]) - data[1]).square().mean().backward()
                optimizer.step()
    return truth


@pytest.mark.parametrize("records", [1, 2, 3, 5, 6, 9, 10, 13, 100, 1000])
def test_a_handful_is_spread_evenly_and_only_ever_thinned_out(records: int) -> None:
    kept = handful(records)
    assert {kept[0], kept[-1]} == {0, records - 1}
    assert min(5, records, 4) <= len(kept) <= 5
    gaps = [b - a for a, b in pairwise(kept)]
    assert all(gap == gaps[0] for gap in gaps[:-1])
    assert all(gap <= gaps[0] for gap in gaps)
    assert set(handful(records + 1)) <= {*kept, records}


@pytest.mark.parametrize("steps", [0, 3, 11])
def test_the_fields_are_those_of_the_network(data: tuple[Tensor, Tensor], steps: int) -> None:
    model = network()
    recorder = Recorder(model, Probe(*data))
    truth = trained(model, data, steps, recorder)
    found = recorder.trajectory().layers[1].fields
    assert found.steps.tolist() == handful(steps + 1)
    for index, step in enumerate(found.steps.tolist()):
        h, z, g = truth[step]
        torch.testing.assert_close(found.preactivation[index], h, rtol=0, atol=0)
        torch.testing.assert_close(found.gradient[index], g, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found.pregradient[index], z, rtol=1e-10, atol=1e-12)


def test_chosen_steps_and_none_at_all(data: tuple[Tensor, Tensor]) -> None:
    model = network()
    recorders = [
        Recorder(model, Probe(*data), every=2, fields=each) for each in ([2, 3, 6], lambda step: step > 5, False)
    ]
    for recorder in recorders:
        trained(model, data, 8, recorder)
    listed, predicate, none = (recorder.trajectory().layers[1].fields for recorder in recorders)
    assert listed.steps.tolist() == [2, 6]  # 3 is no recorded step
    assert predicate.steps.tolist() == [6, 8]
    assert none is None


def test_fields_are_computed_only_where_they_are_kept(data: tuple[Tensor, Tensor], monkeypatch) -> None:
    calls = []
    inner = Stream.gradient_fields
    monkeypatch.setattr(Stream, "gradient_fields", lambda stream: calls.append(stream.layer.path) or inner(stream))
    model = network()
    recorder = Recorder(model, Probe(*data))
    trained(model, data, 64, recorder)
    recorder.trajectory()
    assert calls.count("2") < 20
    trained(model, data, 20, Recorder(model, Probe(*data), fields=False))
    assert calls.count("2") < 20


def test_kinks_and_skips_leave_no_z(data: tuple[Tensor, Tensor]) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(5, WIDTH), nn.Linear(WIDTH, WIDTH)
            self.readout = nn.Linear(WIDTH, OUTPUTS)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            return self.readout(torch.tanh(h + self.second(torch.tanh(h))))

    for model in (network(nn.ReLU), Residual().double()):
        recorder = Recorder(model, Probe(*data))
        recorder.record()
        layers = recorder.trajectory().layers
        assert all(layer.fields.pregradient is None for layer in layers)
        assert layers[0].fields.gradient.shape == (1, P, OUTPUTS, WIDTH)


def test_where_phi_is_flat_z_is_unknown(data: tuple[Tensor, Tensor]) -> None:
    model = network()
    with torch.no_grad():
        model[2].bias[0] = 20.0
    recorder = Recorder(model, Probe(*data))
    recorder.record()
    z = recorder.trajectory().layers[1].fields.pregradient
    assert bool(z[..., 0].isnan().all())
    assert not bool(z[..., 1:].isnan().any())


def test_of_very_many_neurons_some_are_kept(data: tuple[Tensor, Tensor], monkeypatch) -> None:
    monkeypatch.setattr(fields, "MOST", P * OUTPUTS * 5)
    model = network()
    recorder = Recorder(model, Probe(*data))
    recorder.record()
    found = recorder.trajectory().layers[1].fields
    assert found.gradient.shape == (1, P, OUTPUTS, 5)
    h = model[:3](data[0])
    columns = [int((h == column[:, None]).all(0).nonzero()) for column in found.preactivation[0].T]
    assert columns == sorted(set(columns))
    slope = 1 - torch.tanh(h[:, columns]) ** 2  # of the same neurons
    torch.testing.assert_close(found.gradient[0], slope[:, None] * found.pregradient[0], rtol=1e-10, atol=1e-12)


def test_a_checkpoint_goes_on_with_the_same_fields(data: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    plan = parameterize(network(), data[0])
    whole, first = (Recorder(plan, Probe(*data)) for _ in range(2))
    optimizer = torch.optim.SGD(plan.param_groups(0.1))

    def train(recorder: Recorder, steps: int) -> None:
        with whole.attach(optimizer), recorder.attach(optimizer):
            for _ in range(steps):
                optimizer.zero_grad()
                (plan.model(data[0]) - data[1]).square().mean().backward()
                optimizer.step()

    train(first, 7)
    torch.save(first.state_dict(), tmp_path / "recorder.pt")
    resumed = Recorder(plan, Probe(*data))
    resumed.load_state_dict(torch.load(tmp_path / "recorder.pt", weights_only=True))
    train(resumed, 6)
    one, other = (recorder.trajectory().layers[1].fields for recorder in (whole, resumed))
    assert one.steps.tolist() == other.steps.tolist() == handful(14)
    assert torch.equal(one.pregradient, other.pregradient)
