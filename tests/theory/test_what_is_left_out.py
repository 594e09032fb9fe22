"""Error bars contain what sampling does not: truncation, which linear chains have alone, and rounding."""

import pytest
import torch
from torch import Tensor

from tests.reference.ensembles import observables
from torch_dmft import Problem, solve, solvers


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square().sum()


def linear(lr: float) -> Problem:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(8, 10, generator=generator), torch.sign(torch.randn(8, 1, generator=generator))
    return Problem.mlp(x, y, depth=2, activation="linear", lr=lr, steps=40, loss=half_square)


@pytest.mark.parametrize("strides", [False, True])
@pytest.mark.parametrize("tolerance", [None, 1e-3, 1e-2])
@pytest.mark.parametrize("lr", [0.01, 0.2], ids=["smooth", "catapult"])
def test_linear_chains_are_within_their_error_bars(lr: float, tolerance: float | None, strides: bool) -> None:
    """In a catapult, where the loss first grows, whatever is left out grows too."""
    problem, record = linear(lr), [10, 25, 40]
    exact = solve(problem, solvers.DeepLinear(), record=record)
    answer = solve(problem, solvers.InfiniteWidth(512, 2, tolerance, strides=strides), record=record)
    truth, bars = observables(exact), observables(answer.stderr)
    for name, values in observables(answer).items():
        # All times together: at one of them two answers may cross.
        error, bar = float((values - truth[name]).double().norm()), float(bars[name].double().norm())
        assert error <= 4 * bar + 3e-7 * float(truth[name].double().norm()), (name, error, bar)
    if tolerance is None and lr == 0.01:
        assert float(bars["outputs"].max()) < 1e-5


def test_the_bar_of_a_loss_is_no_smaller_than_rounding() -> None:
    """Of outputs near one that are off by half a unit in the last place."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 8, generator=generator)
    problem = Problem.mlp(x, torch.tensor([[1.0], [-1.0], [1.0]]), depth=1, lr=0.3, steps=400, loss=half_square)
    answer = solve(problem, solvers.InfiniteWidth(256, 2), record=[200, 400])
    assert answer.stderr is not None
    assert float(answer.losses[-1]) < 1e-12
    assert bool((answer.losses <= 5 * answer.stderr.losses).all())
    assert bool((answer.stderr.losses > 1e-16).all())
    assert bool((answer.stderr.outputs >= 1e-7).all())
