"""GroupNorm of a fixed number of groups: its limit is that of wide networks, and of one group; others are refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torch_dmft as dmft
from tests.reference.ensembles import Limit
from tests.theory.engine import stacks
from tests.theory.validation.agreement import assert_agrees, moved
from torch_dmft.core.errors import UnsupportedModelError

GROUPS, TOKENS = 4, 6
Norm = Callable[[int], nn.Module]
AFFINE = {"gain a": 1.0, "shift a": 0.0, "gain b": 1.0, "shift b": 0.0}


def grouped(h: Tensor, gain: Tensor, shift: Tensor, groups: int = GROUPS) -> Tensor:
    """Groups of channels, over all tokens, of rows ``(network, sample, token, channel)``."""
    rows = h.mT.reshape(*h.shape[:2], groups, -1)
    rows = (rows - rows.mean(-1, keepdim=True)) / (rows.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    return rows.reshape(h.mT.shape).mT * gain + shift


def neighbours(h: Tensor) -> Tensor:
    """What a kernel of three taps reads of a circle of tokens."""
    return torch.cat([h.roll(1, 2), h, h.roll(-1, 2)], -1)


def wiring(*, convolves: bool) -> stacks.Wiring:
    reads = neighbours if convolves else lambda h: h
    phi = torch.relu if convolves else torch.tanh

    def forward(apply, x, v, _):
        h = phi(grouped(apply("a", reads(x)), v["gain a"], v["shift a"]))
        return phi(grouped(apply("b", reads(h)), v["gain b"], v["shift b"]))

    return stacks.Wiring(("a", "b"), forward, AFFINE, {"a": 3, "b": 3} if convolves else {})


def model(width: int = 16, norm: Norm = lambda width: nn.GroupNorm(GROUPS, width), *, convolves: bool) -> nn.Module:
    def weight(fan_in: int) -> list[nn.Module]:
        if not convolves:
            return [nn.Linear(fan_in, width, bias=False), norm(width), nn.Tanh()]
        convolution = nn.Conv1d(fan_in, width, 3, padding=1, padding_mode="circular", bias=False)
        return [convolution, norm(width), nn.ReLU()]

    pool = [nn.AdaptiveAvgPool1d(1), nn.Flatten()] if convolves else []
    return nn.Sequential(*weight(3 if convolves else 5), *weight(width), *pool, nn.Linear(width, 1, bias=False))


def data(*, convolves: bool) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    targets = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    if not convolves:
        return torch.randn(4, 5, generator=generator), targets
    return torch.randn(4, 3, TOKENS, generator=generator) * torch.tensor([0.3, 0.6, 1.0, 1.5, 2.0, 2.5]), targets


CASES = {
    "dense": (False, 0.5, 0.2),
    "dense, rich": (False, 2.0, 0.05),
    "convolution": (True, 0.7, 0.06),
    "convolution, rich": (True, 2.0, 0.04),
}


def pose(which: str, norm: Norm | None = None) -> dmft.Problem:
    convolves, gamma0, lr = CASES[which]
    inputs, targets = data(convolves=convolves)
    built = model(convolves=convolves) if norm is None else model(norm=norm, convolves=convolves)
    plan = dmft.parameterize(built, inputs, gamma0=gamma0, gain=1.0)
    return dmft.Problem.like(plan, dmft.Probe(inputs, targets), lr=lr, steps=6)


RECORD = (0, 3, 6)


@cache
def networks(which: str) -> Limit:
    convolves, gamma0, lr = CASES[which]
    inputs, targets = data(convolves=convolves)
    rows = inputs.mT if convolves else inputs[:, None]
    widths = {64: 256, 128: 128, 256: 48} if convolves else {96: 256, 192: 128, 384: 48}
    settings = {"lr": lr, "gamma0": gamma0, "record": RECORD, "generator": torch.Generator().manual_seed(1)}
    return stacks.limit(wiring(convolves=convolves), rows, targets[:, 0], widths, **settings)


def agrees(which: str, problem: dmft.Problem, sharpness: float = 0.1) -> None:
    neurons = 512 if CASES[which][0] else 2048
    assert_agrees(
        networks(which), dmft.solve(problem, dmft.solvers.InfiniteWidth(neurons, 4), record=RECORD), sharpness
    )


@pytest.mark.parametrize("which", CASES)
def test_limit_is_that_of_wide_networks(which: str) -> None:
    agrees(which, pose(which))
    assert moved(networks(which), "forward.2") > 0.04


class PerToken(nn.Module):
    """Normalises the channels of each position by themselves."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, h: Tensor) -> Tensor:
        return self.norm(h.mT).mT


WRONG = {
    "dense, without": ("dense, rich", lambda _: nn.Identity()),
    "per token": ("convolution", PerToken),
    "per token, rich": ("convolution, rich", PerToken),
    "per channel": ("convolution", lambda width: nn.InstanceNorm1d(width, affine=True)),
}


@pytest.mark.parametrize("which", WRONG)
def test_other_norms_are_not_it(which: str) -> None:
    case, norm = WRONG[which]
    with pytest.raises(AssertionError, match=r"forward\.2 is .* off"):
        agrees(case, pose(case, norm))


def test_widened_networks_keep_their_groups() -> None:
    problem = pose("dense, rich")
    answer = dmft.solve(problem, dmft.solvers.WideEnsemble((64, 128, 256), 6), record=RECORD)
    assert_agrees(networks("dense, rich"), answer, 0.3)
    pairs = dmft.solve(
        problem, dmft.solvers.FiniteWidth(8, 4), record=[0]
    )  # groups of two neurons, which become 1 and -1
    diagonal = pairs.layers[2].forward.array[0].diagonal()
    assert torch.allclose(diagonal, torch.tensor(math.tanh(1) ** 2), atol=2e-3)


@pytest.mark.parametrize(("law", "groups"), [("limit", 1), ("network", GROUPS)])
def test_only_the_limit_joins_groups(law: str, groups: int) -> None:
    twin = dmft.infinite_width(model(convolves=False), data(convolves=False)[0], neurons=101, law=law)
    norms = [module for module in twin.model.modules() if isinstance(module, nn.GroupNorm)]
    assert [norm.num_groups for norm in norms] == [groups, groups]
    assert twin.width == 100


class Joined(nn.Module):
    """Groups that are different branches."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(5, width), nn.Linear(5, width)
        self.norm, self.last = nn.GroupNorm(2, 2 * width), nn.Linear(2 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.norm(torch.cat([self.one(x), 3 * self.other(x)], 1))))


REFUSED = {
    "one channel per group": (
        lambda: model(norm=lambda w: nn.GroupNorm(w, w), convolves=True),
        "16 groups of one channel",
    ),
    "unlike": (Joined, "groups may be unlike"),
    "no gain": (
        lambda: model(norm=lambda w: nn.GroupNorm(2, w, affine=False), convolves=False),
        "without gain and shift",
    ),
    "more and larger ones at larger widths": (
        lambda: lambda width: model(width, norm=lambda w: nn.GroupNorm(4 if w < 480 else 12, w), convolves=False),
        "neither the number of groups nor their size",
    ),
}


@pytest.mark.parametrize("which", REFUSED)
def test_groups_whose_laws_differ_are_refused(which: str) -> None:
    make, reason = REFUSED[which]
    built = make()
    convolves = any(isinstance(module, nn.Conv1d) for module in getattr(built, "modules", list)())
    with pytest.raises(UnsupportedModelError, match=reason):
        dmft.infinite_width(built, data(convolves=convolves)[0], neurons=480)
    if which == "one channel per group":
        problem = pose("convolution", lambda width: nn.GroupNorm(width, width))
        with pytest.raises(UnsupportedModelError, match=reason):
            dmft.solve(problem, dmft.solvers.WideEnsemble((32, 64), 4))


def test_one_group_needs_no_gain() -> None:
    made = model(norm=lambda width: nn.GroupNorm(1, width, affine=False), convolves=True)
    inputs = data(convolves=True)[0]
    assert torch.isfinite(dmft.infinite_width(made, inputs, neurons=64).model(inputs)).all()


def test_functions_of_one_group_are_those_of_torch() -> None:
    """The oracle's norm, on numbers."""
    h = torch.randn(2, 3, TOKENS, 8, generator=torch.Generator().manual_seed(0))
    expected = F.group_norm(h.flatten(0, 1).mT, GROUPS).mT.unflatten(0, (2, 3))
    assert torch.allclose(grouped(h, torch.ones(()), torch.zeros(())), expected, atol=1e-5)
