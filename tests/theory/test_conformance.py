"""Every solver on every problem keeps the promises of ``solve``, or refuses it and names one that does it."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from tests.theory.catalogue import (
    BATCHES,
    INPUTS,
    NETWORKS,
    OF_THEIR_OWN,
    PROBLEMS,
    REFUSED,
    ROWS,
    SIGNS,
    STEPS,
    TRAIN,
    build,
    supports,
    usual,
)
from torch_dmft import Kernel, Problem, Trajectory, solve
from torch_dmft.core.errors import ConvergenceError, DMFTError, UnsupportedProblemError
from torch_dmft.theory import solvers
from torch_dmft.theory.chain import Chain
from torch_dmft.theory.choose import choose

CASES = [(solver, problem) for solver in REFUSED for problem in PROBLEMS]
SUPPORTED = [case for case in CASES if supports(*case)]
EXTRAPOLATED = {"Perturbation", "WideEnsemble"}
"""An expansion and an extrapolation need not be positive."""


def kernels(run: Trajectory) -> list[Kernel]:
    return [run.ntk] + [kernel for layer in run.layers for kernel in (layer.forward, layer.backward, layer.ntk)]


def arrays(run: Trajectory) -> list[Tensor]:
    return [run.outputs, run.losses, *(kernel.array for kernel in kernels(run))]


@cache
def answer(solver: str, problem: str) -> Trajectory:
    return solve(PROBLEMS[problem](), build(solver))


@cache
def at_the_start(problem: str) -> Trajectory:
    """Kernels of the initial weights: in closed form for chains, else of plain networks."""
    posed = PROBLEMS[problem]().trained(temperature=0.0, optimizer="SGD", rule="gradient", rho=0.0)
    networks = solvers.WideEnsemble((32, 64), pairs=8)
    return solve(posed, networks if problem in NETWORKS | OF_THEIR_OWN else solvers.StaticNTK(), record=0)


def assert_positive(matrix: Tensor) -> None:
    assert float(torch.linalg.eigvalsh(matrix)[0]) > -1e-5 * float(matrix.abs().max() + 1e-12)


@pytest.mark.parametrize("case", SUPPORTED, ids=": ".join)
def test_layout_symmetry_and_positivity(case: tuple[str, str]) -> None:
    run, problem = answer(*case), PROBLEMS[case[1]]()
    assert run.steps.tolist() == list(range(STEPS + 1))
    assert run.outputs.shape == (STEPS + 1, ROWS, problem.outputs)
    assert run.train.tolist() == [row < TRAIN for row in range(ROWS)]
    if problem.chain is not None:
        assert [layer.name for layer in run.layers] == [str(2 * l) for l in range(problem.chain.depth + 1)]
    for kernel in kernels(run):
        assert kernel.array.dtype == torch.float32
        assert bool(torch.isfinite(kernel.array).all())
        for time in range(STEPS + 1):
            matrix = kernel.matrix(time).double()
            torch.testing.assert_close(matrix, matrix.mT, rtol=0, atol=1e-5 * float(matrix.abs().max()))
            if case[0] not in EXTRAPOLATED:
                assert_positive(matrix)


@pytest.mark.parametrize("case", [case for case in SUPPORTED if case[0] != "FiniteWidth"], ids=": ".join)
def test_initial_kernels_are_those_of_the_initial_weights(case: tuple[str, str]) -> None:
    run, start = answer(*case), at_the_start(case[1])
    for kind in ("forward", "backward"):
        for index, layer in enumerate(run.layers):
            found, exact = (getattr(each, kind).equal_time[0].double() for each in (layer, start.layers[index]))
            errors = [
                getattr(each.stderr.layers[index], kind).equal_time[0].double() for each in (run, start) if each.stderr
            ]
            noise = torch.stack([torch.zeros_like(exact), *errors]).square().sum(0).sqrt()
            assert bool(((found - exact).abs() <= 5 * noise + 1e-5 * (1 + exact.abs())).all()), (layer.name, kind)


def assert_same_past(short: Trajectory, long: Trajectory, solver: str) -> None:
    """To round-off; Algorithm 1 lays out its draws over the whole horizon, and stops at changes of 1e-3."""
    sampled = solver == "AlternatingMonteCarlo"
    errors = arrays(long.stderr) if sampled else [torch.zeros(())] * len(arrays(long))
    for a, b, error in zip(arrays(short), arrays(long), errors, strict=True):
        floor = (5e-3 if sampled else 1e-5) * (1 + b.abs().max())
        assert bool(((a - b).abs() <= 7 * error + floor).all())


@pytest.mark.parametrize("solver", [solver for solver in REFUSED if "strides" not in solver])
def test_an_answer_about_some_rows_is_that_about_all_of_them(solver: str) -> None:
    """Also where the rows stand in another order and batches are not the probe."""
    name = "minibatches" if supports(solver, "minibatches") else usual(solver)
    rows = torch.tensor([3, 1])
    some, every = solve(replace(PROBLEMS[name](), probe=rows), build(solver)), answer(solver, name).at_rows(rows)
    assert some.outputs.shape[:2] == (STEPS + 1, 2)
    assert some.train.tolist() == [False, True]
    loss = replace(PROBLEMS[name](), probe=rows).kept_loss
    if solver not in ("FiniteWidth", "WideEnsemble"):  # whose losses are means of those of networks
        torch.testing.assert_close(some.losses, torch.stack([loss(f) for f in some.outputs]))
    for index, (mine, theirs) in enumerate(zip(arrays(some), arrays(every), strict=True)):
        if index == 1:
            continue  # losses are of the rows that are asked for
        if some.stderr is None or every.stderr is None:
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
            continue
        errors = [arrays(run.stderr)[index] for run in (some, every) if run.stderr is not None]
        noise = torch.stack(errors).square().sum(0).sqrt()
        assert bool(((mine - theirs).abs() <= 6 * noise + 1e-5 * (1 + theirs.abs())).all()), index


# One problem for each way in which a step can depend on another, beside plain steps.
TIMED = ("one layer", "white", "classes", "momentum and decay", "noise", "adam", "residual")


@pytest.mark.parametrize("case", [case for case in SUPPORTED if case[1] in (usual(case[0]), *TIMED)], ids=": ".join)
def test_the_past_does_not_know_how_long_training_goes_on(case: tuple[str, str]) -> None:
    solver, problem = case
    short = solve(PROBLEMS[problem](steps=2), build(solver))
    assert_same_past(short, answer(*case).at_steps(torch.arange(3)), solver)


@pytest.mark.parametrize("solver", [solver for solver in REFUSED if supports(solver, "minibatches")])
def test_the_past_does_not_know_later_batches(solver: str) -> None:
    altered = solve(PROBLEMS["minibatches"](batches=[*BATCHES[:-1], torch.tensor([0])]), build(solver))
    original = answer(solver, "minibatches")
    past = torch.arange(STEPS)
    assert_same_past(altered.at_steps(past), original.at_steps(past), solver)
    assert float((altered.outputs[-1] - original.outputs[-1]).abs().max()) > 1e-3


@pytest.mark.parametrize("solver", REFUSED)
def test_a_seed_decides_everything(solver: str) -> None:
    problem = usual(solver)
    for mine, theirs in zip(
        arrays(solve(PROBLEMS[problem](), build(solver))), arrays(answer(solver, problem)), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    if answer(solver, problem).stderr is not None:
        other = solve(PROBLEMS[problem](steps=1), build(solver, seed=1), record=1)
        assert not torch.equal(other.ntk.array[0], answer(solver, problem).ntk.array[1])


@pytest.mark.parametrize("solver", REFUSED)
def test_dtype_is_that_of_the_inputs(solver: str) -> None:
    run = solve(PROBLEMS[usual(solver)](steps=1, dtype=torch.float64), build(solver))
    assert {values.dtype for values in arrays(run)} == {torch.float64}


@pytest.mark.parametrize("solver", REFUSED)
def test_tensors_are_on_the_device_of_the_inputs(solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever names no device lands on "meta" here, which cannot be combined with the problem's."""
    problem, method, factory = PROBLEMS[usual(solver)](), build(solver), Chain.build

    def where_the_user_says(chain: Chain, width: int) -> nn.Sequential:
        with torch.device("cpu"):
            return factory(chain, width)

    monkeypatch.setattr(Chain, "build", where_the_user_says)
    with torch.device("meta"):
        run = method.run(problem, torch.arange(STEPS + 1, device="cpu"), two_time=False, progress=False)
    for mine, usually in zip(arrays(run), arrays(answer(solver, usual(solver))), strict=True):
        torch.testing.assert_close(mine, usually, rtol=0, atol=0)


CONTEXTS = {"autocast": lambda: torch.autocast("cpu", torch.bfloat16), "inference mode": torch.inference_mode}


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("solver", REFUSED)
def test_contexts_around_it_change_nothing(solver: str, context: str) -> None:
    """Nor around what the problem is made of: tensors of inference mode cannot be saved for gradients."""
    name = "minibatches" if supports(solver, "minibatches") else usual(solver)
    expected, problem = answer(solver, name), PROBLEMS[name]()
    with CONTEXTS[context]():
        batches = None if problem.batches is None else tuple(rows.clone() for rows in problem.batches)
        training = replace(problem.training, batches=batches)
        inside = replace(problem, inputs=problem.inputs.clone(), targets=problem.targets.clone(), training=training)
        run = solve(inside, build(solver))
        assert torch.is_inference_mode_enabled() == (context == "inference mode")
    for mine, usually in zip(arrays(run), arrays(expected), strict=True):
        assert not mine.is_inference()
        torch.testing.assert_close(mine, usually, rtol=0, atol=0)


@pytest.mark.parametrize("solver", REFUSED)
def test_two_times(solver: str) -> None:
    problem = usual(solver)
    run = solve(PROBLEMS[problem](), build(solver), two_time=True)
    layer, equal = run.layers[1], answer(solver, problem).layers[1]
    for kernel, expected in ((layer.forward, equal.forward), (layer.backward, equal.backward)):
        values = kernel.values
        assert values.shape[:2] == (STEPS + 1, ROWS)
        torch.testing.assert_close(kernel.equal_time, expected.array, rtol=1e-5, atol=1e-5)
        if kernel is layer.forward:
            torch.testing.assert_close(values, values.permute(2, 3, 0, 1), rtol=1e-5, atol=1e-5)
            if solver not in EXTRAPOLATED:
                assert_positive(values.reshape(2 * ((STEPS + 1) * ROWS,)).double())


@pytest.mark.parametrize("case", [case for case in CASES if not supports(*case)], ids=": ".join)
def test_what_is_not_supported_is_refused_for_one_that_does_it(case: tuple[str, str]) -> None:
    with pytest.raises(UnsupportedProblemError, match="Remedy: ") as refused:
        solve(PROBLEMS[case[1]](), build(case[0]))
    named = re.findall(r"solvers\.(\w+)", str(refused.value))
    assert any(supports(solver, case[1]) for solver in named), refused.value


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_choice_is_one_that_does_it(problem: str) -> None:
    assert supports(type(choose(PROBLEMS[problem]())[0]).__name__, problem)


@pytest.mark.parametrize("lr", [30.0, 1e15])
@pytest.mark.parametrize("solver", REFUSED)
def test_training_that_diverges_is_an_error_with_a_remedy(solver: str, lr: float) -> None:
    """In float32: some numbers overflow in the answer only. White inputs, which all solvers take; a flow takes any lr."""
    activation = "linear" if solver in ("DeepLinear", "WhitenedLinear") else "softplus"
    problem = PROBLEMS["white"](activation=activation, lr=lr, steps=40, test_inputs=None)
    with pytest.raises(ConvergenceError, match=r"(?s)(diverge|did not converge).*Remedy"):
        solve(problem, build(solver), record=[40])


@pytest.mark.parametrize("record", [[0, 10, 20], [20]])
@pytest.mark.parametrize("solver", ["InfiniteWidth", "InfiniteWidth by strides", "FiniteWidth", "StaticNTK"])
def test_outputs_that_grow_without_end_are_an_error_though_they_are_finite(solver: str, record: list[int]) -> None:
    activation, lr = ("linear", 2.5) if solver == "StaticNTK" else ("tanh", 3.0)
    problem = Problem.mlp(INPUTS[:TRAIN], SIGNS, depth=2, activation=activation, lr=lr, steps=20)
    with pytest.raises(ConvergenceError, match=r"outputs grow without end.*at step \d+.*Remedy: an lr smaller"):
        solve(problem, build(solver), record=record)


@pytest.mark.parametrize("batches", [None, [torch.tensor([0, 1])] * 2])
def test_a_network_that_diverges_before_its_first_record_is_an_error_with_a_remedy(
    batches: list[Tensor] | None,
) -> None:
    """Nothing is known yet of where its samples are, and NaN do not tell."""
    problem = PROBLEMS["residual"](lr=1e15, steps=2, batches=batches)
    with pytest.raises(ConvergenceError, match=r"outputs at step 2 are not finite.*Remedy: an lr smaller"):
        solve(problem, build("InfiniteWidth"), record=[2])


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    """Where nothing else overflows: outputs may leave the domain of a loss."""

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean() + 0 * torch.log(0.2 - outputs.abs().max())

    problem = Problem.mlp(INPUTS[:TRAIN], SIGNS, depth=1, lr=0.1, steps=6, loss=loss)
    with pytest.raises(ConvergenceError, match=r"loss of the solution is not finite.*at step \d.*Remedy"):
        solve(problem, build("InfiniteWidth"))


def test_a_catapult_is_an_answer() -> None:
    """Outputs that are large on the way and come back."""
    problem = Problem.mlp(INPUTS[:TRAIN], SIGNS, depth=2, activation="linear", lr=0.6, steps=20)
    answer = solve(problem, solvers.DeepLinear())
    assert float(answer.losses.max()) > 1.2 * float(answer.losses[0]) > float(answer.losses[-1])


@pytest.mark.parametrize("record", [[-1], [STEPS + 1], [], torch.tensor([0.0, 1.5])])
def test_steps_that_cannot_be_recorded(record: object) -> None:
    with pytest.raises(DMFTError, match="Remedy"):
        solve(PROBLEMS["tanh"](), solvers.StaticNTK(), record=record)
