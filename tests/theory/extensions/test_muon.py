"""Muon: the engine against brute force on one network, against trained networks, and against torch.optim.Muon's own loop."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_dmft as dmft
from tests.reference.ensembles import Limit, observables, z_scores
from tests.reference.muon import COEFFICIENTS, Muon
from tests.theory.extensions.written_down import write_down
from torch_dmft.core.errors import InvalidInputError, UnsupportedProblemError
from torch_dmft.core.sight import NUMBERS
from torch_dmft.theory import solvers
from torch_dmft.theory.choose import choose
from torch_dmft.theory.engine import course
from torch_dmft.theory.engine.course import Course
from torch_dmft.theory.engine.matrix import GaussianMatrix
from torch_dmft.theory.engine.networks import network_of
from torch_dmft.theory.engine.posed import twin_of
from torch_dmft.theory.engine.training import train_and_record
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.solvers import InfiniteWidth

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(5, 6, generator=GENERATOR)
TARGETS = torch.tensor([[1.0], [-1.0], [1.0], [-1.0], [-1.0]])
RECORD = [0, 4, 8]

needs_torchs = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")


def pose(case: Muon, **settings: Any) -> Problem:
    """What the oracle trains, as a problem."""
    return Problem.mlp(
        case.inputs,
        case.targets,
        depth=len(case.ratios),
        width_ratios=case.ratios,
        **{
            "gamma0": case.gamma0,
            "lr": case.lr,
            "steps": case.steps,
            "momentum": case.momentum,
            "nesterov": case.nesterov,
            "weight_decay": case.decay,
            "optimizer": "muon",
            "others": {"optimizer": "sgd", "lr": case.sgd_lr},
            "exact": case.exact,
            **settings,
        },
    )


# One network


@pytest.fixture
def written_down(monkeypatch: pytest.MonkeyPatch) -> dict[GaussianMatrix, Tensor]:
    return write_down(monkeypatch)


def brute_force(problem: Problem, weights: list[Tensor]) -> Tensor:
    """Outputs of every step of a network whose hidden matrices Muon moves as they are; ``weights`` in torch's own units."""
    training, steps = problem.training, []
    widths = [len(weight) for weight in weights[:-1]]
    scales = [weight.shape[1] ** -0.5 for weight in weights[:-1]] + [1 / (problem.gamma0 * widths[-1])]
    weights = [weight.clone().requires_grad_() for weight in weights]
    buffers = [torch.zeros_like(weight) for weight in weights]
    for step in range(problem.steps + 1):
        x = problem.tensor
        for weight in weights[:-1]:
            x = torch.tanh(x @ weight.T)
        outputs = x @ weights[-1].T
        steps.append(outputs.detach())
        slopes = torch.autograd.grad((outputs - problem.targets).square().mean(), weights)
        if step == problem.steps:
            return torch.stack(steps)
        with torch.no_grad():
            for index, (weight, slope) in enumerate(zip(weights, slopes, strict=True)):
                if index in (0, len(weights) - 1):
                    rate = 0.1 * scales[index] ** 2 * problem.gamma0**2 * widths[-1]
                    weight -= rate * slope
                    continue
                beta = float(training.number("momentum"))
                buffers[index] = beta * buffers[index] + (1 - beta) * slope
                ahead = beta * buffers[index] + (1 - beta) * slope if training.number("nesterov") else buffers[index]
                if training.number("exact"):
                    left, values, right = torch.linalg.svd(ahead, full_matrices=False)
                    factor = (left * (values > 1e-12 * values[0])) @ right
                else:
                    a, b, c = COEFFICIENTS
                    factor = ahead / ahead.norm()
                    for _ in range(5):
                        gram = factor @ factor.T
                        factor = a * factor + b * gram @ factor + c * gram @ gram @ factor
                lr = training.at("lr", step)
                weight *= 1 - lr * float(training.number("weight_decay"))
                weight -= lr * problem.gamma0 * math.sqrt(weight.shape[0] / weight.shape[1]) * factor
    raise AssertionError


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize(("gamma0", "ratios"), [(0.5, (1.0, 1.0)), (2.0, (2.0, 0.5, 1.0))])
def test_on_cores_it_moves_the_whole_matrix(
    gamma0: float,
    ratios: tuple[float, ...],
    nesterov: bool,
    exact: bool,
    written_down: dict[GaussianMatrix, Tensor],
    generator: torch.Generator,
) -> None:
    # Gradients of more steps are nearly parallel, and a polar factor magnifies the rounding in what is left of them.
    settings = {"nesterov": nesterov, "decay": 0.5, "exact": exact, "lr": 0.2, "steps": 4 if exact else 8}
    problem, width = pose(Muon(INPUTS[:4].double(), TARGETS[:4].double(), ratios, gamma0, **settings)), 96
    twin = twin_of(problem, width, tolerance=1e-13, generator=generator, law="network", responses=True)
    twin.model(problem.tensor[:0])  # draws the readout
    sizes = [6, *(round(width * ratio) for ratio in ratios)]
    layers = [module for module in twin.model if not isinstance(module, type(twin.model[1]))]
    weights = [layers[0].weight.detach().clone()]
    for layer, (fan_in, fan_out) in zip(layers[1:-1], pairwise(sizes[1:]), strict=True):
        start = torch.randn(fan_out, fan_in, generator=generator, dtype=torch.float64) / math.sqrt(fan_in)
        written_down[layer.matrix] = start
        weights.append(start)
    weights.append(layers[-1].weight.detach().clone())
    steps = torch.arange(problem.steps + 1)
    found = train_and_record(problem, twin, steps, two_time=False, steps=range(problem.steps + 1)).outputs
    wanted = brute_force(problem, weights)
    other = brute_force(problem.trained(nesterov=float(not nesterov)), weights)
    assert float((other[-1] - wanted[-1]).norm()) > 1e-3
    assert float((wanted[-1] - wanted[0]).norm()) > 0.2
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


# Many networks

SHORT = Muon(INPUTS, TARGETS, gamma0=2.0, lr=0.3, momentum=0.5)

CASES = {
    "rich": SHORT,
    "lazier": Muon(INPUTS, TARGETS, gamma0=0.5, momentum=0.9),
    "unequal widths, decay": Muon(INPUTS, TARGETS, (2.0, 0.5, 1.0), gamma0=2.0, decay=0.5),
    "unequal widths, without Nesterov": Muon(INPUTS, TARGETS, (0.5, 1.0), gamma0=0.5, nesterov=False, momentum=0.5),
    "polar factor": Muon(INPUTS, TARGETS, gamma0=1.0, momentum=0.0, exact=True),
}

WIDTHS = {64: 1024, 128: 512, 256: 128}


@cache
def networks(name: str, *, many: bool = True) -> Limit:
    counts = WIDTHS if many else {32: 512, 64: 256, 128: 64}
    if CASES[name].exact:
        counts = {32: 512, 64: 256, 128: 96}
    return CASES[name].limit(counts, torch.Generator().manual_seed(1), RECORD)


def worst(limit: Limit, problem: Problem, solver: InfiniteWidth | None = None) -> dict[str, float]:
    """Standard errors between the engine and the networks, for the entry of each observable that is farthest off."""
    answer = dmft.solve(problem, solver or InfiniteWidth(2048, 4), record=RECORD)
    values, errors = (
        {name: found[name].reshape(mean.shape) for name, mean in limit.mean.items()}
        for found in (observables(answer), observables(answer.stderr))
    )
    return {name: float(z.abs().max()) for name, z in z_scores(limit, values, errors).items()}


def assert_agrees(name: str, *, many: bool) -> None:
    limit = networks(name, many=many)
    assert limit.mean.keys() >= {"outputs", "ntk", "forward.1", "backward.0", "forward.2", "backward.1"}
    assert max(worst(limit, pose(CASES[name])).values()) <= 5
    assert max(limit.goodness.values()) < 3


def test_the_engine_is_the_limit_of_networks() -> None:
    assert_agrees("rich", many=False)


@pytest.mark.long
@pytest.mark.parametrize("name", list(CASES))
def test_the_engine_is_the_limit_of_many_networks(name: str) -> None:
    assert_agrees(name, many=True)


def test_another_theory_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    limit, problem = networks("rich", many=False), pose(CASES["rich"])
    assert max(worst(limit, pose(CASES["rich"], nesterov=False)).values()) > 5
    assert max(worst(limit, pose(CASES["rich"], exact=True)).values()) > 5
    settings = course._settings

    def of_the_core(training: Any, kin: Any, step: int) -> dict[str, Any]:
        """The rate from the room of the core in the place of the shape of the matrix."""
        found = settings(training, kin, step)
        return {**found, "lr": found["lr"] * 64 / kin.shape[0]} if kin.is_core else found

    monkeypatch.setattr(course, "_settings", of_the_core)
    assert max(worst(limit, problem).values()) > 5


def test_features_move_more_than_with_sgd() -> None:
    """At rates at which Muon and SGD bring the loss down alike."""
    movement = {}
    for optimizer in ("sgd", "muon"):
        others = {"others": {"optimizer": "sgd", "lr": 0.1}} if optimizer == "muon" else {}
        settings = {
            "depth": 2,
            "gamma0": 1.0,
            "lr": 0.1,
            "steps": 15,
            "momentum": 0.0,
            "optimizer": optimizer,
            **others,
        }
        exact = {"exact": True} if optimizer == "muon" else {}
        run = dmft.solve(Problem.mlp(INPUTS, TARGETS, **settings, **exact), InfiniteWidth(1024, 2), record=[0, 15])
        phi = run.layers[2].forward.equal_time
        movement[optimizer] = float((phi[1] - phi[0]).norm() / phi[0].norm())
    assert movement["muon"] > 1.1 * movement["sgd"]


@pytest.mark.parametrize("gamma0", [0.5, 2.0])
def test_all_matrices_may_be_its_own(gamma0: float) -> None:
    """Of the input and the readout too, as in the example of torch's documentation."""
    problem = pose(Muon(INPUTS, TARGETS, gamma0=gamma0, momentum=0.5, steps=5))
    problem = problem.trained(kinds={}, exceptions={})
    networks = dmft.solve(problem, solvers.WideEnsemble((32, 64, 128), pairs=16), record=[5])
    engine = dmft.solve(problem, InfiniteWidth(1024, 4), record=[5])
    limits = [(observables(run), observables(run.stderr)) for run in (networks, engine)]
    for name in ("outputs", "forward.1", "forward.2", "backward.0", "backward.1"):
        (wide, wide_error), (found, error) = ((values[name], errors[name]) for values, errors in limits)
        z = (found - wide) / (wide_error**2 + error**2).sqrt()
        assert float(z.abs().max()) <= 5, name


# A loop of one's own


def model(width: int, generator: torch.Generator) -> nn.Module:
    up, down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
    return nn.Sequential(nn.Linear(6, width), nn.Tanh(), up, nn.Tanh(), down, nn.Tanh(), nn.Linear(width, 1))


@needs_torchs
@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("beside", ["sgd", "adamw"])
def test_a_run_is_repeated_from_what_was_seen(adjust: str, beside: str, generator: torch.Generator) -> None:
    """A loop with two optimizers is posed, and a network of the same weights then takes the same steps."""
    wrapped = model(24, generator)
    plan = dmft.parameterize(wrapped, INPUTS, gamma0=1.5, generator=generator)
    start = {name: value.clone() for name, value in wrapped.state_dict().items()}
    hidden = [wrapped[2].weight, wrapped[4].weight]
    groups = plan.param_groups(0.05, optimizer=beside)
    for group in groups:
        group["params"] = [p for p in group["params"] if all(p is not weight for weight in hidden)]
    rest = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[beside]([g for g in groups if g["params"]])
    muon = torch.optim.Muon(hidden, lr=0.1, weight_decay=0.3, momentum=0.8, adjust_lr_fn=adjust)
    recorder = dmft.Recorder(plan, dmft.Probe(INPUTS, TARGETS), schedule=[0, 3, 6])
    schedule = torch.optim.lr_scheduler.ExponentialLR(muon, 0.9)
    with recorder.attach(muon, rest):
        for _ in range(6):
            muon.zero_grad()
            rest.zero_grad()
            nn.functional.mse_loss(wrapped(INPUTS), TARGETS).backward()
            muon.step()
            rest.step()
            schedule.step()
    problem = recorder.problem()
    assert problem.training.optimizers == {"sgd": "Muon and SGD", "adamw": "Muon and AdamW"}[beside]
    assert {problem.training.kind(name) for name in problem.network.hidden} == {"Muon"}
    again = network_of(problem, 24)
    names = problem.network.names
    with torch.no_grad():
        for name, parameter in again.model.named_parameters():
            path, _, kind = name.rpartition(".")
            parameter.copy_(start[f"{names[path]}.{kind}"])
    repeated = train_and_record(problem, again, torch.tensor([0, 3, 6]), two_time=False, steps=range(7))
    torch.testing.assert_close(repeated.outputs, recorder.trajectory().outputs, rtol=0, atol=1e-3)
    # And the theory is asked the same.
    answer = dmft.solve(problem, InfiniteWidth(512, 2), record=[0, 6])
    assert not answer.training.differences(recorder.trajectory().training)


@needs_torchs
def test_what_was_seen_is_what_is_posed_by_hand(generator: torch.Generator) -> None:
    wrapped = model(16, generator)
    plan = dmft.parameterize(wrapped, INPUTS, gamma0=0.5, generator=generator)
    others = [p for name, p in wrapped.named_parameters() if name not in ("2.weight", "4.weight")]
    groups = plan.param_groups(0.05, optimizer="adamw")
    groups = [{**g, "params": [p for p in g["params"] if any(p is other for other in others)]} for g in groups]
    rest = torch.optim.AdamW([g for g in groups if g["params"]])
    # eta gamma0 sqrt(out / in), over what torch multiplies it with.
    muon = torch.optim.Muon(
        [
            {"params": [wrapped[2].weight], "lr": 0.1 * 0.5, "weight_decay": 0.3 / 0.5},
            {"params": [wrapped[4].weight], "lr": 0.1 * 0.5 * 0.5**0.5, "weight_decay": 0.3 / (0.5 * 0.5**0.5)},
        ]
    )
    seen = dmft.Training.seen_by(plan, muon, rest, steps=3)
    settings = {"optimizer": "muon", "others": {"optimizer": "adamw", "lr": 0.05}}
    probe = dmft.Probe(INPUTS, TARGETS)
    posed = Problem.like(plan, probe, lr=0.1, steps=3, weight_decay=0.3, **settings)  # type: ignore[arg-type]
    seen = replace(seen, starts=posed.training.starts)  # of which optimizers know nothing
    assert posed.training.differences(seen) == []
    other = Problem.like(plan, probe, lr=0.2, steps=3, weight_decay=0.3, **settings)  # type: ignore[arg-type]
    assert other.training.differences(seen) == ["learning rate: network 0.2, theory 0.1"]
    plain = Problem.like(plan, probe, lr=0.1, steps=3)
    assert plain.training.differences(seen)[0] == "optimizer: network SGD, theory Muon and AdamW"


# Who solves it


def test_the_engine_is_chosen_and_dense_networks_where_ranks_grow() -> None:
    solver, _ = choose(pose(SHORT))
    assert isinstance(solver, InfiniteWidth)
    assert not solver.strides
    rows = torch.randn(400, 6, generator=GENERATOR)
    batches = [torch.randperm(400, generator=GENERATOR)[:32] for _ in range(200)]
    many = Muon(rows, torch.sign(rows[:, :1]), steps=200)
    solver, why = choose(pose(many, batches=batches), record=[0, 200])
    assert isinstance(solver, solvers.WideEnsemble)
    assert "wide network" in why


@pytest.mark.parametrize(
    "name", [name for name in solvers.__all__ if name not in ("InfiniteWidth", "WideEnsemble", "FiniteWidth")]
)
def test_the_others_refuse(name: str) -> None:
    with pytest.raises(UnsupportedProblemError, match=r"optimizer Muon and SGD.*InfiniteWidth"):
        getattr(solvers, name)().check(pose(SHORT))


def test_strides_are_refused() -> None:
    with pytest.raises(UnsupportedProblemError, match="Strides does not cover"):
        InfiniteWidth(strides=True).check(pose(SHORT))


def test_beside_adam_of_other_hidden_matrices_it_has_whole_ones() -> None:
    problem = pose(Muon(INPUTS, TARGETS, (1.0, 1.0, 1.0), momentum=0.5, steps=5))
    adam, other = problem.network.hidden
    numbers = {**NUMBERS["Adam"], "lr": 0.1}
    mixed = problem.trained(
        kinds={**problem.training.kinds, adam: "Adam"}, exceptions={**problem.training.exceptions, adam: numbers}
    )
    assert mixed.training.kind(other) == "Muon"
    networks = dmft.solve(mixed, solvers.WideEnsemble((32, 64, 128), pairs=16), record=[5])
    engine = dmft.solve(mixed, InfiniteWidth(512, 8), record=[5])
    for name in ("outputs", "forward.2", "forward.3", "backward.1", "backward.2"):
        (wide, wide_error), (found, error) = (
            (observables(run)[name], observables(run.stderr)[name]) for run in (networks, engine)
        )
        z = (found - wide) / (wide_error**2 + error**2).sqrt()
        assert float(z.abs().max()) <= 5, name


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"depth": 1}, "hidden matrix"),
        ({"temperature": 0.1}, "temperature"),
        ({"others": {"optimizer": "muon"}}, "another than Muon"),
        ({"others": {"steps": 3}}, "those of Muon"),
        ({"others": {"lr": -1.0}}, "lr must be"),
        ({"ns_steps": 100}, "ns_steps"),
        ({"beta1": 0.9}, "a setting of the optimizer"),
        ({"optimizer": "sgd", "others": {}}, 'needs optimizer="muon"'),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidInputError, match=told):
        Problem.mlp(INPUTS, TARGETS, **{"depth": 2, "optimizer": "muon", "steps": 3, **settings})


def test_its_course_has_an_optimizer_for_each_kind() -> None:
    problem = pose(SHORT, others={"optimizer": "adamw", "lr": 0.1})
    kinds = [type(each).__name__ for each in Course(problem, network_of(problem, 16)).optimizers]
    assert sorted(kinds) == ["AdamW", "Muon"]
