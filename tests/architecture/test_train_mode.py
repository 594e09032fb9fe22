"""Every place where train mode is random, or another model than the one described, is listed, and only those."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_dmft.architecture import Architecture, describe


class Inside(nn.Module):
    """A block that does in each mode what ``act`` says."""

    def __init__(self, act: Callable[[Inside, Tensor], Tensor]) -> None:
        super().__init__()
        self.act = act
        self.register_buffer("noise", torch.arange(6.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self, x)


def described(act: Callable[[Inside, Tensor], Tensor], *, train: bool = True) -> Architecture:
    with torch.random.fork_rng():
        torch.manual_seed(0)  # of a few random numbers the size is judged
        model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Sequential(Inside(act)), nn.Linear(6, 1))
        return describe(model.train(train), torch.randn(5, 3))


def drop_path(module: Inside, x: Tensor) -> Tensor:
    if not module.training:
        return x
    return x * x.new_empty(len(x), 1).bernoulli_(0.8) / 0.8


def own_generator(module: Inside, x: Tensor) -> Tensor:
    return x + torch.randn(6, generator=torch.Generator().manual_seed(0)) if module.training else x


def out_of_sight(module: Inside, x: Tensor) -> Tensor:
    if not module.training:
        return x
    with torch._C.DisableTorchFunction():
        noise = torch.rand(6)
    return x + noise


RANDOM = {
    "bernoulli": drop_path,
    "dropout": lambda module, x: F.dropout(x, 0.3, training=module.training),
    "feature_alpha_dropout": lambda module, x: F.feature_alpha_dropout(x, 0.3, training=module.training),
    "alpha_dropout": lambda module, x: F.alpha_dropout(x, 0.3, module.training),
    "rrelu": lambda module, x: F.rrelu(x, training=module.training),
    "rand": lambda module, x: x + torch.rand(6) if module.training else x,
    "randn": own_generator,
    "randn_like": lambda module, x: x + 0.1 * torch.randn_like(x),
    "normal": lambda module, x: x + torch.empty(6).normal_() if module.training else x,
    "randperm": lambda module, x: x + module.noise[torch.randperm(6)] if module.training else x,
    "rand_like": lambda module, x: x if not module.training or torch.rand_like(x[0, 0]) > 0 else 2 * x,
}


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("train", [True, False])
def test_randomness_is_said_with_its_place(name: str, train: bool) -> None:
    found = described(RANDOM[name], train=train)
    assert not found.is_chain
    place = found.train_differs[0]
    assert (place.path, place.reason) == ("2.0", f"`{name}` draws random numbers in train mode")


@pytest.mark.parametrize(
    "module", [nn.Dropout(), nn.AlphaDropout(), nn.RReLU(), nn.FeatureAlphaDropout(), nn.Dropout1d()]
)
def test_modules_of_torch_that_are_random_in_train_mode(module: nn.Module) -> None:
    found = describe(nn.Sequential(nn.Linear(3, 6), module, nn.Tanh(), nn.Linear(6, 1)), torch.randn(5, 3))
    assert [place.path for place in found.train_differs] == ["1"]


def changed_buffer(module: Inside, x: Tensor) -> Tensor:
    if module.training:
        module.noise += 1
    return x + module.noise


@pytest.mark.parametrize(
    "act",
    [
        lambda module, x: torch.relu(x) if module.training else torch.tanh(x),
        lambda module, x: 2 * x if module.training else x,
        lambda module, x: x * (0.5 if module.training else 0.7),
        lambda module, x: x + (module.noise if module.training else 2 * module.noise),
        lambda module, x: x + torch.tanh(x) if module.training else torch.tanh(x) + torch.tanh(x),
        lambda module, x: [x, torch.tanh(x)][module.training],
        lambda module, x: [torch.tanh(x), torch.sigmoid(x)][module.training],
        lambda module, x: x.masked_fill(x > 0, 0) if module.training else x,
        changed_buffer,
    ],
)
def test_other_steps_in_train_mode_are_said(act: Callable) -> None:
    found = described(act)
    assert [place.path for place in found.train_differs][:1] in (["2.0"], ["3"])
    assert not found.is_chain


def test_every_place_is_listed() -> None:
    blocks = [Inside(drop_path), nn.Dropout(0.1), Inside(lambda m, x: -x if m.training else x), nn.Dropout(0.0)]
    found = describe(nn.Sequential(nn.Linear(3, 6), *blocks, nn.Linear(6, 1)), torch.randn(5, 3))
    assert [place.path for place in found.train_differs] == ["1", "2", "3"]


@pytest.mark.parametrize("draw", [random.random, np.random.rand], ids=["python", "numpy"])
def test_layers_dropped_by_the_random_numbers_of_others(draw: Callable[[], float]) -> None:
    class Drops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 1)
            self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(8))

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            for block in self.blocks:
                if not self.training or draw() > 0.3:
                    h = h + torch.tanh(block(h))
            return self.last(h)

    np.random.seed(3)  # noqa: NPY002  (the state that has to come back is the global one)
    expected = draw() if draw is np.random.rand else None
    np.random.seed(3)  # noqa: NPY002
    assert describe(Drops(), torch.randn(5, 3)).train_differs
    assert expected is None or draw() == expected


def test_a_layer_that_is_dropped_once_in_a_million_times_is_noticed() -> None:
    """Without type checkers, which draw such numbers in both modes."""
    code = """
import random, torch
from torch import nn
from torch_dmft.architecture import describe
class Rare(nn.Module):
    def forward(self, h):
        return 0 * h if self.training and random.random() < 1e-6 else h
for rare in (Rare(), nn.Identity()):
    print(*describe(nn.Sequential(nn.Linear(3, 6), rare, nn.Tanh(), nn.Linear(6, 1)), torch.randn(5, 3)).train_differs)
"""
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.splitlines()
    assert "draws random numbers of python or numpy in train mode" in said[0]
    assert said[1] == ""


def test_numbers_that_others_draw_now_and_then_are_no_part_of_the_model() -> None:
    calls = 0

    def looked_at(module: Inside, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:  # the first pass in train mode
            random.random()
        return x

    state = random.getstate()
    assert described(looked_at).train_differs == ()
    random.setstate(state)


def test_dropout_in_both_modes_is_not_dropout_alone() -> None:
    assert not described(lambda module, x: F.dropout(x, 0.3)).averages_out
    assert described(lambda module, x: F.dropout(x, 0.3, module.training)).averages_out


def test_what_is_drawn_out_of_sight_is_noticed() -> None:
    (place, *_) = described(out_of_sight).train_differs
    assert "random" in place.reason or "another" in place.reason


def test_a_model_that_fails_in_train_mode_is_described_all_the_same() -> None:
    def targets(module: Inside, x: Tensor) -> Tensor:
        if module.training:
            raise ValueError("targets are needed")
        return x

    (place,) = described(targets).train_differs
    assert place.path == "2.0"
    assert "fails on the example input in train mode: ValueError: targets are needed" in place.reason


@pytest.mark.parametrize(
    "act",
    [
        lambda module, x: x,
        lambda module, x: F.dropout(x, 0.0, training=module.training),
        lambda module, x: x + 0 * module.noise,
        lambda module, x: torch.sin(x) if module.training else x.sin(),
    ],
)
def test_what_is_alike_in_both_modes_is_not_listed(act: Callable) -> None:
    assert described(act).train_differs == ()


@pytest.mark.parametrize("samples", [1, 5])
def test_batch_norm_is_no_difference_but_couples_rows(samples: int) -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = describe(model, torch.randn(samples, 3))
    assert found.train_differs == ()
    assert not found.row_independent
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(("train", "independent"), [(True, False), (False, True)])
def test_a_batch_norm_written_by_hand_couples_rows_too(train: bool, independent: bool) -> None:
    def norm(module: Inside, x: Tensor) -> Tensor:
        return F.batch_norm(x, module.noise, 1 + module.noise, training=module.training)

    found = described(norm, train=train)
    assert found.row_independent is independent
    assert found.train_differs == ()


def test_the_mode_and_the_random_states_come_back() -> None:
    model = nn.Sequential(nn.Linear(3, 6), Inside(drop_path), nn.Dropout(), nn.Linear(6, 1))
    model[1].eval()
    example = torch.randn(5, 3)
    flags, state = [module.training for module in model.modules()], torch.get_rng_state()
    describe(model, example)
    assert [module.training for module in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), state)
