"""AlternatingMonteCarlo against DeepLinear (exact) and against ensembles of finite tanh networks (statistical)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.reference import field_theory
from tests.reference.ensembles import Limit, observables, z_scores
from tests.theory.solvers.limit import limit
from torch_dmft.core.activation import activation
from torch_dmft.core.errors import ConvergenceError, InvalidInputError, UnsupportedProblemError
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.theory.network import ChainNetwork
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.solve import solve
from torch_dmft.theory.solvers.alternating_monte_carlo import AlternatingMonteCarlo
from torch_dmft.theory.solvers.deep_linear import DeepLinear
from torch_dmft.theory.solvers.static_ntk import StaticNTK

P, D = 3, 4


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * ((outputs - targets) ** 2).sum()


@pytest.fixture
def pose(generator: torch.Generator) -> Callable[..., Problem]:
    """Build a problem on random data."""

    def build(*, outputs: int = 1, test_rows: int = 0, readout_bias: bool = False, **settings: object) -> Problem:
        inputs = torch.randn(P + test_rows, D, dtype=torch.float64, generator=generator)
        targets = torch.randn(P, outputs, dtype=torch.float64, generator=generator)
        defaults = {"depth": 2, "lr": 0.1, "steps": 4, "loss": half_square}
        problem = Problem.mlp(inputs[:P], targets, test_inputs=inputs[P:], **{**defaults, **settings})
        return replace(problem, network=ChainNetwork.unnamed(replace(problem.chain, readout_bias=readout_bias)))

    return build


VARIANTS = {
    "deep": {"depth": 3, "gamma0": 2.0},
    "several outputs": {"outputs": 2},
    "test rows": {"test_rows": 1},
    "gain": {"gain": 1.4},
    "random biases": {"bias_std": 0.7, "readout_bias": True},
    "weight decay": {"weight_decay": 2.0},
    "momentum and weight decay": {"momentum": 0.8, "weight_decay": 2.0, "readout_bias": True},
    "minibatches": {"batches": [torch.tensor([t % P, (t + 1) % P]) for t in range(4)]},
    "unequal widths": {"depth": 3, "width_ratios": [2.0, 0.5, 1.0]},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_is_exact_for_linear_networks(pose: Callable[..., Problem], variant: str) -> None:
    """Normals matched to second moments average linear fields without error, so that only convergence is left."""
    problem = pose(activation="linear", **{"lr": 0.05, **VARIANTS[variant]})
    exact = observables(solve(problem, DeepLinear(), two_time=True))
    solver = AlternatingMonteCarlo(neurons=128, replicas=1, tolerance=1e-10, iterations=100)
    for name, value in observables(solve(problem, solver, two_time=True)).items():
        torch.testing.assert_close(value, exact[name], rtol=1e-7, atol=1e-7)


@pytest.fixture(scope="module")
def nonlinear() -> tuple[Problem, Limit]:
    """A tanh problem in which the responses matter, and its limit from finite networks."""
    generator = torch.Generator().manual_seed(5)
    inputs = 1.5 * torch.randn(2, D, dtype=torch.float64, generator=generator)
    targets = torch.tensor([2.0, -1.0], dtype=torch.float64)
    problem = Problem.mlp(inputs, targets, depth=2, lr=0.2, steps=6, loss=half_square)
    return problem, limit(problem, [6], {48: 2000, 128: 2000})


def worst(run: Trajectory, reference: Limit) -> dict[str, float]:
    """The largest z-score of every observable."""
    scores = z_scores(reference, observables(run), observables(run.stderr))
    return {name: float(score.abs().max()) for name, score in scores.items()}


def test_is_the_limit_of_nonlinear_networks(nonlinear: tuple[Problem, Limit]) -> None:
    problem, networks = nonlinear
    scores = worst(solve(problem, AlternatingMonteCarlo(), record=[6]), networks)
    assert max(scores.values()) <= 5, scores


def test_without_the_equal_time_response_only_kernels_tell(nonlinear: tuple[Problem, Limit]) -> None:
    problem, networks = nonlinear
    scores = worst(solve(problem, AlternatingMonteCarlo(equal_time=False), record=[6]), networks)
    assert scores["outputs"] <= 5, scores
    assert scores["backward.0"] > 10, scores


def test_without_responses_everything_is_off(nonlinear: tuple[Problem, Limit]) -> None:
    problem, networks = nonlinear
    scores = worst(solve(problem, AlternatingMonteCarlo(responses=False), record=[6]), networks)
    assert min(scores[name] for name in ("outputs", "forward.1", "forward.2", "backward.0", "backward.1")) > 4, scores


def test_is_the_static_kernel_where_nothing_is_learned(pose: Callable[..., Problem]) -> None:
    problem = pose(gamma0=1e-3)
    run = solve(problem, AlternatingMonteCarlo(neurons=400), record=[4])
    static = observables(solve(problem, StaticNTK(), record=[4]))
    for name, value in observables(run).items():
        bar = observables(run.stderr)[name] + 1e-3 * static[name].abs() + 1e-9  # the tolerance of the iteration
        assert float(((value - static[name]) / bar).abs().max()) <= 5, name
    assert float(run.stderr.outputs.max()) < 0.05


def test_the_stride_does_not_matter(pose: Callable[..., Problem]) -> None:
    problem = pose(steps=7, gamma0=1.5)
    settings = {"neurons": 100, "replicas": 1, "tolerance": 1e-9, "iterations": 200}
    runs = [solve(problem, AlternatingMonteCarlo(stride=stride, **settings)) for stride in (2, None)]
    torch.testing.assert_close(runs[0].outputs, runs[1].outputs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(runs[0].ntk.array, runs[1].ntk.array, rtol=1e-5, atol=1e-5)


def test_a_growing_horizon_reaches_where_the_whole_one_explodes() -> None:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(3, 5, dtype=torch.float64, generator=generator)
    problem = Problem.mlp(
        inputs, inputs[:, 0].sign(), depth=2, activation="linear", gamma0=4.0, lr=0.02, steps=24, loss=half_square
    )
    solver = AlternatingMonteCarlo(neurons=200, replicas=1, stride=4)
    exact = solve(problem, DeepLinear(), record=[24])
    torch.testing.assert_close(solve(problem, solver, record=[24]).outputs, exact.outputs, rtol=1e-2, atol=1e-2)
    with pytest.raises(ConvergenceError, match="a stride of steps"):
        solve(problem, replace(solver, stride=None))


@pytest.mark.parametrize("equal_time", [True, False])
def test_nonlinear_fields_are_those_of_quadrature(equal_time: bool) -> None:
    """One input and two steps at gamma0 = 2, where every kernel is known to four digits more than sampling tells."""
    inputs, y = torch.full((2, 1), 1.0, dtype=torch.float64), torch.full((2,), 2.0, dtype=torch.float64)
    settings = {"depth": 2, "gamma0": 2.0, "lr": 1.0}
    problem = Problem.mlp(inputs, y, activation="sigmoid", steps=2, loss=lambda f, y: half_square(f, y) / 2, **settings)
    phi = activation("sigmoid")
    exact = field_theory.solve(phi.function, phi.first, square=1.0, target=2.0, counts=(16, 7, 5, 12, 7, 5), **settings)
    run = solve(problem, AlternatingMonteCarlo(neurons=4000, equal_time=equal_time), two_time=True)
    found, error = observables(run), observables(run.stderr)
    scores = {}
    for name, value in exact.items():
        mine, bar = (each[name][:, 0, 0] if name == "outputs" else each[name][:, 0, :, 0] for each in (found, error))
        scores[name] = float(((mine - value).abs() / (bar + 1e-6)).max())
    assert (max(scores.values()) <= 5) == equal_time, scores


@pytest.mark.parametrize(
    "settings",
    [{"gamma0": 3.0, "steps": 10}, {"depth": 3, "gamma0": 2.0, "lr": 0.05, "steps": 8}, {"gamma0": 1.0, "steps": 14}],
    ids=["rich", "deep", "long"],
)
def test_what_is_left_of_the_iteration_is_in_the_standard_error(pose: Callable[..., Problem], settings: dict) -> None:
    """Linear networks, where replicas have no spread: at every time, and not by orders of magnitude too much."""
    problem = pose(**{"activation": "linear", "lr": 0.04, **settings})
    run = solve(problem, AlternatingMonteCarlo(neurons=400, replicas=2, stride=5))
    assert run.metadata["change"] > 1e-5, "the iteration has converged too far for this test"
    exact, error = observables(solve(problem, DeepLinear())), observables(run.stderr)
    del exact["losses"]
    scores = {
        name: float(((observables(run)[name] - exact[name]).abs() / (error[name] + 1e-12)).max()) for name in exact
    }
    assert max(scores.values()) <= 5, scores
    assert max(scores.values()) > 0.2, scores


def test_the_facts_tell_every_iteration(pose: Callable[..., Problem]) -> None:
    run = solve(pose(), AlternatingMonteCarlo(neurons=100, replicas=2, stride=3))
    replicas = str(run.metadata["changes"]).split(" | ")
    assert len(replicas) == 2
    counts = []
    for told in replicas:
        horizons = [horizon.split(" steps: ") for horizon in told.split("; ")]
        assert [int(steps) for steps, _ in horizons] == [2, 4]
        changes = [[float(change) for change in told.split(", ")] for _, told in horizons]
        assert all(found[-1] < 1e-3 < found[0] for found in changes)
        counts.append(sum(len(found) for found in changes))
    assert run.metadata["iterations"] == max(counts)
    assert run.metadata["change"] < 1e-3


def test_a_stride_that_is_too_long_is_halved() -> None:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(3, 5, dtype=torch.float64, generator=generator)
    problem = Problem.mlp(
        inputs, inputs[:, 0].sign(), depth=2, activation="linear", gamma0=6.0, lr=0.05, steps=8, loss=half_square
    )
    run = solve(problem, AlternatingMonteCarlo(neurons=120, replicas=1, stride=9), record=[8])
    assert [told.split()[0] for told in str(run.metadata["changes"]).split("; ")] == ["8", "3", "7", "8"]
    exact = solve(problem, DeepLinear(), record=[8])
    torch.testing.assert_close(
        run.ntk.array, exact.ntk.array, rtol=1e-2, atol=1e-2 * float(exact.ntk.array.abs().max())
    )


def test_what_never_converges_is_refused_with_its_history(pose: Callable[..., Problem]) -> None:
    with pytest.raises(
        ConvergenceError, match=r"over the first 0 steps.* changes at 3 steps: .*; 1 steps: .*; 0 steps: "
    ) as e:
        solve(pose(gamma0=2.0), AlternatingMonteCarlo(neurons=100, iterations=1, tolerance=1e-12, stride=4))
    assert "more iterations" in str(e.value)


def test_the_seed_decides(pose: Callable[..., Problem], make_generator: Callable[[int], torch.Generator]) -> None:
    problem = pose(steps=2)
    one, same, other = (
        solve(problem, AlternatingMonteCarlo(neurons=100, replicas=2, generator=make_generator(seed)))
        for seed in (1, 1, 2)
    )
    assert torch.equal(one.outputs, same.outputs)
    assert not torch.equal(one.outputs, other.outputs)
    assert one.stderr is not None
    assert bool((one.stderr.outputs[1:] > 0).all())


def test_refuses_what_it_cannot_do(pose: Callable[..., Problem]) -> None:
    with pytest.raises(UnsupportedProblemError, match="relu"):
        solve(pose(activation="relu"), AlternatingMonteCarlo())
    with pytest.raises(InvalidInputError, match="must be even"):
        solve(pose(), AlternatingMonteCarlo(neurons=7))
    with pytest.raises(ConvergenceError, match="more iterations"):
        solve(pose(gamma0=2.0), AlternatingMonteCarlo(neurons=100, iterations=2))
