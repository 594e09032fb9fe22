"""RMSNorm before every activation, with trained gains: the twin against networks trained as modules."""

from __future__ import annotations

import math

import torch
from torch import nn

import torch_dmft as dmft
from tests.reference.ensembles import Estimate, fit, observables, z_scores

STEPS, FEATURES = 6, 5


def model(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(FEATURES, width, bias=False),
        nn.RMSNorm(width),
        nn.Tanh(),
        nn.Linear(width, width, bias=False),
        nn.RMSNorm(width),
        nn.Tanh(),
        nn.Linear(width, 1, bias=False),
    )


def half_square(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return 0.5 * (outputs - targets).square().sum()


def measured(probe: dmft.Probe, width: int, networks: int) -> Estimate:
    """Networks in pairs of opposite readout, trained and recorded one by one."""
    generator = torch.Generator().manual_seed(width)
    found: list[dict[str, torch.Tensor]] = []
    for _ in range(networks // 2):
        network = model(width)
        plan = dmft.parameterize(network, probe.inputs, generator=generator)
        start = {name: value.clone() for name, value in network.state_dict().items()}
        pair = []
        for sign in (1, -1):
            network.load_state_dict({**start, "6.weight": sign * start["6.weight"]})
            recorder = dmft.Recorder(plan, probe, schedule=[0, STEPS], loss=half_square, fields=False)
            optimizer = torch.optim.SGD(plan.param_groups(lr=0.1))
            with recorder.attach(optimizer):
                for _ in range(STEPS):
                    optimizer.zero_grad()
                    half_square(network(probe.inputs), probe.targets).backward()
                    optimizer.step()
            pair.append(observables(recorder.trajectory()))
        found.append({name: (pair[0][name] + pair[1][name]).double() / 2 for name in pair[0]})
    stacked = {name: torch.stack([each[name] for each in found]) for name in found[0]}
    return Estimate(
        width,
        networks // 2,
        {name: values.mean(0) for name, values in stacked.items()},
        {name: values.std(0) / math.sqrt(len(values)) + 1e-6 for name, values in stacked.items()},
    )


def test_theory_is_the_limit_of_networks() -> None:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(3, FEATURES, generator=generator)
    probe = dmft.Probe(inputs, torch.randn(3, 1, generator=generator))
    networks = fit([measured(probe, width, count) for width, count in ((64, 40), (128, 40))])
    plan = dmft.parameterize(model(32), inputs)
    problem = dmft.Problem.like(plan, probe, lr=0.1, steps=STEPS, loss=half_square)
    run = dmft.solve(problem, dmft.solvers.InfiniteWidth(neurons=2048, replicas=4), record=[0, STEPS])
    for name, scores in z_scores(networks, observables(run), observables(run.stderr)).items():
        assert float(scores.abs().max()) <= 5, name
    moved = run.layers[1].forward.array
    assert float((moved[1] - moved[0]).norm() / moved[0].norm()) > 0.03
    # The gains are trained: what they add is in the tangent kernel, beside all weights.
    weights = sum(layer.ntk.array for layer in run.layers)
    assert float((run.ntk.array - weights).norm()) > 0.01
