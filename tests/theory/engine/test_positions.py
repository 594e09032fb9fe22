"""Positions and a class token as parameters of a module of one's own: the numbers are those of embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_dmft as dmft
from tests.reference.ensembles import observables
from torch_dmft.core.errors import UnsupportedModelError
from torch_dmft.theory.engine.matched_start import match_moments, matchable
from torch_dmft.theory.engine.networks import initialise, network_of

pytestmark = pytest.mark.usefixtures("seeded")
LENGTH = 4
TOKENS = torch.tensor([[4, 3, 0], [2, 1, 2], [6, 4, 4], [5, 2, 0], [1, 5, 2]])
TARGETS = torch.tensor([[1.0], [1.0], [-1.0], [1.0], [1.0]])


class Classified(nn.Module):
    """A class token in front of tokens, positions, a layer on each, and a readout of class token and mean.

    ``own``: class token and positions are parameters, and no embeddings.
    """

    def __init__(self, width: int = 16, *, own: bool = True) -> None:
        super().__init__()
        self.own, self.tokens = own, nn.Embedding(7, width)
        if own:
            self.first = nn.Parameter(torch.randn(1, 1, width))
            self.positions = nn.Parameter(torch.randn(1, LENGTH, width))
        else:
            self.first, self.positions = nn.Embedding(1, width), nn.Embedding(LENGTH, width)
        self.mix, self.head = nn.Linear(width, width), nn.Linear(width, 1, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        tokens = self.tokens(ids)
        if self.own:
            h = torch.cat([self.first.expand(len(ids), -1, -1), tokens], dim=1) + self.positions
        else:
            h = torch.cat([self.first(torch.zeros_like(ids[:, :1])), tokens], dim=1)
            h = h + self.positions(torch.arange(LENGTH, device="cpu"))
        h = torch.tanh(self.mix(torch.tanh(h)))
        result: Tensor = self.head(h.mean(1) + h[:, 0])
        return result


def posed(model: nn.Module, **settings: Any) -> dmft.Problem:
    plan = dmft.parameterize(model, TOKENS, gain=1.0, generator=torch.Generator().manual_seed(1))
    run = {"lr": 0.1, "steps": 6, "loss": nn.MSELoss(), **settings}
    return dmft.Problem.like(plan, dmft.Probe(TOKENS, TARGETS.to(next(model.parameters()))), **run)


@pytest.mark.parametrize("run", [{"momentum": 0.5, "weight_decay": 0.1}, {"optimizer": "adam", "lr": 0.03}], ids=str)
def test_they_are_embeddings_of_constants(run: dict[str, Any]) -> None:
    """The same latents, rates and steps; so one test against networks is one of both."""
    solver = dmft.solvers.InfiniteWidth(256, 1)
    own, tables = (dmft.solve(posed(Classified(own=own).double(), **run), solver) for own in (True, False))
    for name in ("outputs", "losses", "ntk"):
        torch.testing.assert_close(observables(own)[name], observables(tables)[name], rtol=1e-10, atol=1e-10)
    assert float((own.outputs[-1] - own.outputs[0]).abs().max()) > 0.1


@pytest.mark.parametrize("name", ["first", "positions"])
def test_they_learn(name: str) -> None:
    """A frozen one is another network, of the same latents."""
    model = Classified().double()
    model.get_parameter(name).requires_grad_(False)
    solver = dmft.solvers.InfiniteWidth(256, 1)
    frozen, right = dmft.solve(posed(model), solver), dmft.solve(posed(Classified().double()), solver)
    torch.testing.assert_close(frozen.outputs[0], right.outputs[0])
    assert float((frozen.outputs[1] - right.outputs[1]).norm() / right.outputs[1].norm()) > 0.05
    assert float((frozen.ntk.array[0] - right.ntk.array[0]).norm() / right.ntk.array[0].norm()) > 0.05


def test_networks_widened_by_themselves_have_this_limit() -> None:
    model = Classified()
    nn.init.uniform_(model.first, -1, 1)
    nn.init.normal_(model.positions, std=0.5, generator=torch.Generator().manual_seed(0))
    problem = posed(model, steps=3)
    networks = dmft.solve(problem, dmft.solvers.WideEnsemble((24, 48, 96), 12), record=[3])
    theory = dmft.solve(problem, dmft.solvers.InfiniteWidth(512, 4), record=[3])
    for name in ("outputs", "losses"):
        ours, theirs = getattr(theory, name), getattr(networks, name)
        error = (getattr(theory.stderr, name) ** 2 + getattr(networks.stderr, name) ** 2).sqrt()
        assert float(((ours - theirs) / error).abs().max()) < 5
        assert float(error.square().mean().sqrt() / ours.square().mean().sqrt()) < 0.2


def test_their_moments_are_matched_beside_those_of_embeddings() -> None:
    plan = network_of(posed(Classified().double()), 64)
    initialise(plan, torch.Generator().manual_seed(0))
    match_moments(plan, matchable(plan))
    rows = torch.cat([plan.model.tokens.weight, plan.model.first[0], plan.model.positions[0]]).detach()
    torch.testing.assert_close(rows @ rows.T / 64, torch.eye(12, dtype=torch.float64), rtol=0, atol=1e-10)
    assert plan.rule("positions").lr == 64.0


@pytest.mark.parametrize("given", [Classified, lambda: dmft.parameterize(Classified(8), TOKENS), lambda: Classified(8)])
def test_twins_have_rows_of_their_own_width(given: Callable[..., Any]) -> None:
    source = given if given is Classified else given()
    wide = dmft.infinite_width(source, TOKENS, neurons=240)
    assert wide.model.positions.shape == (1, LENGTH, 240)
    assert float(wide.model.first.square().mean()) == pytest.approx(1.0, rel=1e-5)
    wide.model(TOKENS).sum().backward()
    assert bool(wide.model.first.grad.any())


@pytest.mark.parametrize("number", [1.0, 0.0])
def test_a_parameter_of_one_number_starts_as_that(number: float) -> None:
    def problem(width: int, **settings: Any) -> dmft.Problem:
        torch.manual_seed(0)
        model = Classified(width).double()
        nn.init.constant_(model.first, number)
        return posed(model, **settings)

    wide = dmft.solvers.InfiniteWidth(256, 2)
    theory, networks = dmft.solve(problem(16, steps=3), wide), dmft.solvers.WideEnsemble((24, 48, 96), 12)
    networks = dmft.solve(problem(16, steps=3), networks, record=[0, 3])
    for name in ("outputs", "losses", "ntk"):
        ours, theirs = observables(theory)[name][[0, 3]], observables(networks)[name]
        error = (observables(theory.stderr)[name][[0, 3]] ** 2 + observables(networks.stderr)[name] ** 2).sqrt()
        assert float(((ours - theirs) / error.clamp_min(1e-9)).abs().max()) < 5
        assert float(error.square().mean().sqrt() / ours.square().mean().sqrt()) < 0.25, name


def _sines() -> nn.Module:
    model = Classified(64)
    waves = torch.outer(torch.arange(1.0, LENGTH + 1, device="cpu"), torch.arange(64.0, device="cpu") / 9)
    model.positions = nn.Parameter(waves.sin()[None])
    return model


def _shifted() -> nn.Module:
    model = Classified(64)
    with torch.no_grad():
        model.first.add_(3)
    return model


@pytest.mark.parametrize("make", [_sines, _shifted])
@pytest.mark.parametrize("solver", [dmft.solvers.InfiniteWidth(256, 1), dmft.solvers.WideEnsemble((16, 32), 4)])
def test_rows_that_are_no_independent_numbers_are_refused(make: Any, solver: Any) -> None:
    problem = posed(make())
    with pytest.raises(UnsupportedModelError, match=r"(positions|first): its rows start as"):
        dmft.solve(problem, solver)
