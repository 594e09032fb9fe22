"""Under which conditions a network is measured: which randomness, hooks and precision, and whether it diverged."""

from __future__ import annotations

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
from tests.measurement.forms import P, double, drawn
from tests.measurement.normed import Images, vectors
from torch_dmft.core.errors import UnsupportedModelError

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
