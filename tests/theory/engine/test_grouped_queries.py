"""Queries that share keys and values: grouped-query and multi-query attention at infinite width is that of wide networks."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torch_dmft as dmft
from tests import transformer
from tests.reference.ensembles import observables
from tests.theory.engine.test_attention import encoder
from tests.theory.validation.wrong import WithoutResponses

STEPS = 12


class Grouped(nn.Module):
    """Heads of which pairs, or all, share keys and values; four of them, or heads of size 2 that grow in number."""

    def __init__(self, width: int, kind: str, way: str = "repeat", power: float = 1.0) -> None:
        super().__init__()
        few = width // (4 if kind == "multi-query" else 2)
        self.q, self.out = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.k, self.v = (nn.Linear(width, few, bias=False) for _ in range(2))
        self.kind, self.way, self.power = kind, way, power

    def forward(self, x: Tensor) -> Tensor:
        keys = {"growing": (-1, 2), "grouped": (2, -1), "multi-query": (1, -1)}[self.kind]
        layouts = ((-1, 2) if self.kind == "growing" else (4, -1), keys)
        q = self.q(x).unflatten(-1, layouts[0]).transpose(1, 2)
        k, v = (layer(x).unflatten(-1, layouts[1]).transpose(1, 2) for layer in (self.k, self.v))
        times = q.shape[1] // k.shape[1]
        if self.way == "repeat":
            k, v = (part.repeat_interleave(times, 1) for part in (k, v))
        elif self.way == "expand":
            k, v = (part[:, :, None].expand(-1, -1, times, -1, -1).flatten(1, 2) for part in (k, v))
        scale = 2.5 / q.shape[-1] ** self.power
        if self.way == "by hand":
            k, v = (part.repeat_interleave(times, 1) for part in (k, v))
            mixed = (q @ k.mT * scale).softmax(-1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=self.way == "gqa")
        result: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return result


KINDS = ("grouped", "multi-query", "growing")


def pose(kind: str, way: str = "repeat", gamma0: float = 2.0, power: float = 1.0) -> dmft.Problem:
    inputs, targets = transformer.data(5, torch.Generator().manual_seed(0))
    model = encoder(16, norm=False)
    model.blocks[0].attention = Grouped(16, kind, way, power)
    plan = dmft.parameterize(model, inputs, gamma0=gamma0, generator=torch.Generator().manual_seed(1))
    return dmft.Problem.like(plan, dmft.Probe(inputs, targets), lr=0.05 if gamma0 > 1 else 0.1, steps=STEPS)


@cache
def networks(kind: str, gamma0: float) -> dmft.Trajectory:
    solver = dmft.solvers.WideEnsemble((64, 128, 256), pairs=24)
    return dmft.solve(pose(kind, gamma0=gamma0), solver, record=[0, STEPS])


def off(one: dmft.Trajectory, other: dmft.Trajectory) -> float:
    """The largest difference in standard errors."""
    (a, da), (b, db) = ((observables(run), observables(run.stderr)) for run in (one, other))
    return max(float(((a[n] - b[n]) / (da[n] ** 2 + db[n] ** 2 + 1e-10).sqrt()).abs().max()) for n in a)


@pytest.mark.parametrize("gamma0", [pytest.param(1.0, marks=pytest.mark.long), 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_limit_is_that_of_wide_networks(kind: str, gamma0: float) -> None:
    problem = pose(kind, gamma0=gamma0)
    answer = dmft.solve(problem, dmft.solvers.InfiniteWidth(1024, 4), record=[0, STEPS])
    assert off(answer, networks(kind, gamma0)) < 5
    for known in (answer, networks(kind, gamma0)):  # sharp enough for wrong answers to fail
        assert float(known.stderr.outputs[-1].norm() / known.outputs[-1].norm()) < 0.1
    without = dmft.solve(problem, WithoutResponses(1024, 4), record=[0, STEPS])
    assert off(without, networks(kind, gamma0)) > 5


@pytest.mark.parametrize("way", ["expand", "gqa", "by hand"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_way_keys_are_repeated_is_no_matter(kind: str, way: str) -> None:
    """Exact: the same latents, and the same numbers made of them."""
    answers = [
        dmft.solve(pose(kind, each), dmft.solvers.InfiniteWidth(128, 2, tolerance=0.1), record=[0, 5])
        for each in ("repeat", way)
    ]
    torch.testing.assert_close(answers[0].outputs, answers[1].outputs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["grouped", "multi-query"])
def test_scores_over_a_root_are_held_by_queries_or_keys(kind: str) -> None:
    """Exact: the model with 1/d in forward."""
    solver, answers = dmft.solvers.InfiniteWidth(128, 2, tolerance=0.1), []
    for power in (0.5, 1.0):
        problem = pose(kind, power=power)
        assert len(problem.network.plan.architecture.factors) == (power == 0.5)
        answers.append(dmft.solve(problem, solver, record=[0, 5]))
    torch.testing.assert_close(answers[0].outputs, answers[1].outputs, rtol=1e-3, atol=1e-5)
    for one, other in zip(*(answer.layers for answer in answers), strict=True):
        torch.testing.assert_close(one.backward.array, other.backward.array, rtol=1e-2, atol=1e-3)
