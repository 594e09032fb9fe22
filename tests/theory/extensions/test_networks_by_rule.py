"""Networks of one width that learn by a rule: against the oracle's, as judges of a run, and their singular values."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

import torch_dmft as dmft
from tests.reference.learning_rules import Rule
from tests.theory.extensions.rules import INPUTS, RECORD, RULES, TARGETS, pose
from torch_dmft.theory import solvers, spectrum
from torch_dmft.theory.engine import training

WIDTH, NETWORKS, REPLICAS = 32, 512, 32


def off(answer: dmft.Trajectory, outputs: Tensor) -> tuple[float, float]:
    """Standard errors between the means of f, and between the logarithms of its standard deviations over networks."""
    pairs = outputs.unflatten(0, (2, -1)).mean(0)  # of opposite readouts, which are not independent
    mean, error = pairs.mean(0), pairs.std(0) / len(pairs) ** 0.5
    assert answer.stderr is not None
    z = (answer.outputs[..., 0] - mean) / (error.square() + answer.stderr.outputs[..., 0].square()).sqrt()
    apart = (answer.spread.outputs[..., 0] / outputs.std(0)).log() * (2 * len(answer.replicas)) ** 0.5
    return float(z.abs().max()), float(apart.abs().max())


@pytest.mark.parametrize(("rule", "rho"), RULES)
def test_networks_are_those_of_the_oracle(rule: str, rho: float) -> None:
    case = Rule(INPUTS, TARGETS, rule, rho, 2.0, depth=2)
    outputs = case.train(WIDTH, NETWORKS, torch.Generator().manual_seed(1), RECORD)["outputs"]
    networks = solvers.FiniteWidth(WIDTH, REPLICAS, tolerance=0.1)  # dense whatever the tolerance
    answer = dmft.solve(pose(case), networks, record=RECORD)
    assert answer.metadata["dense"]
    assert max(off(answer, outputs)) <= 5
    assert off(dmft.solve(pose(case, rule="gradient", rho=0.0), networks, record=RECORD), outputs)[0] > 5


def test_every_network_has_backward_weights_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what networks make of one draw of them would be taken for the mean."""
    taught, seeds = training.learning_rule, []

    def noted(plan: dmft.Plan, rule: str, *, rho: float, generator: torch.Generator) -> Any:
        seeds.append(generator.initial_seed())
        return taught(plan, rule, rho=rho, generator=generator)

    monkeypatch.setattr(training, "learning_rule", noted)
    dmft.solve(pose(Rule(INPUTS, TARGETS, "feedback_alignment")), solvers.FiniteWidth(8, 5), record=0)
    assert len(set(seeds)) == 5


def trained(width: int, seed: int, rule: str = "feedback_alignment") -> tuple[dmft.Recorder, nn.Sequential]:
    """A chain of three hidden layers that learns by a rule."""
    modules: list[nn.Module] = []
    for fan_in, fan_out in pairwise((6, width, width, width, 1)):
        modules += [nn.Linear(fan_in, fan_out, bias=False), nn.Tanh()]
    model, source = nn.Sequential(*modules[:-1]), torch.Generator().manual_seed(seed)
    plan = dmft.parameterize(model, INPUTS, gamma0=3.0, generator=source)
    recorder, optimizer = dmft.Recorder(plan, dmft.Probe(INPUTS, TARGETS), every=10), SGD(plan.param_groups(0.2))
    with dmft.learning_rule(plan, rule, generator=source), recorder.attach(optimizer):
        for _ in range(20):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(INPUTS), TARGETS).backward()
            optimizer.step()
    return recorder, model


def test_a_run_is_judged_by_networks_that_learn_as_it_did() -> None:
    """One that learned by the gradient, and is said to have learned by the rule, is told from them."""
    problem = trained(64, 1)[0].problem()
    networks = dmft.solve(problem, solvers.FiniteWidth(64, 39), record=[0, 10, 20])
    for rule in ("feedback_alignment", "gradient"):
        runs = [replace(trained(64, seed, rule)[0].trajectory(), training=problem.training) for seed in (1, 2, 3)]
        found = [dmft.compare(run, networks).deviations[0].consistency for run in runs]
        assert [one is not None and one.consistent for one in found] == [rule != "gradient"] * 3


def test_singular_values_are_those_of_networks() -> None:
    problem = trained(64, 0)[0].problem()
    values = torch.stack(
        [torch.linalg.svdvals(trained(256, seed)[1][4].weight.detach().double()) for seed in range(16)]
    )
    mean, error = values[:, 0].mean(), values[:, 0].std() / 4
    for posed, agrees in ((problem, True), (problem.trained(rule="gradient"), False)):
        found = spectrum(posed, "4", 20, solver=solvers.InfiniteWidth(2048, 4))
        assert found.stderr is not None
        z = float((found.values[0, 0] - mean) / (error**2 + found.stderr[0, 0] ** 2).sqrt())
        assert (abs(z) <= 5) == agrees, z
