"""Whose statistics a network with BatchNorm is measured with: those of the probe, or those of the run."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

import torch_dmft as dmft
from tests.measurement.forms import P, double, drawn
from tests.measurement.normed import Images, vectors
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.torch_private import BatchNormBase


class Shared(nn.Module):
    """One BatchNorm, used twice."""

    def __init__(self, *, track: bool = True) -> None:
        super().__init__()
        self.first, self.bn, self.mix = nn.Linear(3, 5), nn.BatchNorm1d(5, track_running_stats=track), nn.Linear(5, 5)
        self.head = nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.bn(self.mix(torch.tanh(self.bn(self.first(x)))))))


NORMED: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "images": (Images, drawn(P, 1, 5, 5)),
    "vectors": (vectors, drawn(P, 3)),
    "shared": (Shared, drawn(P, 3)),
    "untracked": (lambda: Shared(track=False), drawn(P, 3)),
}


def with_statistics_of(model: nn.Module, inputs: Tensor) -> Callable[[Tensor], Tensor]:
    """The network with every BatchNorm replaced by a fixed line per use: what train mode does to these inputs."""
    frozen, lines, uses = copy.deepcopy(model).train(), [], []

    def note(norm: BatchNormBase, args: tuple[Tensor, ...], output: Tensor) -> None:
        x = args[0].detach()
        axes = [0, *range(2, x.ndim)]
        mean = x.mean(axes, keepdim=True)
        lines.append((mean, (x - mean).square().mean(axes, keepdim=True)))

    hooks = [m.register_forward_hook(note) for m in frozen.modules() if isinstance(m, BatchNormBase)]
    frozen(inputs)
    for hook in hooks:
        hook.remove()

    def line(norm: BatchNormBase, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        mean, variance = lines[len(uses) % len(lines)]
        uses.append(norm)
        shape = (1, -1) + (1,) * (args[0].ndim - 2)
        scaled = (args[0] - mean) / (variance + norm.eps).sqrt()
        return scaled * norm.weight.reshape(shape) + norm.bias.reshape(shape)

    for module in frozen.modules():
        if isinstance(module, BatchNormBase):
            module.register_forward_hook(line)
    frozen.eval()
    for parameter, other in zip(frozen.parameters(), model.parameters(), strict=True):
        parameter.data = other.data
    return frozen


def brute_force(model: Callable[[Tensor], Tensor], parameters: list[nn.Parameter], inputs: Tensor) -> Tensor:
    jacobian = []
    for mu in range(len(inputs)):
        for number in model(torch.cat([inputs[mu : mu + 1]] * 2))[0]:
            found = torch.autograd.grad(number, parameters, retain_graph=True)
            jacobian.append(torch.cat([one.flatten() for one in found]))
    return torch.stack(jacobian) @ torch.stack(jacobian).T


@pytest.mark.parametrize("name", NORMED)
def test_statistics_of_the_probe_are_those_of_train_mode_held_fixed(name: str) -> None:
    build, inputs = NORMED[name]
    model = double(build())
    fixed = with_statistics_of(model, inputs)
    recorder = dmft.Recorder(model, dmft.Probe(inputs))
    record = recorder.record()
    trained = copy.deepcopy(model).train()(inputs)
    torch.testing.assert_close(record.outputs[0], trained.detach(), rtol=1e-10, atol=1e-12)
    expected = brute_force(fixed, list(fixed.parameters()), inputs)
    torch.testing.assert_close(record.ntk.array[0].reshape(expected.shape), expected, rtol=1e-9, atol=1e-12)
    for method in ("layerwise", "jacobian", "vjp"):
        ntk = dmft.empirical_ntk(model, inputs, method=method)
        torch.testing.assert_close(ntk.reshape(expected.shape), expected, rtol=1e-9, atol=1e-12)
    assert recorder.trajectory().metadata["batch norm"] == "statistics of the probe"
    assert recorder.trajectory().notes == ()


@pytest.mark.parametrize("name", ["images", "vectors", "shared"])
def test_statistics_of_the_run_are_those_of_eval_mode(name: str) -> None:
    build, inputs = NORMED[name]
    model = double(build())
    with pytest.warns(UserWarning, match="has seen no batch yet is measured with mean 0 and variance 1"):
        dmft.Recorder(model, dmft.Probe(inputs), batch_norm="run").record()
    model(inputs * 2 + 1)
    recorder = dmft.Recorder(model, dmft.Probe(inputs), batch_norm="run")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        record = recorder.record()
    torch.testing.assert_close(record.outputs[0], copy.deepcopy(model).eval()(inputs).detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        record.ntk.array[0], dmft.empirical_ntk(model, inputs, batch_norm="run", method="jacobian")
    )
    assert recorder.trajectory().metadata["batch norm"] == "statistics of the run"


@pytest.mark.parametrize("name", NORMED)
@pytest.mark.parametrize("batch_norm", ["probe", "run"])
@pytest.mark.filterwarnings("ignore:.*BatchNorm:UserWarning")
def test_nothing_of_the_norms_changes(name: str, batch_norm: str) -> None:
    build, inputs = NORMED[name]
    runs = []
    for recorded in (True, False):
        model = double(build()).train()
        optimizer = SGD(model.parameters(), lr=0.1)
        recorder = dmft.Recorder(model, dmft.Probe(inputs), batch_norm=batch_norm)
        buffers = {key: id(buffer) for key, buffer in model.named_buffers()}
        for _ in range(3):
            model(inputs).square().mean().backward()
            optimizer.step()
            if recorded:
                recorder.step += 1
                recorder.record()
        assert {key: id(buffer) for key, buffer in model.named_buffers()} == buffers
        assert not any(m._forward_pre_hooks for m in model.modules())
        runs.append(model.state_dict())
    for key, value in runs[0].items():
        assert torch.equal(value, runs[1][key]), key


@pytest.mark.parametrize("name", ["images", "vectors"])
def test_statistics_are_those_of_the_training_rows(name: str) -> None:
    """Test rows in the probe change nothing of the others, and meet the same statistics."""
    build, inputs = NORMED[name]
    model, train = double(build()), torch.arange(P) < 4
    fixed = with_statistics_of(model, inputs[:4])
    record = dmft.Recorder(model, dmft.Probe(inputs, train=train)).record()
    trained = copy.deepcopy(model).train()(inputs[:4])
    torch.testing.assert_close(record.outputs[0][:4], trained.detach(), rtol=1e-10, atol=1e-12)
    expected = brute_force(fixed, list(fixed.parameters()), inputs)
    torch.testing.assert_close(record.ntk.array[0].reshape(expected.shape), expected, rtol=1e-9, atol=1e-12)


def test_frozen_norms_keep_their_averages() -> None:
    model, inputs = double(Images()), drawn(P, 1, 5, 5)
    model(inputs * 2 + 1)
    model.train().bn1.eval()
    recorder = dmft.Recorder(model, dmft.Probe(inputs))
    with pytest.warns(UserWarning, match=r"keeps its running averages \(bn1\)"):
        record = recorder.record()
    trained = copy.deepcopy(model).train()
    trained.bn1.eval()
    torch.testing.assert_close(record.outputs[0], trained(inputs).detach(), rtol=1e-10, atol=1e-12)


def test_a_fresh_resnet_is_measured_as_it_is_trained() -> None:
    """With averages of 0 and 1, Phi of the readout is wrong by a factor."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = pytest.importorskip("torchvision").models.resnet18(num_classes=1)
    inputs = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features: list[Tensor] = []
    handle = model.fc.register_forward_pre_hook(lambda _, args: features.append(args[0].detach()))
    expected = copy.deepcopy(model).train()(inputs).detach()
    handle.remove()
    record = dmft.Recorder(model, dmft.Probe(inputs)).record()
    torch.testing.assert_close(record.outputs[0], expected, rtol=1e-3, atol=1e-3)
    phi = features[0] @ features[0].T / features[0].shape[1]
    torch.testing.assert_close(record.layers[-1].forward.array[0], phi, rtol=1e-3, atol=1e-3)
    with pytest.warns(UserWarning, match="seen no batch"):
        wrong = dmft.Recorder(model, dmft.Probe(inputs), batch_norm="run").record()
    ratio = float(wrong.layers[-1].forward.array[0].trace() / phi.trace())
    assert not 0.5 < ratio < 2


def test_whose_statistics_is_one_of_two() -> None:
    for use in (
        lambda: dmft.Recorder(vectors(), dmft.Probe(torch.randn(P, 3)), batch_norm="batch"),
        lambda: dmft.empirical_ntk(vectors(), torch.randn(P, 3), batch_norm="batch", method="jacobian"),
    ):
        with pytest.raises(InvalidInputError, match='batch_norm="probe"'):
            use()
