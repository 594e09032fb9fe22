"""The first sentence: whether a network is as close to its prediction as its width lets it be, against trained networks."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import torch_dmft as dmft
from tests.trajectories import two_layers
from torch_dmft.comparison import compare
from torch_dmft.core.trajectory import Trajectory

INPUTS = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
TARGETS = INPUTS[:, :1].sign()
FOLLOWS, DEPARTS = (
    "as closely as one expects of its width",
    "departs from theory (N=inf) by more than its width explains",
)


def network(width: int, seed: int, gamma0: float, *, gain: float = 1.0) -> tuple[Trajectory, dmft.Problem]:
    """A network that learns for 20 steps, from a start of any size."""
    generator = torch.Generator().manual_seed(seed)
    layers = [nn.Linear(8, width, bias=False), nn.Tanh(), nn.Linear(width, width, bias=False), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(width, 1, bias=False))
    plan = dmft.parameterize(model, INPUTS, gamma0=gamma0, generator=generator)
    recorder = dmft.Recorder(plan, dmft.Probe(INPUTS, TARGETS), every=10, fields=False)
    problem = dmft.Problem.like(plan, dmft.Probe(INPUTS, TARGETS), lr=0.05, steps=20)
    with torch.no_grad():
        model[0].weight *= gain
    optimizer = torch.optim.SGD(plan.param_groups(lr=0.05))
    with recorder.attach(optimizer):
        for _ in range(20):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(INPUTS), TARGETS).backward()
            optimizer.step()
    return recorder.trajectory(), problem


@pytest.mark.parametrize("gamma0", [0.3, 1.0, 3.0])
def test_networks_of_every_width_follow_their_theory(gamma0):
    _, problem = network(8, 0, gamma0)
    solver = dmft.solvers.InfiniteWidth(2048, 2, generator=torch.Generator().manual_seed(1))
    theory = dmft.solve(problem, solver, record=[0, 10, 20])
    for width in (128, 512):
        for seed in range(4):
            assert FOLLOWS in compare(network(width, seed, gamma0)[0], theory).verdict.partition(". ")[0]


@pytest.mark.filterwarnings("ignore:network")
def test_a_network_that_starts_too_large_departs():
    """By more than any width explains; of a narrow network nobody can tell."""
    _, problem = network(8, 0, 1.0)
    solver = dmft.solvers.InfiniteWidth(2048, 2, generator=torch.Generator().manual_seed(1))
    theory = dmft.solve(problem, solver, record=[0])
    starts = [network(width, 0, 1.0, gain=3.0)[0].at_steps(torch.tensor([0])) for width in (512, 8)]
    verdicts = [compare(replace(start, training=theory.training), theory).verdict for start in starts]  # unseen
    assert DEPARTS in verdicts[0]
    assert DEPARTS not in verdicts[1]


def test_what_cannot_be_told_names_the_way_to_tell_it():
    """Between a few and ten / sqrt(N), or further from a prediction that is as uncertain."""
    theory = two_layers(origin="theory (N=inf)")
    errors = [compare(two_layers(noise=noise), theory) for noise in (0.02, 0.3, 3.0)]
    assert FOLLOWS in errors[0].verdict
    assert "compare(..., problem=problem)" in errors[1].verdict
    assert DEPARTS in errors[2].verdict
    unsure = compare(two_layers(noise=3.0), two_layers(origin="theory (N=inf)", stderr=3.0))
    assert DEPARTS not in unsure.verdict
