"""Under which conditions a network is measured: whose statistics, which precision, which hooks, and whether it diverged."""

from __future__ import annotations

import copy
import math
import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

import torch_dmft as dmft
from tests.accelerated import accelerator
from torch_dmft.core.errors import InvalidInputError, UnsupportedModelError
from torch_dmft.core.torch_private import BatchNormBase

P = 6


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def double(model: nn.Module) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in model.double().parameters():
            nn.init.normal_(parameter, std=0.4)
    return model


class Images(nn.Module):
    """Two BatchNorms, behind each other and with an activation in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn1 = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.mix, self.bn2 = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.stem(x)), inplace=True)
        return self.head(torch.tanh(self.bn2(self.mix(x))).mean((2, 3)))


class Shared(nn.Module):
    """One BatchNorm, used twice."""

    def __init__(self, *, track: bool = True) -> None:
        super().__init__()
        self.first, self.bn, self.mix = nn.Linear(3, 5), nn.BatchNorm1d(5, track_running_stats=track), nn.Linear(5, 5)
        self.head = nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.bn(self.mix(torch.tanh(self.bn(self.first(x)))))))


def vectors() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2))


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


# Randomness


class Noisy(nn.Module):
    def __init__(self, noise: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.head, self.noise, self.calls = nn.Linear(3, 5), nn.Linear(5, 1), noise, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.head(self.noise(torch.tanh(self.first(x))))


NOISES: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda x: F.dropout(x, 0.5, training=True),
    "noise": lambda x: x + torch.randn((), dtype=x.dtype),
    "python": lambda x: x * random.random(),
}


@pytest.mark.parametrize("name", NOISES)
def test_randomness_in_eval_mode_is_refused_with_its_place(name: str) -> None:
    model = double(Noisy(NOISES[name]))
    with pytest.raises(UnsupportedModelError, match=r"other outputs when it is run again[^:]*:\n  (head|\(model\)):"):
        dmft.Recorder(model, dmft.Probe(drawn(P, 3))).record()


def test_a_state_that_changes_is_refused() -> None:
    model = double(Noisy(lambda x: x))
    model.noise = lambda x: x * model.calls
    with pytest.raises(UnsupportedModelError, match="a state that changes"):
        dmft.Recorder(model, dmft.Probe(drawn(P, 3))).record()


def test_a_random_hook_on_a_wrapped_chain_is_found(generator: torch.Generator) -> None:
    model = double(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)))
    plan = dmft.parameterize(model, drawn(P, 3), generator=generator)
    model[1].register_forward_hook(lambda module, args, output: output * torch.rand(()))
    with pytest.raises(UnsupportedModelError, match="other outputs when it is run again"):
        dmft.Recorder(plan, dmft.Probe(drawn(P, 3))).record()


# Hooks


@pytest.mark.parametrize("inputs", [drawn(P, 3), (drawn(P, 3),)], ids=["chain", "watched"])
def test_hooks_of_the_user_are_named(inputs: Any) -> None:
    model, calls = double(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))), []
    model[1].register_forward_hook(lambda *_: calls.append(1))
    model[2].register_full_backward_hook(lambda *_: calls.append(1))
    recorder = dmft.Recorder(model, dmft.Probe(inputs))
    with pytest.warns(UserWarning, match="hooks on 1, 2 are called while the network is measured") as warned:
        recorder.record()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # it is said once
        recorder.step += 1
        recorder.record()
    assert sum("hooks on" in str(one.message) for one in warned) == 1
    assert recorder.trajectory().notes == ("hooks on 1, 2 are called while the network is measured, too",)
    assert "hooks on 1, 2" in str(recorder.trajectory())


@pytest.mark.parametrize("inputs", [drawn(P, 3), (drawn(P, 3),)], ids=["chain", "watched"])
def test_hooks_on_gradients_of_parameters_are_not_called(inputs: Any) -> None:
    model, calls = double(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))), []
    expected = dmft.empirical_ntk(model, inputs)
    model[0].weight.register_hook(lambda g: calls.append(1) or 0.5 * g)
    record = dmft.Recorder(model, dmft.Probe(inputs)).record()
    torch.testing.assert_close(record.ntk.array[0], expected, rtol=1e-12, atol=0)
    assert calls == []
    before = torch.autograd.grad(model(drawn(P, 3)).sum(), model[0].bias)[0]
    model(drawn(P, 3)).sum().backward()
    assert calls == [1]
    assert torch.equal(model[0].bias.grad, before)


def test_hooks_of_torch_go_without_saying() -> None:
    model = double(nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 5)), nn.Tanh(), nn.Linear(5, 1)))
    recorder = dmft.Recorder(model, dmft.Probe(drawn(P, 3)))
    record = recorder.record()
    assert recorder.trajectory().notes == ()
    torch.testing.assert_close(record.ntk.array[0], dmft.empirical_ntk(model, drawn(P, 3), method="jacobian"))


# Precision


@pytest.mark.parametrize("inputs", [torch.randn(P, 3), (torch.randn(P, 3),)], ids=["chain", "watched"])
def test_a_model_that_accelerate_prepared_is_measured_in_the_precision_of_its_weights(inputs: Any) -> None:
    model = nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Linear(64, 1))
    expected = dmft.empirical_ntk(model, inputs)
    prepared = accelerator(mixed_precision="bf16").prepare(model)
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    rounded = prepared(*given)
    recorder = dmft.Recorder(prepared, dmft.Probe(inputs))
    record = recorder.record()
    assert torch.equal(record.ntk.array[0], expected)
    assert torch.equal(
        dmft.empirical_ntk(prepared, inputs, method="jacobian"), dmft.empirical_ntk(model, inputs, method="jacobian")
    )
    assert not torch.equal(record.outputs[0], rounded.detach())
    assert torch.equal(prepared(*given), rounded)  # training goes on in bfloat16
    assert recorder.trajectory().metadata["precision"] == "float32"


class Mixed(nn.Module):
    """Autocast inside of forward, which nobody can switch off."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(3, 64), nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            x = torch.tanh(self.first(x))
        return self.head(x.float())


@pytest.mark.parametrize("inputs", [torch.randn(P, 3), (torch.randn(P, 3),)], ids=["described", "watched"])
def test_autocast_inside_of_a_model_is_said(inputs: Any) -> None:
    recorder = dmft.Recorder(Mixed(), dmft.Probe(inputs))
    with pytest.warns(UserWarning, match="multiplies in bfloat16 while its parameters are float32"):
        recorder.record()
    assert recorder.trajectory().metadata["precision"] == "bfloat16"


class Cached(Mixed):
    """Autocast that keeps the weights it has cast, whatever is around it."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=True):
            return self.head(torch.tanh(self.first(x))).float()


@pytest.mark.filterwarnings("ignore:.*multiplies in bfloat16")
@pytest.mark.parametrize("graded", [True, False])
def test_weights_that_autocast_has_kept_of_an_earlier_pass_are_seen(graded: bool) -> None:
    """A cast weight that comes out of the cache has no history: its use would be one of a constant."""
    model, inputs = Cached(), (torch.randn(P, 3),)
    recorder = dmft.Recorder(model, dmft.Probe(inputs))
    alone = recorder.look()
    assert all(bool(layer.ntk.any()) for layer in alone.layers)
    with torch.autocast("cpu", torch.bfloat16):  # as around a training loop; it keeps the cache until its end
        with torch.set_grad_enabled(graded):
            model(*inputs)
        within = dmft.Recorder(model, dmft.Probe(inputs)).look()
        later = recorder.look(check=True)
    assert torch.equal(within.ntk, alone.ntk)
    assert torch.equal(later.ntk, alone.ntk)


# Divergence


@pytest.mark.parametrize("inputs", [drawn(P, 3), (drawn(P, 3),)], ids=["chain", "watched"])
@pytest.mark.parametrize(("rate", "message"), [(1e200, "are not finite"), (1e3, "times as large as at the first")])
def test_a_run_that_diverged_is_said_to_have(inputs: Any, rate: float, message: str) -> None:
    model = double(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1)))
    optimizer = SGD(model.parameters(), lr=rate)
    recorder = dmft.Recorder(model, dmft.Probe(inputs, drawn(P, 1)))

    def fit() -> None:
        with recorder.attach(optimizer):
            for _ in range(4):
                optimizer.zero_grad()
                (model(drawn(P, 3)) - drawn(P, 1)).square().mean().backward()
                optimizer.step()

    with pytest.warns(UserWarning, match=rf"diverged: at step \d .*{message}") as warned:
        fit()
    assert sum("diverged: at" in str(one.message) for one in warned) == 1
    run = recorder.trajectory()
    assert any(note.startswith("diverged: at step") for note in run.notes)
    assert "diverged: at step" in str(run)
    assert len(run.steps) == 5


def test_a_checkpoint_knows_what_was_said() -> None:
    model = double(vectors())
    probe = dmft.Probe(drawn(P, 3))
    first = dmft.Recorder(model, probe, batch_norm="run")
    with pytest.warns(UserWarning, match="seen no batch"):
        first.record()
    second = dmft.Recorder(model, probe, batch_norm="run")
    second.load_state_dict(first.state_dict())
    assert second.trajectory().notes == first.trajectory().notes != ()


def test_outputs_that_are_not_finite_from_the_start_name_their_place() -> None:
    model = double(Images())
    with torch.no_grad():
        model.mix.weight[0] = math.nan
    with pytest.raises(UnsupportedModelError, match=r"not finite.*\n  mix: NaN"):
        dmft.Recorder(model, dmft.Probe(drawn(P, 1, 5, 5))).record()
