"""The twin and the solver that trains it: exact where theory is, a network's law where asked for, an ordinary module."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_dmft as dmft
from tests.reference.ensembles import ensemble, observables
from tests.reference.networks import Chain, Training
from torch_dmft.core.errors import InvalidInputError, UnsupportedModelError, UnsupportedProblemError
from torch_dmft.theory.engine.layers import InfiniteLinear
from torch_dmft.theory.replicas import replica_generators

MakeGenerator = Callable[[int], torch.Generator]
Pose = Callable[..., dmft.Problem]


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square().sum()


@pytest.fixture
def pose(generator: torch.Generator) -> Pose:
    """Build a problem on four training rows and a test row of five features."""

    def build(*, dtype: torch.dtype = torch.float64, test: bool = True, **settings: Any) -> dmft.Problem:
        inputs = torch.randn(5, 5, generator=generator, dtype=torch.float64).to(dtype)
        targets = torch.sign(torch.randn(4, 1, generator=generator, dtype=torch.float64)).to(dtype)
        rows = {"test_inputs": inputs[4:]} if test else {}
        defaults = {"depth": 2, "lr": 0.1, "steps": 6, "loss": half_square}
        return dmft.Problem.mlp(inputs[:4], targets, **rows, **{**defaults, **settings})

    return build


def perceptron(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(5, width, bias=False), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1, bias=False)
    )


def assert_same(first: dmft.Trajectory, second: dmft.Trajectory, tolerance: float) -> None:
    """Outputs, losses and kernels agree, relative to the size of each."""
    other = observables(second)
    for name, values in observables(first).items():
        worst = float((values.double() - other[name].double()).norm() / other[name].double().norm())
        assert worst <= tolerance, (name, worst)


def spread(first: dmft.Trajectory, second: dmft.Trajectory) -> float:
    return float((first.ntk.array - second.ntk.array).norm() / second.ntk.array.norm())


# Linear networks: only second moments matter, and these are matched exactly.


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("settings", [{}, {"bias_std": 0.3}, {"momentum": 0.5, "weight_decay": 0.2}], ids=str)
def test_linear_networks_are_exact_at_any_number_of_neurons(
    pose: Pose, make_generator: MakeGenerator, depth: int, settings: dict[str, Any]
) -> None:
    problem = pose(activation="linear", depth=depth, **settings)
    exact = dmft.solve(problem, dmft.solvers.DeepLinear())
    for seed, neurons in ((1, 512), (2, 700)):
        solver = dmft.solvers.InfiniteWidth(neurons, 1, tolerance=1e-9, generator=make_generator(seed))
        assert_same(dmft.solve(problem, solver), exact, 1e-6)


def test_single_precision_loses_nothing(pose: Pose, make_generator: MakeGenerator) -> None:
    problem = pose(activation="linear", depth=3, dtype=torch.float32)
    solver = dmft.solvers.InfiniteWidth(512, 1, tolerance=1e-5, generator=make_generator(1))
    answer = dmft.solve(problem, solver)
    assert answer.outputs.dtype == torch.float32
    assert_same(answer, dmft.solve(problem, dmft.solvers.DeepLinear()), 1e-4)


# Randomness.


def test_a_seed_determines_the_answer(pose: Pose, make_generator: MakeGenerator) -> None:
    problem = pose()

    def answer(seed: int) -> dmft.Trajectory:
        return dmft.solve(problem, dmft.solvers.InfiniteWidth(256, 2, generator=make_generator(seed)))

    first, again, other = answer(3), answer(3), answer(4)
    for name, values in observables(first).items():
        assert torch.equal(values, observables(again)[name]), name
    assert spread(other, first) > 1e-4


def test_without_a_generator_answers_repeat_and_torchs_own_is_left_alone(pose: Pose) -> None:
    problem, state = pose(), torch.get_rng_state()
    first, second = (dmft.solve(problem, dmft.solvers.InfiniteWidth(256, 1)) for _ in range(2))
    assert torch.equal(first.outputs, second.outputs)
    assert torch.equal(torch.get_rng_state(), state)


# law="network": the twin of S neurons is a network of width S.


def test_the_network_law_is_that_of_dense_networks(pose: Pose, generator: torch.Generator) -> None:
    width, count = 48, 120
    problem = pose(lr=0.2, steps=2, gamma0=0.8)
    training = Training(
        problem.inputs[:4], problem.targets, problem.lr, problem.steps, half_square, test_inputs=problem.inputs[4:]
    )
    dense = ensemble(Chain(2, gamma0=0.8), training, width, 2000, generator, record=[0, 1, 2], keep=True)
    assert dense.draws is not None
    solver = dmft.solvers.InfiniteWidth(width, 1, tolerance=1e-6, generator=generator)
    twins = [observables(network_law(problem, solver)) for _ in range(count)]
    for name in ("outputs", "forward.1", "forward.2", "backward.0", "backward.1", "ntk"):
        lazy, exact = torch.stack([twin[name] for twin in twins]).double(), dense.draws[name]
        for power in (1, 2):  # means, then variances
            a, b = ((draws - exact.mean(0)) ** power if power > 1 else draws for draws in (lazy, exact))
            error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
            worst = float(((a.mean(0) - b.mean(0)) / error).abs().max())
            assert worst < 5, (name, power, worst)


def network_law(problem: dmft.Problem, solver: Any) -> dmft.Trajectory:
    """One twin that is a network of as many neurons, trained by a loop of the user's own."""
    assert problem.chain is not None
    limit = dmft.infinite_width(
        problem.chain.build,
        problem.inputs,
        gamma0=problem.gamma0,
        neurons=solver.neurons,
        gain=1.0,
        law="network",
        tolerance=solver.tolerance,
        generator=solver.generator,
        rank=64,
    )
    return loop(limit, problem)


# The twin is an ordinary module, and the solver an ordinary loop around it.


def loop(limit: Any, problem: dmft.Problem, *, weight_decay: float = 0.0) -> dmft.Trajectory:
    """Training as anyone would write it."""
    targets = torch.cat([problem.targets, problem.targets.new_zeros(problem.samples - len(problem.targets), 1)])
    probe = dmft.Probe(problem.inputs, targets, train=problem.train)
    groups = limit.param_groups(problem.lr, weight_decay=weight_decay)
    optimizer = torch.optim.SGD(groups, lr=problem.lr, momentum=problem.momentum)
    recorder = dmft.Recorder(limit, probe, loss=problem.loss)
    with recorder.attach(optimizer):
        for _ in range(problem.steps):
            optimizer.zero_grad()
            problem.loss(limit.model(problem.inputs)[: problem.train_samples], problem.targets).backward()
            optimizer.step()
    return recorder.trajectory()


@pytest.mark.parametrize(
    "settings", [{}, {"momentum": 0.6}, {"weight_decay": 0.3}, {"depth": 3, "bias_std": 0.0}], ids=str
)
def test_a_loop_of_the_users_own_gives_the_solvers_answer(
    pose: Pose, make_generator: MakeGenerator, settings: dict[str, Any]
) -> None:
    problem = pose(**settings)
    assert problem.chain is not None
    exact = 1e-9  # then it does not matter which rows extend the bases first
    (own,) = replica_generators(make_generator(5), 1)
    limit = dmft.infinite_width(
        problem.chain.build, problem.inputs, neurons=256, gain=1.0, tolerance=exact, generator=own
    )
    found = loop(limit, problem, weight_decay=problem.weight_decay)
    solver = dmft.solvers.InfiniteWidth(256, 1, tolerance=exact, generator=make_generator(5))
    assert_same(found, dmft.solve(problem, solver), 1e-6)


def test_layers_grow_with_their_optimizer(pose: Pose, make_generator: MakeGenerator) -> None:
    problem = pose(test=False, momentum=0.7)
    outputs = []
    for rank in (6, 128):
        limit = dmft.infinite_width(
            perceptron, problem.inputs, neurons=256, rank=rank, tolerance=1e-6, generator=make_generator(5)
        )
        optimizer = torch.optim.SGD(limit.param_groups(problem.lr), momentum=problem.momentum)
        (layer,) = (module for module in limit.model.modules() if isinstance(module, InfiniteLinear))
        for step in range(8):
            if rank == 6:
                layer.reserve(6 + 8 * step, [optimizer])
            optimizer.zero_grad()
            half_square(limit.model(problem.inputs), problem.targets).backward()
            optimizer.step()
        outputs.append(limit.model(problem.inputs))
    assert max(layer.rank) > 6
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-10, atol=1e-10)


def test_state_dict_continues_training(pose: Pose, make_generator: MakeGenerator) -> None:
    problem = pose(test=False, momentum=0.5)

    def build(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        limit = dmft.infinite_width(perceptron, problem.inputs, neurons=256, generator=make_generator(seed))
        return limit.model, torch.optim.SGD(limit.param_groups(problem.lr), momentum=0.5)

    def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[float]:
        losses = []
        for _ in range(4):
            optimizer.zero_grad()
            loss = half_square(model(problem.inputs), problem.targets)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    model, optimizer = build(0)
    train(model, optimizer)
    saved = model.state_dict(), optimizer.state_dict()
    saved = torch.utils._pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, saved)
    expected = train(model, optimizer)
    other, other_optimizer = build(1)
    other.load_state_dict(saved[0])
    other_optimizer.load_state_dict(saved[1])
    assert train(other, other_optimizer) == expected


# Refusals.


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1)), "1: BatchNorm .*LayerNorm"),
        (
            nn.Sequential(nn.Dropout(0.1), nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1)),
            "0: `dropout` draws random numbers",
        ),
        (nn.Sequential(nn.Linear(5, 8), nn.GroupNorm(8, 8), nn.Tanh(), nn.Linear(8, 1)), "1: .*GroupNorm"),
    ],
    ids=["batch norm", "dropout of the data", "one neuron per group"],
)
def test_refuses_models_without_a_known_limit(module: nn.Module, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        dmft.infinite_width(module, torch.ones(3, 5))


def test_dropout_that_drops_nothing_is_accepted() -> None:
    module = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(0.0), nn.Linear(8, 1))
    limit = dmft.infinite_width(module, torch.ones(3, 5), neurons=64)
    assert limit.model(torch.ones(3, 5)).shape == (3, 1)


def test_refuses_a_problem_with_more_rows_than_neurons_can_tell_apart(pose: Pose) -> None:
    with pytest.raises(UnsupportedProblemError, match=r"InfiniteWidth\(neurons=128\)"):
        dmft.solve(pose(), dmft.solvers.InfiniteWidth(neurons=32))


def test_refuses_directions_beyond_the_room_of_a_layer(pose: Pose) -> None:
    problem = pose()
    limit = dmft.infinite_width(perceptron, problem.inputs, neurons=64, rank=3)
    with pytest.raises(InvalidInputError, match=r"rank 5, room for 3.*rank=10"):
        limit.model(problem.inputs)


@pytest.mark.parametrize("settings", [{"neurons": 8}, {"law": "gaussian"}, {"gamma0": 0.0}], ids=str)
def test_refuses_settings_without_meaning(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(settings))):
        dmft.infinite_width(perceptron, torch.ones(3, 5), **settings)


# Order.


@pytest.mark.long
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_errors_fall_at_least_like_the_square_root_of_the_neurons(
    pose: Pose, make_generator: MakeGenerator, activation: str
) -> None:
    problem = pose(activation=activation, depth=3, lr=0.05, dtype=torch.float32)
    reference = dmft.solve(problem, dmft.solvers.InfiniteWidth(8192, 16, generator=make_generator(0)), record=[6])
    counts, errors = (256, 1024, 4096), []
    for neurons in counts:
        generator, replicas = make_generator(neurons), 16
        solver = dmft.solvers.InfiniteWidth(neurons, 1, generator=generator)
        found = [spread(dmft.solve(problem, solver, record=[6]), reference) for _ in range(replicas)]
        errors.append(math.sqrt(sum(value**2 for value in found) / replicas))
    slope = math.log(errors[-1] / errors[0]) / math.log(counts[-1] / counts[0])
    assert slope < -0.5 + 0.1, errors
