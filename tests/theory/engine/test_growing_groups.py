"""GroupNorm whose groups have a fixed size and grow in number, and beside heads: limits are those of wide networks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import torch_dmft as dmft
from tests.reference.ensembles import Limit, observables
from tests.theory.engine import stacks
from tests.theory.engine.test_group_norm import AFFINE, grouped
from tests.theory.validation.agreement import assert_agrees, moved
from torch_dmft.architecture.widen import widened
from torch_dmft.core.errors import InvalidInputError, UnsupportedModelError

TOKENS, SIZE, RECORD = 3, 4, (0, 3, 6)


class Dense(nn.Module):
    """Two layers, each with a norm over groups."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, width, bias=False), nn.Linear(width, width, bias=False)
        self.norms = nn.ModuleList(nn.GroupNorm(groups, width) for _ in range(2))
        self.last = nn.Linear(width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.norms[0](self.first(x)))
        return self.last(torch.tanh(self.norms[1](self.second(h))))


class Attentive(nn.Module):
    """A stream of tokens, whose norm over groups is read by attention."""

    def __init__(self, width: int, groups: int, *, heads: int | None) -> None:
        super().__init__()
        self.heads, self.first, self.norm = heads, nn.Linear(5, width, bias=False), nn.GroupNorm(groups, width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.last = nn.Linear(width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        read = self.norm(h.mT).mT
        layout = (-1, SIZE) if self.heads is None else (self.heads, -1)
        q, k, v = (layer(read).unflatten(-1, layout).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, scale=1 / q.shape[-1])
        return self.last(torch.tanh(h + self.out(mixed.transpose(1, 2).flatten(2))).mean(1))


def number(kind: str, width: int) -> int:
    """How many groups there are at a width; of rows, whose groups have no positions to average over, larger ones."""
    return width // (2 * SIZE if kind == "small groups" else SIZE) if kind.endswith("small groups") else 4


def model(kind: str, width: int = 16, groups: int | None = None) -> nn.Module:
    groups = number(kind, width) if groups is None else groups
    if kind == "small groups":
        return Dense(width, groups)
    return Attentive(width, groups, heads=2 if kind.startswith("heads") else None)


def wiring(kind: str) -> stacks.Wiring:
    def dense(apply, x, v, _):
        h = apply("a", x)
        h = torch.tanh(grouped(h, v["gain a"], v["shift a"], number(kind, h.shape[-1])))
        return torch.tanh(grouped(apply("b", h), v["gain b"], v["shift b"], number(kind, h.shape[-1])))

    def attentive(apply, x, v, _):
        h = apply("a", x)
        width = h.shape[-1]
        read = grouped(h, v["gain a"], v["shift a"], number(kind, width))
        heads = 2 if kind.startswith("heads") else width // SIZE
        q, k, u = (apply(name, read).unflatten(-1, (heads, -1)).transpose(2, 3) for name in "qkv")
        weights = torch.softmax(q @ k.mT / q.shape[-1], -1)
        return torch.tanh(h + apply("o", (weights @ u).transpose(2, 3).flatten(3)))

    if kind == "small groups":
        return stacks.Wiring(("a", "b"), dense, AFFINE)
    return stacks.Wiring(("a", "q", "k", "v", "o"), attentive, {"gain a": 1.0, "shift a": 0.0})


CASES = {
    ("small groups", 0.5): 0.2,
    ("small groups", 2.0): 0.05,
    ("heads", 0.5): 0.2,
    ("heads", 2.0): 0.05,
    ("small heads", 2.0): 0.05,
    ("small heads, small groups", 0.5): 0.2,
    ("small heads, small groups", 2.0): 0.05,
}
"""The rate of each kind and gamma0."""

Case = tuple[str, float]


def data(kind: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn((4, 5) if kind == "small groups" else (4, TOKENS, 5), generator=generator)
    return inputs, torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])


def pose(case: Case, groups: Callable[[int], int] | None = None) -> dmft.Problem:
    kind, gamma0 = case
    inputs, targets = data(kind)

    def factory(width: int) -> nn.Module:
        return model(kind, width, None if groups is None else groups(width))

    plan = dmft.parameterize(factory(16), inputs, gamma0=gamma0, gain=1.0, wider=factory)
    return dmft.Problem.like(plan, dmft.Probe(inputs, targets), lr=CASES[case], steps=RECORD[-1])


@cache
def networks(case: Case) -> Limit:
    kind, gamma0 = case
    inputs, targets = data(kind)
    rows = inputs[:, None] if kind == "small groups" else inputs
    settings = {"lr": CASES[case], "gamma0": gamma0, "record": RECORD, "generator": torch.Generator().manual_seed(1)}
    return stacks.limit(wiring(kind), rows, targets[:, 0], {64: 256, 128: 128, 256: 64}, **settings)


@pytest.mark.parametrize("case", CASES)
def test_limit_is_that_of_wide_networks(case: Case) -> None:
    answer = dmft.solve(pose(case), dmft.solvers.InfiniteWidth(1024, 4), record=RECORD)
    assert_agrees(networks(case), answer, 0.2 if case[0] == "heads" else 0.1)
    assert moved(networks(case), "forward.2") > 0.02


@pytest.mark.parametrize("case", CASES)
def test_number_and_size_of_groups_matter(case: Case) -> None:
    """Those of one instance are taken for as many at every width, which these are not, or the other way round."""
    kind = case[0]
    other = (lambda width: 4) if kind.endswith("small groups") else (lambda width: width // SIZE)
    answer = dmft.solve(pose(case, other), dmft.solvers.InfiniteWidth(1024, 4), record=RECORD)
    with pytest.raises(AssertionError, match=r"forward\.[12] is .* off"):
        assert_agrees(networks(case), answer, 0.2)


def test_widened_networks_have_groups_of_that_size() -> None:
    case = ("small heads, small groups", 2.0)
    problem = pose(case)
    answer = dmft.solve(problem, dmft.solvers.WideEnsemble((64, 128, 256), 6), record=RECORD)
    assert_agrees(networks(case), answer, 0.4)
    for width in (24, 64):
        wide = widened(problem.network.plan.model, problem.network.shown, width)
        assert (wide.norm.num_groups, wide.norm.num_channels) == (width // SIZE, width)


@pytest.mark.parametrize(("given", "groups"), [("model", 1), ("factory", 60), ("plan", 60)])
def test_what_two_widths_tell_is_used(given: str, groups: int) -> None:
    kind = "small heads, small groups"
    made, inputs = model(kind), data(kind)[0]
    sources = {"model": made, "factory": lambda width: model(kind, width)}
    source = dmft.parameterize(made, inputs, wider=sources["factory"]) if given == "plan" else sources[given]
    twin = dmft.infinite_width(source, inputs, neurons=240)
    assert twin.model.norm.num_groups == groups
    assert twin.architecture.groups == ({} if given == "model" else {"norm": SIZE})


def test_neurons_are_whole_groups() -> None:
    with pytest.raises(InvalidInputError, match=r"divisible into heads and groups.*neurons=104"):
        dmft.infinite_width(lambda width: model("small groups", width), data("small groups")[0], neurons=100)


class Channels(nn.Module):
    """A convolution and a group for each channel, as a norm over instances has them."""

    def __init__(self, width: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(2, width, 1), nn.Conv1d(width, width, 3, padding=1)
        self.norms, self.last = nn.ModuleList(norm(width) for _ in range(2)), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norms[0](self.first(x)))
        return self.last(torch.tanh(self.norms[1](self.second(h)) + h).mean(2))


def instances(norm: Callable[[int], nn.Module]) -> dmft.Problem:
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(4, 2, 5, generator=generator).double(), data("heads")[1].double()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = Channels(16, norm).double()
    settings = {"generator": torch.Generator().manual_seed(0), "wider": lambda width: Channels(width, norm)}
    plan = dmft.parameterize(made, inputs, gamma0=2.0, gain=1.0, **settings)
    return dmft.Problem.like(plan, dmft.Probe(inputs, targets), lr=0.05, steps=4)


def test_a_group_for_each_channel_is_a_norm_over_instances() -> None:
    one, other = instances(lambda w: nn.GroupNorm(w, w)), instances(lambda w: nn.InstanceNorm1d(w, affine=True))
    assert one.network.shown.groups == {"norms.0": 1, "norms.1": 1}
    for solver in (dmft.solvers.FiniteWidth(32, 4), dmft.solvers.InfiniteWidth(256, 4)):
        ours, theirs = dmft.solve(one, solver), dmft.solve(other, solver)
        if isinstance(solver, dmft.solvers.FiniteWidth):
            torch.testing.assert_close(ours.outputs, theirs.outputs, rtol=1e-9, atol=1e-9)
        error = (ours.stderr.outputs**2 + theirs.stderr.outputs**2).sqrt()
        assert float(((ours.outputs - theirs.outputs).abs() - 5 * error).max()) <= 0


def test_a_norm_over_instances_has_the_limit_of_its_networks() -> None:
    problem = instances(lambda w: nn.InstanceNorm1d(w, affine=True))
    theory = dmft.solve(problem, dmft.solvers.InfiniteWidth(1024, 4), record=[0, 4])
    networks = dmft.solve(problem, dmft.solvers.WideEnsemble((24, 48, 96), 16), record=[0, 4])
    for name in ("outputs", "losses", "ntk"):
        ours, theirs = observables(theory)[name], observables(networks)[name]
        error = (observables(theory.stderr)[name] ** 2 + observables(networks.stderr)[name] ** 2).sqrt()
        assert float(((ours - theirs) / error.clamp_min(1e-9)).abs().max()) < 5
        assert float(error.square().mean().sqrt() / ours.square().mean().sqrt()) < 0.2, name


def test_running_statistics_of_instances_are_refused() -> None:
    problem = instances(lambda w: nn.InstanceNorm1d(w, affine=True, track_running_stats=True))
    for refuse in (problem.network.require_law, problem.network.require_widenable):
        with pytest.raises(UnsupportedModelError, match=r"norms.*: a norm over instances that has running statistics"):
            refuse()


class Decaying(nn.Module):
    """Heads with decays of their own, whose outputs are normalised head by head, as in RetNet."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(5, width) for _ in range(3))
        self.norm, self.last = nn.GroupNorm(2, width), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        decay = torch.tensor([0.5, 2.0]).reshape(2, 1, 1)
        mixed = (torch.softmax(q @ k.mT / q.shape[-1] * decay, -1) @ v).transpose(1, 2).flatten(2)
        return self.last(torch.tanh(self.norm(mixed.mT)).mT.mean(1))


def test_heads_that_are_groups_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"GroupNorm of a width that is laid out in heads"):
        dmft.infinite_width(Decaying(), data("heads")[0], neurons=64)
