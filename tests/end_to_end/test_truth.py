"""What the whole package claims, on a real network: theory beats the static NTK, and networks approach it like 1/sqrt(N)."""

from functools import cache

import pytest
import torch
from torch import nn

from torch_dmft import data
from torch_dmft.comparison import Comparison, compare
from torch_dmft.comparison.width import Gap, gap, slope
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.measurement import Probe, Recorder
from torch_dmft.parameterization import Plan, parameterize
from torch_dmft.theory import Problem, solve, solvers

LR, STEPS, SEEDS = 0.1, 40, 6
WIDTHS = (64, 256, 1024)


@cache  # for the tests that need it: loading takes a while
def probe() -> Probe:
    return Probe(*data.load("digits", 10))


def wrapped(width: int, seed: int = 0) -> Plan:
    layers = [nn.Flatten(), nn.Linear(64, width, bias=False), nn.Tanh()]
    layers += [nn.Linear(width, width, bias=False), nn.Tanh(), nn.Linear(width, 1, bias=False)]
    return parameterize(nn.Sequential(*layers), probe().inputs, generator=torch.Generator().manual_seed(seed))


def measured(width: int, seed: int) -> Trajectory:
    plan = wrapped(width, seed)
    recorder = Recorder(plan, probe(), every=10, fields=False)
    optimizer = torch.optim.SGD(plan.param_groups(LR))
    with recorder.attach(optimizer):
        for _ in range(STEPS):
            optimizer.zero_grad()
            nn.functional.mse_loss(plan.model(probe().inputs), probe().targets).backward()
            optimizer.step()
    return recorder.trajectory()


@pytest.fixture(scope="module")
def predictions() -> tuple[Trajectory, Trajectory]:
    problem, record = Problem.like(wrapped(16), probe(), lr=LR, steps=STEPS), range(0, STEPS + 1, 10)
    twins = solvers.InfiniteWidth(neurons=4096, replicas=4)
    return solve(problem, twins, record=record), solve(problem, solvers.StaticNTK(), record=record)


@pytest.fixture(scope="module")
def comparison(predictions) -> Comparison:
    return compare(measured(1024, seed=0), *predictions)


def test_theory_beats_the_static_ntk_in_every_kernel_that_learning_moves(comparison):
    theory, static = comparison.deviations
    for (name, with_learning), (_, without) in zip(theory.predicted.items(), static.predicted.items(), strict=True):
        assert with_learning.relative_error[-1] < 0.5 * without.relative_error[-1], name
    assert theory.ntk.relative_error[-1] < 0.5 * static.ntk.relative_error[-1]
    assert theory.losses.rms[-1] < 0.5 * static.losses.rms[-1]  # at first the network's random output rules


def test_the_network_learns_features(comparison):
    """Else the comparison above would be between equals."""
    static = comparison.deviations[1]
    assert static.layers[-1].forward.relative_error[-1] > 0.5


@pytest.fixture(scope="module")
def gaps(predictions) -> dict[int, list[Gap]]:
    """The gap of each network, by seed."""
    return {seed: [gap(compare(measured(width, seed), predictions[0])) for width in WIDTHS] for seed in range(SEEDS)}


@pytest.mark.parametrize("kind", ["forward", "backward", "ntk"])
def test_the_gap_to_theory_closes_like_one_over_the_root_of_the_width(gaps, kind):
    exponents = torch.tensor([slope(found, kind) for found in gaps.values()], dtype=torch.float64)
    assert exponents.mean().item() == pytest.approx(-0.5, abs=0.2)
    assert (exponents.mean() + 0.5).abs() < 5 * exponents.std() / SEEDS**0.5


def test_the_gap_to_the_static_ntk_does_not_close(gaps, predictions):
    found = [gap(compare(measured(width, seed=0), predictions[1])) for width in WIDTHS]
    assert slope(found, "forward") > -0.2
