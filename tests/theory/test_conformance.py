"""Every solver on every problem it supports keeps the promises of ``solve``; what it does not support it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from torch_dmft import Kernel, Problem, Trajectory, solve
from torch_dmft.core.errors import ConvergenceError, DMFTError, UnsupportedProblemError
from torch_dmft.theory import solvers

Solve = Callable[[Problem], Trajectory]
INPUTS = torch.randn(4, 5, generator=torch.Generator().manual_seed(3))
TARGETS = torch.tensor([[1.0], [-1.0], [1.0]])
STEPS = 4


def _mlp(**options: Any) -> Problem:
    settings = {"targets": TARGETS, "depth": 2, "lr": 0.2, "steps": STEPS, "test_inputs": INPUTS[3:]} | options
    return Problem.mlp(INPUTS[:3].to(settings.pop("dtype", torch.float32)), **settings)


PROBLEMS: dict[str, Callable[..., Problem]] = {
    "one layer": lambda **o: _mlp(depth=1, **o),
    "tanh": _mlp,
    "relu": lambda **o: _mlp(activation="relu", gain=2**0.5, **o),
    "linear": lambda **o: _mlp(activation="linear", **o),
    "biases": lambda **o: _mlp(bias_std=0.3, **o),
    "classes": lambda **o: _mlp(**{"targets": torch.tensor([0, 2, 1]), **o}),
    "unequal widths": lambda **o: _mlp(width_ratios=[2.0, 1.0], **o),
    "momentum and decay": lambda **o: _mlp(momentum=0.5, weight_decay=0.2, **o),
    "minibatches": lambda **o: _mlp(batches=[torch.tensor([t % 3, (t + 1) % 3]) for t in range(STEPS)], **o),
}


def _random(solver: type, **settings: Any) -> Callable[[int], Any]:
    return lambda seed: solver(**settings, generator=torch.Generator().manual_seed(seed))


# Eight replicas, as with four a fair error bar is five times too small somewhere in one run of ten; the bias, of order
# rows over neurons, is then well below it.
SOLVERS: dict[str, Callable[[int], Any]] = {
    "InfiniteWidth": _random(solvers.InfiniteWidth, neurons=1024, replicas=8),
    "GradientIndependence": _random(solvers.GradientIndependence, neurons=1024, replicas=8),
    "AlternatingMonteCarlo": _random(solvers.AlternatingMonteCarlo, neurons=128, replicas=4),
    "Perturbation": _random(solvers.Perturbation, neurons=256, replicas=4),
    "FiniteWidth": _random(solvers.FiniteWidth, width=64, replicas=4),
    "WideEnsemble": _random(solvers.WideEnsemble, widths=(32, 64, 128), pairs=4),
    "DeepLinear": lambda seed: solvers.DeepLinear(),
    "WhitenedLinear": lambda seed: solvers.WhitenedLinear(),
    "StaticNTK": lambda seed: solvers.StaticNTK(),
}
NETWORKS = ("FiniteWidth",)  # not at infinite width: 1/N corrections from the start
CASES = [(solver, problem) for solver in SOLVERS for problem in PROBLEMS]


def _supported(solver: str, problem: str) -> bool:
    """What the docstrings promise; everything else must be refused."""
    match solver:
        case "DeepLinear":
            return problem == "linear"
        case "WhitenedLinear":
            return False  # the data are not white; its own tests have white ones
        case "AlternatingMonteCarlo":
            return problem != "relu"
        case "GradientIndependence":
            return problem != "momentum and decay"
        case "Perturbation":
            return problem not in ("relu", "momentum and decay")
        case _:
            return True


def _answer(solver: str, problem: Problem, seed: int = 0, **options: Any) -> Trajectory:
    return solve(problem, SOLVERS[solver](seed), **options)


def _kernels(run: Trajectory) -> list[Kernel]:
    return [run.ntk] + [kernel for layer in run.layers for kernel in (layer.forward, layer.backward, layer.ntk)]


def _arrays(run: Trajectory) -> list[torch.Tensor]:
    return [run.outputs, *(kernel.array for kernel in _kernels(run))]


SUPPORTED = [case for case in CASES if _supported(*case)]


@pytest.fixture(scope="module")
def answers() -> dict[tuple[str, str], Trajectory]:
    return {(solver, problem): _answer(solver, PROBLEMS[problem]()) for solver, problem in SUPPORTED}


@pytest.mark.parametrize("case", SUPPORTED, ids=": ".join)
def test_layout_symmetry_and_positivity(case, answers):
    run, problem = answers[case], PROBLEMS[case[1]]()
    outputs = problem.outputs
    assert run.steps.tolist() == list(range(STEPS + 1))
    assert run.outputs.shape == (STEPS + 1, 4, outputs)
    assert run.train.tolist() == [True, True, True, False]
    assert [layer.name for layer in run.layers] == [str(2 * l) for l in range(len(problem.chain.hidden) + 1)]
    for kernel in _kernels(run):
        assert kernel.array.dtype == torch.float32
        assert bool(torch.isfinite(kernel.array).all())
        for time in range(STEPS + 1):
            matrix = kernel.matrix(time).double()
            scale = float(matrix.abs().max()) + 1e-12
            torch.testing.assert_close(matrix, matrix.T, rtol=0, atol=1e-5 * scale)
            if case[0] not in (
                "Perturbation",
                "WideEnsemble",
            ):  # an expansion and an extrapolation need not be positive
                assert float(torch.linalg.eigvalsh(matrix)[0]) > -1e-5 * scale


@pytest.mark.parametrize("case", [case for case in SUPPORTED if case[0] not in NETWORKS], ids=": ".join)
def test_initial_kernels_are_those_of_the_static_theory(case, answers):
    _, problem = case
    run, static = answers[case], answers["StaticNTK", problem]
    error = run.stderr
    for layer, expected, spread in zip(run.layers, static.layers, error.layers if error else run.layers, strict=True):
        for kind in ("forward", "backward"):
            found, exact = (getattr(side, kind).equal_time[0].double() for side in (layer, expected))
            noise = getattr(spread, kind).equal_time[0].double() if error else torch.zeros_like(found)
            assert bool(((found - exact).abs() <= 5 * noise + 1e-5 * (1 + exact.abs())).all()), (layer.name, kind)


@pytest.mark.parametrize("case", SUPPORTED, ids=": ".join)
def test_causality_the_past_does_not_know_how_long_training_goes_on(case, answers):
    solver, problem = case
    posed = PROBLEMS[problem](steps=2)
    short = _answer(solver, posed)
    long = answers[case].at_steps(torch.arange(3))
    sampled = solver == "AlternatingMonteCarlo"  # its draws are laid out over the whole horizon
    errors = _arrays(long.stderr) if sampled else [torch.zeros(())] * 99
    floor = 5e-3 if sampled else 1e-5  # it stops when nothing changes by more than 1e-3
    for a, b, error in zip(_arrays(short), _arrays(long), errors, strict=False):
        assert bool(((a - b).abs() <= 7 * error + floor * (1 + b.abs().max())).all())


@pytest.mark.parametrize("solver", sorted({solver for solver, _ in SUPPORTED}))
def test_a_seed_decides_everything(solver, answers):
    name = "linear" if solver == "DeepLinear" else "tanh"
    again = _answer(solver, PROBLEMS[name]())
    torch.testing.assert_close(again.ntk.array, answers[solver, name].ntk.array, rtol=0, atol=0)
    if again.stderr is not None:
        other = _answer(solver, PROBLEMS[name](), seed=1)
        assert not torch.equal(other.ntk.array, again.ntk.array)


@pytest.mark.parametrize("solver", sorted({solver for solver, _ in SUPPORTED}))
def test_dtype_is_that_of_the_inputs(solver):
    activation = "linear" if solver == "DeepLinear" else "tanh"
    run = _answer(solver, _mlp(activation=activation, dtype=torch.float64, targets=TARGETS.double()))
    assert {kernel.array.dtype for kernel in _kernels(run)} == {torch.float64}
    assert run.outputs.dtype == torch.float64


@pytest.mark.parametrize("solver", sorted({solver for solver, _ in SUPPORTED}))
def test_two_times(solver, answers):
    name = "linear" if solver == "DeepLinear" else "tanh"
    run = _answer(solver, PROBLEMS[name](), two_time=True)
    kernel = run.layers[1].forward
    values = kernel.values
    assert values.shape == (STEPS + 1, 4, STEPS + 1, 4)
    torch.testing.assert_close(values, values.permute(2, 3, 0, 1), rtol=1e-5, atol=1e-5)
    if run.stderr is None:
        torch.testing.assert_close(
            kernel.equal_time, answers[solver, name].layers[1].forward.array, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("case", [case for case in CASES if not _supported(*case)], ids=": ".join)
def test_what_is_not_supported_is_refused(case):
    with pytest.raises(UnsupportedProblemError):
        _answer(case[0], PROBLEMS[case[1]]())


@pytest.mark.parametrize(
    "solver", ["AlternatingMonteCarlo", "DeepLinear", "Perturbation", "StaticNTK", "WhitenedLinear"]
)
def test_solvers_for_chains_refuse_other_networks(solver):
    from torch_dmft import Probe, parameterize

    model = nn.Sequential(nn.Linear(5, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 1))
    plan = parameterize(model, INPUTS)
    problem = Problem.like(plan, Probe(INPUTS[:3], TARGETS), lr=0.1, steps=2)
    with pytest.raises(UnsupportedProblemError, match="InfiniteWidth"):
        _answer(solver, problem)


LINEAR_ONLY = ("DeepLinear", "WhitenedLinear")


@pytest.mark.parametrize("lr", [30.0, 1e30])
@pytest.mark.parametrize("solver", SOLVERS)
def test_training_that_diverges_is_an_error_with_a_remedy(solver, lr):
    """In float32: some numbers overflow in the answer only. White inputs, which all solvers take; a flow takes any lr."""
    left, _, right = torch.linalg.svd(INPUTS[:3], full_matrices=False)
    problem = Problem.mlp(
        5**0.5 * left @ right,
        TARGETS,
        depth=2,
        activation="linear" if solver in LINEAR_ONLY else "softplus",
        lr=lr,
        steps=40,
    )
    with pytest.raises(ConvergenceError, match=r"(?s)(diverge|did not converge).*Remedy"):
        _answer(solver, problem, record=[40])


@pytest.mark.parametrize("record", [[-1], [STEPS + 1], [], torch.tensor([0.0, 1.5])])
def test_steps_that_cannot_be_recorded(record):
    with pytest.raises(DMFTError, match="Remedy"):
        solve(_mlp(), solvers.StaticNTK(), record=record)
