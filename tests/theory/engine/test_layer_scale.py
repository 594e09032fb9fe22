"""Layer scales, one trained number per neuron on a branch: their limit is that of wide networks; other starts are refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import torch_dmft as dmft
from tests.reference.ensembles import Limit, observables, z_scores
from tests.theory.engine import stacks
from tests.theory.validation.agreement import assert_agrees, moved
from torch_dmft.core.errors import UnsupportedModelError

RECORD, NETWORKS = (0, 4, 8), {64: 256, 128: 128, 256: 64}
CASES = {(0.5, 0.1): 0.25, (2.0, 0.1): 0.1, (2.0, 1.0): 0.04}
"""The rate of each gamma0 and start."""


class Branch(nn.Module):
    """h + scale * W tanh(V h)."""

    def __init__(self, width: int, start: float, *, trained: bool = True) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.scale = nn.Parameter(torch.full((width,), start), trained)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.scale * self.down(torch.tanh(self.up(h)))


def model(width: int = 16, start: float = 0.1, *, trained: bool = True, branches: int = 1) -> nn.Module:
    blocks = [Branch(width, start, trained=trained) for _ in range(branches)]
    return nn.Sequential(nn.Linear(5, width, bias=False), *blocks, nn.Tanh(), nn.Linear(width, 1, bias=False))


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 5, generator=generator), torch.sign(torch.randn(4, 1, generator=generator))


def pose(case: tuple[float, float], *, trained: bool = True, start: float | None = None) -> dmft.Problem:
    inputs, targets = data()
    made = model(start=case[1] if start is None else start, trained=trained)
    plan = dmft.parameterize(made, inputs, gamma0=case[0], gain=1.0)
    return dmft.Problem.like(plan, dmft.Probe(inputs, targets), lr=CASES[case], steps=RECORD[-1])


@cache
def networks(case: tuple[float, float]) -> Limit:
    def forward(apply, x, v, _):
        h = apply("a", x)
        return torch.tanh(h + v["scale"] * apply("down", torch.tanh(apply("up", h))))

    inputs, targets = data()
    wiring = stacks.Wiring(("a", "up", "down"), forward, {"scale": case[1]})
    settings = {"lr": CASES[case], "gamma0": case[0], "record": RECORD, "generator": torch.Generator().manual_seed(1)}
    return stacks.limit(wiring, inputs[:, None], targets[:, 0], NETWORKS, **settings)


@pytest.mark.parametrize("case", CASES)
def test_limit_is_that_of_wide_networks(case: tuple[float, float]) -> None:
    answer = dmft.solve(pose(case), dmft.solvers.InfiniteWidth(1024, 4), record=RECORD)
    assert_agrees(networks(case), answer, 0.09)
    assert moved(networks(case), "forward.3") > 0.2


@pytest.mark.parametrize("case", CASES)
def test_scales_learn(case: tuple[float, float]) -> None:
    answer = dmft.solve(pose(case, trained=False), dmft.solvers.InfiniteWidth(1024, 4), record=RECORD)
    with pytest.raises(AssertionError, match=r"ntk is .* off"):
        assert_agrees(networks(case), answer, 0.09)


def test_widened_networks_start_alike() -> None:
    case = (2.0, 1.0)
    limit, problem = networks(case), pose(case)
    assert_agrees(limit, dmft.solve(problem, dmft.solvers.WideEnsemble((64, 128, 256), 6), record=RECORD), 0.3)
    narrow = limit.estimates[0]
    answer = dmft.solve(problem, dmft.solvers.FiniteWidth(narrow.width, 24), record=RECORD)
    for name, scores in z_scores(narrow, observables(answer), observables(answer.stderr)).items():
        assert float(scores.abs().max()) <= 5, name


def test_a_run_is_predicted_from_its_start() -> None:
    inputs, targets = data()
    plan = dmft.parameterize(model(32), inputs, gain=1.0)
    recorder, optimizer = dmft.Recorder(plan, dmft.Probe(inputs, targets)), torch.optim.SGD(plan.param_groups(0.2))
    with recorder.attach(optimizer):
        for _ in range(4):
            optimizer.zero_grad()
            nn.functional.mse_loss(plan.model(inputs), targets).backward()
            optimizer.step()
    assert float((plan.model[1].scale - 0.1).abs().mean()) > 0.03
    assert recorder.training.starts == {}
    before = dmft.Problem.like(dmft.parameterize(model(), inputs, gain=1.0), recorder.probe, lr=0.2, steps=4)
    solver = dmft.solvers.InfiniteWidth(128, 1)
    assert torch.equal(dmft.solve(recorder.problem(), solver).outputs, dmft.solve(before, solver).outputs)
    plan.model.requires_grad_(False)  # frozen since, to be evaluated
    assert torch.equal(dmft.solve(recorder.problem(), solver).outputs, dmft.solve(before, solver).outputs)
    wide = dmft.solvers.FiniteWidth(32, 4)
    assert torch.equal(dmft.solve(recorder.problem(), wide).outputs, dmft.solve(before, wide).outputs)


@pytest.mark.parametrize("given", ["model", "factory", "plan"])
def test_twins_have_the_start(given: str) -> None:
    made = {"model": model(), "factory": model, "plan": dmft.parameterize(model(), data()[0])}[given]
    twin = dmft.infinite_width(made, data()[0], neurons=240)
    assert twin.model[1].scale.shape == (240,)
    assert torch.equal(twin.model[1].scale, torch.full((240,), 0.1))
    assert {rule.name: rule.role for rule in twin.rules}["1.scale"] == "vector"


def test_branches_of_many_are_scaled_at_their_scale() -> None:
    plan = dmft.parameterize(model(branches=4), data()[0], depth="1/sqrt(L)")
    twin = dmft.infinite_width(plan, data()[0], neurons=64)
    for index in range(1, 5):
        for one in (plan.model, twin.model):
            assert torch.allclose(one[index].scale, torch.tensor(0.05))


class Channels(nn.Module):
    """Scales of channels, as ConvNeXt has them, used twice, and of rows of tokens."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(2, width, 3), nn.Conv1d(width, width, 3, padding=1)
        self.scale, self.last = nn.Parameter(torch.full((width, 1), 0.5)), nn.Linear(width, 2)
        self.other = nn.Parameter(torch.full((width,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h = h + self.scale * torch.tanh(self.second(h))
        h = h + torch.sin(h) * self.scale
        return self.last((torch.mul(h.mT, self.other) ** 2).mean(1))


def test_their_share_of_the_tangent_kernel_is_that_of_the_jacobian() -> None:
    made, inputs = Channels().double(), torch.randn(3, 2, 7, dtype=torch.float64)
    plan = dmft.parameterize(made, inputs)
    assert [vector.name for vector in plan.architecture.vectors] == ["scale", "other"]
    kernels = [dmft.empirical_ntk(plan, inputs, method=method) for method in ("layerwise", "jacobian")]
    assert torch.allclose(*kernels, rtol=1e-10, atol=0)
    recorded = dmft.Recorder(plan, dmft.Probe(inputs, torch.ones(3, 2, dtype=torch.float64))).record()
    assert torch.allclose(recorded.ntk.array[0], kernels[1], rtol=1e-10, atol=0)
    beside = sum(layer.ntk.array[0] for layer in recorded.layers)
    assert float((kernels[1] - beside).norm()) > 0.01 * float(beside.norm())


ARRANGED: dict[str, Callable[[Tensor], Tensor]] = {
    "indexed": lambda scale: scale[:, None],
    "ConvNeXt's": lambda scale: scale.reshape(1, -1, 1),
    "view": lambda scale: scale.view(1, scale.shape[0], 1),
    "unsqueeze": lambda scale: scale.unsqueeze(-1),
    "unflatten": lambda scale: scale.unflatten(0, (-1, 1)),
    "transpose": lambda scale: scale.unsqueeze(0).mT,
}


class Arranged(nn.Module):
    """Channels whose branch has a scale in some shape; ``None``: of the shape in which it meets them."""

    def __init__(self, arrange: Callable[[Tensor], Tensor] | None, width: int = 16, start: float = -0.5) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(2, width, 1), nn.Conv1d(width, width, 1)
        self.arrange, self.last = arrange, nn.Linear(width, 1)
        self.scale = nn.Parameter(torch.full((width, 1) if arrange is None else (width,), start))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        scale = self.scale if self.arrange is None else self.arrange(self.scale)
        return self.last(torch.tanh(h + torch.tanh(self.second(h)).mul(scale)).mean(2))


def arranged(name: str | None, start: float = -0.5) -> dmft.Problem:
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(4, 2, 3, generator=generator).double(), data()[1].double()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = Arranged(None if name is None else ARRANGED[name], start=start).double()
    plan = dmft.parameterize(made, inputs, gain=1.0, generator=torch.Generator().manual_seed(0))
    return dmft.Problem.like(plan, dmft.Probe(inputs, targets), lr=0.2, steps=4)


@pytest.mark.parametrize("name", ARRANGED)
def test_a_scale_in_another_shape_is_the_same(name: str) -> None:
    problem, plain = arranged(name), arranged(None)
    assert problem.network.shown.vectors[0].start == -0.5
    for solver in (dmft.solvers.InfiniteWidth(128, 1), dmft.solvers.FiniteWidth(32, 4)):
        ours, theirs = (observables(dmft.solve(one, solver)) for one in (problem, plain))
        for observable, value in theirs.items():
            torch.testing.assert_close(ours[observable], value, rtol=1e-9, atol=1e-9)
    other = dmft.solve(arranged(name, 0.5), dmft.solvers.InfiniteWidth(128, 1))
    assert not torch.allclose(other.ntk.array, ours["ntk"].to(other.ntk.array), rtol=1e-3)


@pytest.mark.parametrize("given", ["model", "factory", "plan"])
def test_twins_have_the_start_in_its_shape(given: str) -> None:
    inputs = torch.ones(3, 2, 4, device="cpu")
    made = Arranged(ARRANGED["ConvNeXt's"])
    sources = {"model": made, "factory": lambda width: Arranged(ARRANGED["ConvNeXt's"], width)}
    source = dmft.parameterize(made, inputs) if given == "plan" else sources[given]
    twin = dmft.infinite_width(source, inputs, neurons=240)
    assert torch.equal(twin.model.scale, torch.full((240,), -0.5))
    wide = dmft.infinite_width(lambda width: Arranged(ARRANGED["view"], width, start=0.5), inputs, neurons=240)
    assert torch.equal(wide.model.scale, torch.full((240,), 0.5))


def unequal() -> nn.Module:
    made = model()
    with torch.no_grad():
        made[1].scale[0] = 0.2
    return made


class OfData(nn.Module):
    """Scales of the data's features."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.net = nn.Parameter(torch.ones(5)), model()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.scale * x)


class Flat(nn.Module):
    """A network of channels on rows."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x[:, :4].unflatten(1, (2, 2)))


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "unequal": (unequal, r"1: 1\.scale starts at numbers that differ"),
    "of the width": (lambda: lambda width: model(width, start=width**-0.5), "but at another width at"),
    "of the width, in another shape": (
        lambda: lambda width: Flat(Arranged(ARRANGED["view"], width, width**-0.5)),
        "but at another width at",
    ),
    "of the data": (OfData, "scale"),
}


@pytest.mark.parametrize("which", REFUSED)
def test_other_starts_are_refused(which: str) -> None:
    make, reason = REFUSED[which]
    with pytest.raises(UnsupportedModelError, match=reason):
        dmft.infinite_width(make(), data()[0], neurons=240)


def test_a_scale_that_was_changed_is_named() -> None:
    inputs, targets = data()
    plan = dmft.parameterize(model(), inputs)
    with torch.no_grad():
        plan.model[1].scale.mul_(2)
    recorder, optimizer = dmft.Recorder(plan, dmft.Probe(inputs, targets)), torch.optim.SGD(plan.param_groups(0.1))
    with recorder.attach(optimizer):
        optimizer.step()
    assert "which were 0.1" in recorder.training.starts["1.scale"]
