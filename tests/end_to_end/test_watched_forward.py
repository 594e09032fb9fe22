"""A forward pass that changes during a run is found out; what changes no output is let be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

import torch_dmft as dmft
from tests.end_to_end.watched import INPUTS, TARGETS, chain


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


class Gated(nn.Module):
    """A chain with what a forward pass may depend on beside parameters, and with what it may not."""

    def __init__(self) -> None:
        super().__init__()
        self.chain = chain()
        self.gate, self.warm, self.acts = 1.0, None, [torch.tanh]
        self.settings, self.plain = SimpleNamespace(factor=1.0), torch.ones(1)
        self.calls, self.last, self.metric = 0, 0.0, None
        self.register_buffer("shift", torch.zeros(1))
        self.register_buffer("mask", torch.zeros(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.mask.numel() == 0:
            self.mask = torch.ones(48)
        h = self.acts[0](self.chain[0](x)) * self.gate * self.settings.factor * self.plain * self.mask
        h = h * (1.0 if self.warm is None else self.warm)
        out = self.chain[4](self.chain[3](self.chain[2](h)) + self.shift)
        self.last = float(out.detach().mean())
        return out

    def forward_otherwise(self, x: Tensor) -> Tensor:
        return 0.5 * self.forward_as_it_was(x)


def swap_method(model: Gated) -> None:
    model.forward_as_it_was = model.forward
    model.forward = model.forward_otherwise


CHANGES: dict[str, Callable[[Gated], Any]] = {
    "gate": lambda model: setattr(model, "gate", 0.5),
    "acts": lambda model: model.acts.__setitem__(0, torch.sin),
    "settings": lambda model: setattr(model.settings, "factor", 0.5),
    "warm": lambda model: setattr(model, "warm", 0.5),
    "plain": lambda model: model.plain.mul_(0.5),
    "shift": lambda model: model.shift.add_(0.5),
    "chain.3": lambda model: model.chain.__setitem__(3, nn.Sigmoid()),
    "forward": swap_method,
}
HARMLESS: dict[str, Callable[[Gated], Any]] = {
    "nothing": lambda model: None,
    "another module of the kind": lambda model: model.chain.__setitem__(3, nn.Tanh()),
    "a module that is not used": lambda model: setattr(model, "metric", nn.Identity()),
    "a counter": lambda model: setattr(model, "calls", model.calls + 5),
}


def gated(change: Callable[[Gated], Any], lr: float = 0.1) -> tuple[Gated, dmft.Recorder]:
    model = Gated()
    recorder = dmft.Recorder(model, dmft.Probe(INPUTS, TARGETS), every=4)
    optimizer = SGD(model.parameters(), lr=lr)
    with recorder.attach(optimizer):
        for step in range(12):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(INPUTS), TARGETS).backward()
            optimizer.step()
            if step == 1:
                change(model)
    return model, recorder


def forward_notes(recorder: dmft.Recorder) -> list[str]:
    return [note for note in recorder.trajectory().training.notes if "forward pass" in note]


@pytest.mark.parametrize("name", CHANGES)
def test_a_forward_pass_that_changes(name: str) -> None:
    _, recorder = gated(CHANGES[name])
    (note,) = forward_notes(recorder)
    assert name in note


@pytest.mark.parametrize("name", HARMLESS)
def test_what_changes_no_output_is_no_change(name: str) -> None:
    model, recorder = gated(HARMLESS[name])
    assert forward_notes(recorder) == []
    assert model.calls >= 12
    assert model.mask.shape == (48,)


def test_rows_that_only_some_change_touches() -> None:
    """The first rows alone tell nothing."""

    def clip(model: Gated) -> None:
        bound = INPUTS[:2].abs().max()
        model.chain[0].register_forward_pre_hook(lambda module, args: (args[0],))  # a hook of the user changes nothing
        model.acts[0] = lambda h: torch.where(far(h), torch.zeros_like(h), torch.tanh(h))
        far = lambda h: (h.abs() > bound + 100) | (torch.arange(len(h)) == 7)[:, None]  # noqa: E731

    assert forward_notes(gated(clip)[1])


def test_a_run_that_diverges_is_not_called_changed() -> None:
    _, recorder = gated(lambda model: None, lr=1e8)
    assert not recorder.records[-1].outputs.isfinite().all()
    assert forward_notes(recorder) == []


@pytest.mark.parametrize(
    "norm", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm, nn.utils.parametrizations.weight_norm]
)
def test_norms_of_weights_are_no_change(norm: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), norm(nn.Linear(16, 16)), nn.Tanh(), nn.Linear(16, 1))
    recorder = dmft.Recorder(model, dmft.Probe(INPUTS, TARGETS), every=4)
    optimizer = SGD(model.parameters(), lr=0.1)
    with recorder.attach(optimizer):
        for _ in range(12):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(INPUTS), TARGETS).backward()
            optimizer.step()
    assert forward_notes(recorder) == []
