"""The lazy limit against ensembles of finite networks, against closed solutions, and against itself."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.reference import ensembles, networks
from torch_dmft import Probe, parameterize
from torch_dmft.core.errors import ConvergenceError, UnsupportedProblemError
from torch_dmft.core.training import Training
from torch_dmft.theory.chain import Chain, HiddenLayer
from torch_dmft.theory.chains import lazy_limit
from torch_dmft.theory.chains.initial_kernels import InitialKernels
from torch_dmft.theory.chains.lazy_limit import _descend, _flow
from torch_dmft.theory.chains.squared_error import error_scale, lazy_outputs
from torch_dmft.theory.network import ChainNetwork
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.solve import solve
from torch_dmft.theory.solvers.static_ntk import StaticNTK

LR, STEPS, GAIN, GAMMA0 = 0.3, 8, 1.2, 0.01
BATCHES = [torch.tensor(rows) for rows in ([0, 2], [1], [2, 1], [0], [1, 2], [0, 1, 2], [0], [2])]


@pytest.fixture
def rows(generator: torch.Generator) -> Tensor:
    return torch.randn(4, 5, generator=generator, dtype=torch.float64)


@pytest.fixture
def targets(generator: torch.Generator) -> Tensor:
    return torch.randn(3, 2, generator=generator, dtype=torch.float64)


def assert_matches_networks(problem: Problem, chain: networks.Chain, generator: torch.Generator) -> None:
    """Every kernel and the outputs, at two times, within 5 standard errors of the limit of finite networks."""
    training = networks.Training(
        problem.inputs[: problem.train_samples],
        problem.targets,
        problem.lr,
        problem.steps,
        momentum=problem.momentum,
        weight_decay=problem.weight_decay,
        batches=problem.batches,
        test_inputs=problem.inputs[problem.train_samples :],
    )
    record = (0, 2, STEPS)
    limit = ensembles.extrapolate(
        chain, training, {48: 256, 96: 128, 192: 64}, generator, dtype=torch.float64, record=record, two_time=True
    )
    found = ensembles.observables(solve(problem, StaticNTK(), record=record, two_time=True))
    del found["losses"]  # the mean loss of noisy networks is not the loss of the mean network
    for name, z in ensembles.z_scores(limit, found).items():
        assert float(z.abs().max()) <= 5, name


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.6},
        {"weight_decay": 0.5},
        {"weight_decay": 0.4, "momentum": 0.5},
        {"momentum": 0.3, "batches": BATCHES},
    ],
    ids=["plain", "momentum", "decay", "decay and momentum", "minibatches"],
)
def test_agrees_with_finite_networks(options: dict, rows: Tensor, targets: Tensor, generator: torch.Generator) -> None:
    """Biases, a gain, unequal widths, two outputs and a test row, for every kind of update."""
    shape = {"depth": 2, "gamma0": GAMMA0, "gain": GAIN, "bias_std": 0.4, "width_ratios": (2.0, 1.0)}
    problem = Problem.mlp(
        rows[:3], targets, test_inputs=rows[3:], activation="tanh", lr=LR, steps=STEPS, **shape, **options
    )
    assert_matches_networks(problem, networks.Chain(activation=torch.tanh, outputs=2, **shape), generator)


@pytest.mark.parametrize(("name", "phi"), [("relu", torch.relu), ("erf", torch.erf), ("linear", lambda x: x)])
def test_closed_forms_agree_with_finite_networks(name: str, phi, rows: Tensor, generator: torch.Generator) -> None:
    shape = {"depth": 2, "gamma0": GAMMA0, "gain": math.sqrt(2)}
    problem = Problem.mlp(
        rows[:3], rows[:3, 0], test_inputs=rows[3:], activation=name, lr=0.05, steps=STEPS, weight_decay=0.3, **shape
    )
    assert_matches_networks(problem, networks.Chain(activation=phi, **shape), generator)


def test_readout_bias_learns_at_the_base_rate(rows: Tensor) -> None:
    """f(1) = eta K Delta with K = G Phi^0 + Phi^1 + 1, for a linear network K = 2 Phi^0 + 1."""
    chain = Chain(5, (HiddenLayer("linear"),), 1, readout_bias=True)
    y = rows[:, 0]
    problem = Problem(
        rows, y, lambda f, y: (f - y).square().sum() / 2, Training.sgd(0.1, 1), ChainNetwork.unnamed(chain)
    )
    found = solve(problem, StaticNTK())
    torch.testing.assert_close(found.outputs[1, :, 0], 0.1 * (2 * problem.input_kernel + 1) @ y, rtol=0, atol=1e-12)


def test_relu_kernels_are_the_arc_cosine_kernels() -> None:
    """Unit inputs at angle theta, gain sqrt 2: Phi^1 = (sin + (pi - theta) cos)/pi, S = (pi - theta)/pi (halved)."""
    theta = torch.tensor([0.0, 0.4, 1.3, 3.0], dtype=torch.float64)
    inputs = math.sqrt(2) * torch.stack([theta.cos(), theta.sin()], dim=1)
    problem = Problem.mlp(inputs, theta, activation="relu", gain=math.sqrt(2))
    kernels = InitialKernels(problem.chain, problem.input_kernel).at()
    angle = (theta[:, None] - theta).abs()
    phi = (angle.sin() + (math.pi - angle) * angle.cos()) / math.pi
    torch.testing.assert_close(kernels.forward[1], phi, rtol=0, atol=1e-10)
    torch.testing.assert_close(kernels.backward[0], (math.pi - angle) / (2 * math.pi), rtol=0, atol=1e-7)


def test_gradient_flow_is_the_exponential_and_descent_meets_it_at_first_order(rows: Tensor) -> None:
    y = rows[:3, 0]
    inputs, errors = rows[:3], []
    for refine in (1, 2, 4):
        problem = Problem.mlp(inputs, y, depth=2, loss=half_square, lr=0.1 / refine, steps=5 * refine)
        kept = range(0, 5 * refine + 1, refine)
        flow = solve(problem, StaticNTK(time="continuous"), record=kept)
        descent = solve(problem, StaticNTK(), record=kept)
        times = 0.1 * torch.arange(6, dtype=torch.float64)
        exact = y - torch.stack([torch.matrix_exp(-t * flow.ntk.matrix(0)) @ y for t in times])
        torch.testing.assert_close(flow.outputs[:, :, 0], exact, rtol=0, atol=1e-9)
        errors.append(float((descent.outputs[:, :, 0] - exact).norm()))
    slope = math.log2(errors[1] / errors[2])
    assert slope == pytest.approx(1, abs=0.2)


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().sum() / 2


@pytest.mark.parametrize("momentum", [0.0, 0.7])
@pytest.mark.parametrize("repeated", [False, True], ids=["regular", "singular"])
def test_squared_error_in_closed_form_is_the_recursion(
    momentum: float, repeated: bool, rows: Tensor, targets: Tensor
) -> None:
    """Also for a test row, two outputs, other factors than 1/2, and inputs that repeat, where K is singular."""
    inputs = rows[[0, 1, 1]] if repeated else rows[:3]
    problem = Problem.mlp(
        inputs, targets, depth=2, lr=0.7, steps=60, momentum=momentum, test_inputs=rows[3:], activation="relu"
    )
    assert error_scale(problem) == pytest.approx(2 / 6)
    ntk, record = InitialKernels(problem.chain, problem.input_kernel).at().ntk, torch.tensor([0, 1, 2, 17, 60])
    closed = lazy_outputs(problem, ntk, record, 2 / 6, flow=False)
    torch.testing.assert_close(closed, _descend(problem, ntk, record), rtol=0, atol=1e-12)
    assert torch.equal(closed, solve(problem, StaticNTK(), record=record).outputs)
    flow = lazy_outputs(problem, ntk, record, 2 / 6, flow=True)
    torch.testing.assert_close(flow, _flow(problem, ntk, record), rtol=0, atol=1e-8)  # integrated to 1e-10 a step


def test_a_million_steps_end_at_kernel_regression(rows: Tensor, targets: Tensor) -> None:
    problem = Problem.mlp(rows[:3], targets, lr=0.1, steps=10**6, test_inputs=rows[3:], loss=half_square)
    found = solve(problem, StaticNTK(), record=[10**6])
    kernel = found.ntk.matrix(0)[::2, ::2]  # of the first output
    torch.testing.assert_close(
        found.outputs[0], kernel[:, :3] @ torch.linalg.solve(kernel[:3, :3], targets), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize(
    "loss",
    [
        torch.nn.HuberLoss(delta=1.5),
        torch.nn.L1Loss(),
        lambda f, y: ((f - y).square() * torch.tensor([1.0, 2.0])).sum(),
    ],
    ids=["huber", "absolute", "weighted"],
)
def test_losses_that_are_nearly_squared_errors_are_not_taken_for_one(loss, rows: Tensor, targets: Tensor) -> None:
    problem = Problem.mlp(rows[:3], targets, loss=loss, lr=0.05, steps=20)
    assert error_scale(problem) is None
    ntk = InitialKernels(problem.chain, problem.input_kernel).at().ntk
    torch.testing.assert_close(
        solve(problem, StaticNTK()).outputs, _descend(problem, ntk, torch.arange(21)), rtol=0, atol=0
    )


def test_any_loss(rows: Tensor) -> None:
    """Cross entropy: the first step moves f by eta K (one-hot - 1/C) / P."""
    problem = Problem.mlp(rows, torch.tensor([0, 1, 2, 1]), depth=2, lr=0.5, steps=3)
    found = solve(problem, StaticNTK())
    delta = (torch.eye(3, dtype=torch.float64)[[0, 1, 2, 1]] - 1 / 3) / 4
    kernel = InitialKernels(problem.chain, problem.input_kernel).at().ntk
    torch.testing.assert_close(found.outputs[1], 0.5 * kernel @ delta, rtol=0, atol=1e-12)
    assert found.losses[0] == pytest.approx(math.log(3))
    assert found.losses[3] < found.losses[1] < found.losses[0]


@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
def test_kernels_are_gram_matrices_and_the_layers_add_up(weight_decay: float, rows: Tensor, targets: Tensor) -> None:
    problem = Problem.mlp(
        rows[:3], targets, depth=2, bias_std=0.0, steps=4, weight_decay=weight_decay, test_inputs=rows[3:]
    )
    found = solve(problem, StaticNTK(), record=[0, 3, 4], two_time=True)
    assert [layer.name for layer in found.layers] == ["0", "2", "4"]
    for kernel in [found.ntk, *(k for layer in found.layers for k in (layer.forward, layer.backward, layer.ntk))]:
        size = math.isqrt(kernel.array.numel())
        matrix = kernel.values.reshape(size, size)
        torch.testing.assert_close(matrix, matrix.T, rtol=0, atol=1e-12)
        assert float(torch.linalg.eigvalsh(matrix).min()) > -1e-10
    torch.testing.assert_close(found.ntk.array, sum(layer.ntk.array for layer in found.layers))
    once = solve(problem, StaticNTK(), record=[0, 3, 4])
    torch.testing.assert_close(once.ntk.array, found.ntk.equal_time, rtol=0, atol=1e-12)
    assert bool((found.ntk.equal_time[0] == found.ntk.equal_time[1]).all()) == (weight_decay == 0)


def test_answers_in_the_precision_of_the_problem(rows: Tensor, targets: Tensor) -> None:
    double = solve(Problem.mlp(rows[:3], targets, depth=2, steps=4), StaticNTK())
    single = solve(Problem.mlp(rows[:3].float(), targets.float(), depth=2, steps=4), StaticNTK())
    assert {single.outputs.dtype, single.ntk.array.dtype, single.losses.dtype} == {torch.float32}
    torch.testing.assert_close(single.outputs.double(), double.outputs, rtol=1e-5, atol=1e-5)
    assert single.stderr is None


def test_takes_the_names_of_the_network(rows: Tensor) -> None:
    problem = Problem.mlp(rows, rows[:, 0], depth=1, steps=1)
    problem = replace(problem, network=ChainNetwork(problem.chain, ("encoder", "head.linear")))
    assert [layer.name for layer in solve(problem, StaticNTK()).layers] == ["encoder", "head.linear"]


def test_refuses_what_it_cannot_do(rows: Tensor) -> None:
    problem = Problem.mlp(rows, rows[:, 0], steps=2, momentum=0.5)
    with pytest.raises(UnsupportedProblemError, match="momentum"):
        solve(problem, StaticNTK(time="continuous"))
    norm = nn.Sequential(nn.Linear(rows.shape[1], 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 1)).double()
    other = Problem.like(parameterize(norm, rows), Probe(rows, rows[:, 0]), lr=0.1, steps=1)
    with pytest.raises(UnsupportedProblemError, match="InfiniteWidth"):
        solve(other, StaticNTK())


def test_says_that_training_diverges(rows: Tensor) -> None:
    with pytest.raises(ConvergenceError, match="diverges"):
        solve(Problem.mlp(rows, rows[:, 0], steps=4000, lr=100.0), StaticNTK())


def test_a_stiff_flow_that_is_too_expensive_is_given_up(rows: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy_limit, "_MOST_CALLS", 20)
    with pytest.raises(ConvergenceError, match="20 evaluations"):
        solve(Problem.mlp(rows, torch.tensor([0, 1, 0, 1]), steps=40), StaticNTK(time="continuous"))
