"""Single trained numbers that features are computed with (ReZero, temperatures): their limit is that of wide networks."""

from __future__ import annotations

import math
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

RECORD, NETWORKS, TOKENS = (0, 4, 8), {64: 256, 128: 128, 256: 64}, 3


class Branch(nn.Module):
    """h + alpha W tanh(V h)."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.alpha = nn.Parameter(torch.full((1,), start))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.alpha * self.down(torch.tanh(self.up(h)))


class Positive(nn.Module):
    """h + alpha relu(V h), whose branch has a mean, so that a number learns that starts at zero."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.up, self.alpha = nn.Linear(width, width, bias=False), nn.Parameter(torch.tensor(start))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.alpha * torch.relu(self.up(h))


class Similar(nn.Module):
    """Attention by similarity with a temperature, a shift of everything, and outputs times exp(t) as in CLIP."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, width, bias=False), nn.Linear(width, width, bias=False)
        self.temperature, self.shift = nn.Parameter(torch.tensor(start)), nn.Parameter(torch.tensor([0.2]))
        self.last, self.log_scale = nn.Linear(width, 1, bias=False), nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        mixed = torch.softmax(h @ h.mT * self.temperature / h.shape[-1], -1) @ h
        return self.last(torch.tanh(self.second(mixed) + self.shift).mean(1)) * self.log_scale.exp()


def model(which: str, start: float, width: int = 16) -> nn.Module:
    first, last = nn.Linear(5, width, bias=False), nn.Linear(width, 1, bias=False)
    if which == "branch":
        return nn.Sequential(first, Branch(width, start), nn.Tanh(), last)
    if which == "positive":
        return nn.Sequential(first, nn.ReLU(), Positive(width, start), last)
    return Similar(width, start)


def wiring(which: str, start: float) -> stacks.Wiring:
    def branch(apply, x, v, _):
        h = apply("a", x)
        return torch.tanh(h + v["alpha"] * apply("down", torch.tanh(apply("up", h))))

    def positive(apply, x, v, _):
        h = torch.relu(apply("a", x))
        return h + v["alpha"] * torch.relu(apply("up", h))

    def similar(apply, x, v, _):
        h = torch.tanh(apply("a", x))
        mixed = torch.softmax(v["temperature"] * (h @ h.mT) / h.shape[-1], -1) @ h
        return torch.tanh(apply("b", mixed) + v["shift"])

    if which == "branch":
        return stacks.Wiring(("a", "up", "down"), branch, numbers={"alpha": start})
    if which == "positive":
        return stacks.Wiring(("a", "up"), positive, numbers={"alpha": start})
    return stacks.Wiring(("a", "b"), similar, numbers={"temperature": start, "shift": 0.2}, log_scale=0.3)


CASES = {
    ("branch", 0.5, 0.7): 0.5,
    ("branch", 0.5, 2.0): 0.1,
    ("positive", 0.0, 1.0): 0.25,
    ("positive", 0.0, 3.0): 0.1,
    ("similar", 4.0, 0.5): 0.25,
    ("similar", 4.0, 2.0): 0.06,
}
"""The rate of each model, start and gamma0."""

Case = tuple[str, float, float]


def data(which: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn((4, TOKENS, 5) if which == "similar" else (4, 5), generator=generator)
    targets = torch.sign(torch.randn(4, 1, generator=generator))
    return inputs, targets.abs() if which == "positive" else targets


def pose(case: Case, *, frozen: bool = False) -> dmft.Problem:
    which, start, gamma0 = case
    inputs, targets = data(which)
    made = model(which, start)
    for parameter in made.parameters():
        parameter.requires_grad_(not (frozen and parameter.numel() == 1))
    plan = dmft.parameterize(made, inputs, gamma0=gamma0, gain=1.0)
    return dmft.Problem.like(plan, dmft.Probe(inputs, targets), lr=CASES[case], steps=RECORD[-1])


@cache
def networks(case: Case) -> Limit:
    which, start, gamma0 = case
    inputs, targets = data(which)
    rows = inputs if which == "similar" else inputs[:, None]
    settings = {"lr": CASES[case], "gamma0": gamma0, "record": RECORD, "generator": torch.Generator().manual_seed(1)}
    return stacks.limit(wiring(which, start), rows, targets[:, 0], NETWORKS, **settings)


@pytest.mark.parametrize("case", CASES)
def test_limit_is_that_of_wide_networks(case: Case) -> None:
    answer = dmft.solve(pose(case), dmft.solvers.InfiniteWidth(1024, 4), record=RECORD)
    assert_agrees(networks(case), answer, 0.09)
    assert moved(networks(case), "forward.2") > 0.05


WRONG = dict(zip(CASES, ("fast", "frozen", "slow", "frozen", "frozen", "fast"), strict=True))
"""What is wrong with the numbers of each case."""


@pytest.mark.parametrize("case", CASES)
def test_numbers_learn_at_their_rate(case: Case) -> None:
    problem = pose(case, frozen=WRONG[case] == "frozen")
    if WRONG[case] != "frozen":
        lr = CASES[case] * (2 if WRONG[case] == "fast" else 0.5)
        names = [vector.name for vector in problem.network.shown.vectors]
        problem = problem.trained(exceptions={name: {**problem.training.numbers, "lr": lr} for name in names})
    answer = dmft.solve(problem, dmft.solvers.InfiniteWidth(1024, 4), record=RECORD)
    with pytest.raises(AssertionError, match=r"(backward\.\d|outputs) is .* off"):
        assert_agrees(networks(case), answer, 0.09)


def test_a_branch_of_weights_stays_at_zero_but_for_the_width() -> None:
    """Both sides of alpha W are without gradient in the limit; networks leave zero by 1/sqrt(N)."""
    inputs, targets = data("branch")
    sizes = []
    for width in (32, 512):
        found = []
        for seed in range(24):
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                plan = dmft.parameterize(model("branch", 0.0, width), inputs, gamma0=2.0, gain=1.0)
            optimizer = torch.optim.SGD(plan.param_groups(0.1))
            for _ in range(8):
                optimizer.zero_grad()
                nn.functional.mse_loss(plan.model(inputs), targets).backward()
                optimizer.step()
            found.append(float(plan.model[1].alpha.detach()))
        sizes.append(math.sqrt(sum(one**2 for one in found) / len(found)))
    # Each root mean square is known to 1 / sqrt(2 * 24), so their ratio to a fifth of itself.
    assert abs(math.log(sizes[0] / sizes[1] / 4)) < 5 * 0.2
    assert abs(math.log(sizes[0] / sizes[1])) > 2 * 0.2


def test_widened_networks_start_alike() -> None:
    case = ("similar", 4.0, 2.0)
    limit, problem = networks(case), pose(case)
    assert_agrees(limit, dmft.solve(problem, dmft.solvers.WideEnsemble((64, 128, 256), 6), record=RECORD), 0.3)
    narrow = limit.estimates[0]
    answer = dmft.solve(problem, dmft.solvers.FiniteWidth(narrow.width, 24), record=RECORD)
    for name, scores in z_scores(narrow, observables(answer), observables(answer.stderr)).items():
        assert float(scores.abs().max()) <= 5, name


@pytest.mark.parametrize("which", ["positive", "similar"])
def test_a_first_step_by_chance_is_told(which: str) -> None:
    inputs, targets = data(which)
    plan = dmft.parameterize(model(which, 0.5), inputs)
    problem = dmft.Problem.like(plan, dmft.Probe(inputs, targets), lr=0.05, steps=2, optimizer="adam")
    names = {"positive": "2.alpha", "similar": "temperature, shift, log_scale"}[which]
    with pytest.warns(UserWarning, match=rf"first gradient of {names} is zero in the limit"):
        dmft.solve(problem, dmft.solvers.InfiniteWidth(128, 2))


@pytest.mark.parametrize("width", [32, 512])
def test_networks_of_any_width_make_that_step_up_or_down(width: int, seeded: None) -> None:
    inputs, targets = data("positive")
    moves = []
    for _ in range(16):
        plan = dmft.parameterize(made := model("positive", 0.5, width), inputs)
        optimizer = torch.optim.Adam(plan.param_groups(0.05, optimizer="adam"))
        nn.functional.mse_loss(made(inputs), targets).backward()
        optimizer.step()
        moves.append(float(made[2].alpha.detach()) - 0.5)
    assert all(math.isclose(abs(move), 0.05, rel_tol=1e-3) for move in moves)
    assert min(moves) < 0 < max(moves)


def test_a_run_is_predicted_from_its_start(seeded: None) -> None:
    inputs, targets = data("similar")
    plan = dmft.parameterize(model("similar", 4.0, 32), inputs, gain=1.0)
    recorder, optimizer = dmft.Recorder(plan, dmft.Probe(inputs, targets)), torch.optim.SGD(plan.param_groups(0.2))
    with recorder.attach(optimizer):
        for _ in range(4):
            optimizer.zero_grad()
            nn.functional.mse_loss(plan.model(inputs), targets).backward()
            optimizer.step()
    assert abs(float(plan.model.log_scale.detach()) - 0.3) > 0.003
    assert recorder.training.starts == {}
    before = dmft.Problem.like(
        dmft.parameterize(model("similar", 4.0), inputs, gain=1.0), recorder.probe, lr=0.2, steps=4
    )
    for solver in (dmft.solvers.InfiniteWidth(128, 1), dmft.solvers.FiniteWidth(32, 4)):
        trained = float(plan.model.log_scale.detach())
        assert torch.equal(dmft.solve(recorder.problem(), solver).outputs, dmft.solve(before, solver).outputs)
        assert float(plan.model.log_scale.detach()) == trained


def test_a_number_that_was_changed_is_named(seeded: None) -> None:
    inputs, targets = data("branch")
    plan = dmft.parameterize(model("branch", 0.5), inputs)
    with torch.no_grad():
        plan.model[1].alpha.mul_(2)
    recorder, optimizer = dmft.Recorder(plan, dmft.Probe(inputs, targets)), torch.optim.SGD(plan.param_groups(0.1))
    with recorder.attach(optimizer):
        optimizer.step()
    assert "which were 0.5" in recorder.training.starts["1.alpha"]


@pytest.mark.parametrize("given", ["model", "factory", "plan"])
def test_twins_have_a_number_of_their_own(given: str) -> None:
    made, inputs = model("branch", 0.5), data("branch")[0]
    source = {
        "model": made,
        "factory": lambda width: model("branch", 0.5, width),
        "plan": dmft.parameterize(made, inputs),
    }
    twin = dmft.infinite_width(source[given], inputs, neurons=240)
    assert twin.rule("1.alpha").role == "inner"
    with torch.no_grad():
        twin.model[1].alpha.add_(1)
    assert torch.equal(twin.model[1].alpha, torch.tensor([1.5]))
    assert torch.equal(made[1].alpha, torch.tensor([0.5]))


# Roles, rates and measurement.


class Odd(nn.Module):
    """Numbers in many places: on the data, in a gate, in a power, in a division, of outputs."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, width), nn.Linear(width, width), nn.Linear(width, 2)
        starts = {"data": 1.5, "gate": 0.3, "size": 2.0, "both": 0.7, "offset": 0.1, "added": 0.2}
        for name, start in starts.items():
            self.register_parameter(name, nn.Parameter(torch.tensor([start])))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(self.data * x))
        gate = torch.sigmoid(self.gate.view(1, 1))
        h = gate * h + (1 - gate) * torch.tanh(self.second(h + self.added) / self.size.exp())
        return self.both * self.last(h * self.both.abs()) + 2 * self.offset


@pytest.mark.parametrize("gamma0", [0.5, 2.0])
@pytest.mark.parametrize("which", ["branch", "positive", "similar", "odd"])
def test_one_instance_tells_what_two_widths_do(which: str, gamma0: float) -> None:
    def factory(width: int) -> nn.Module:
        return Odd(width) if which == "odd" else model(which, 0.5, width)

    inputs = data(which)[0]
    plans = [dmft.parameterize(factory(16), inputs, gamma0=gamma0, wider=wider) for wider in (None, factory)]
    rates = [{one.name: (one.role, one.lr, one.adam_lr, one.gradient) for one in plan.rules} for plan in plans]
    assert rates[0] == rates[1]
    inner = {vector.name for vector in plans[0].architecture.vectors if vector.role == "inner"}
    assert all(rates[0][name][1:] == (gamma0**2, gamma0, 1 / gamma0) for name in inner)
    expected = {"similar": {"temperature", "shift"}, "odd": {"data", "gate", "size", "both", "added"}}
    assert len(inner) == 1 if which not in expected else inner == expected[which]
    assert plans[1].architecture.is_traced


@pytest.mark.parametrize("which", ["similar", "odd"])
def test_their_share_of_the_tangent_kernel_is_that_of_the_jacobian(which: str) -> None:
    inputs = data(which)[0].double()
    plan = dmft.parameterize((Odd() if which == "odd" else model(which, 0.5)).double(), inputs)
    kernels = [dmft.empirical_ntk(plan, inputs, method=method) for method in ("layerwise", "jacobian")]
    assert torch.allclose(*kernels, rtol=1e-10, atol=0)
    targets = inputs.flatten(1)[:, : 2 if which == "odd" else 1]
    recorded = dmft.Recorder(plan, dmft.Probe(inputs, targets)).record()
    assert torch.allclose(recorded.ntk.array[0], kernels[1], rtol=1e-10, atol=0)
    beside = sum(layer.ntk.array[0] for layer in recorded.layers)
    assert float((kernels[1] - beside).norm()) > 0.001 * float(beside.norm())


class Length(nn.Module):
    """Features of a fixed length, which no number makes up for at every width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.tensor(float(width) ** 0.5))

    def forward(self, h: Tensor) -> Tensor:
        return self.g * h / h.norm(dim=-1, keepdim=True)


class Scores(nn.Module):
    """Scores over the width times a number that was stored as 1/sqrt(width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(float(width) ** -0.5))

    def forward(self, h: Tensor) -> Tensor:
        h = h[:, None] * torch.ones(2, 1)
        return (torch.softmax(h @ h.mT * self.scale, -1) @ h).mean(1)


def around(middle: Callable[[int], nn.Module]) -> Callable[[int], nn.Module]:
    return lambda width: nn.Sequential(nn.Linear(5, width), nn.Tanh(), middle(width), nn.Linear(width, 1))


REFUSED = {
    "of the width": (lambda width: model("branch", width**-0.5, width), "but at another width at"),
    "a length": (around(Length), "norm` over a width"),
    "undivided scores": (around(Scores), "is not divided by it"),
}


@pytest.mark.parametrize("which", REFUSED)
def test_numbers_of_the_width_are_refused(which: str) -> None:
    factory, reason = REFUSED[which]
    with pytest.raises(UnsupportedModelError, match=reason):
        dmft.infinite_width(factory, data("branch")[0], neurons=240)


@pytest.mark.parametrize("depth", ["1/sqrt(L)", "1/L"])
def test_a_number_at_the_end_of_a_branch_holds_its_multiplier(depth: str) -> None:
    made = nn.Sequential(nn.Linear(5, 16), *(Branch(16, 0.5) for _ in range(4)), nn.Linear(16, 1))
    plan = dmft.parameterize(made, data("branch")[0], depth=depth)
    assert plan.rule("1.alpha").part == "ends a branch"
    start = 0.5 * 4 ** (-0.5 if depth == "1/sqrt(L)" else -1)
    twin = dmft.infinite_width(plan, data("branch")[0], neurons=64)
    for one in (plan, twin):
        assert math.isclose(float(one.model[1].alpha.detach()), start, rel_tol=1e-6)
        assert math.isclose(one.rule("1.alpha").lr, 1 / 4)
