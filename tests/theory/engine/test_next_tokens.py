"""Language models: a class at every token, which f holds side by side, and f as a function of what a model returns."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torch_dmft as dmft
from tests.reference.ensembles import Limit, fit, observables
from tests.reference.pairs import descend, estimate
from tests.theory.validation.agreement import STANDARD_ERRORS
from torch_dmft.core.classes import PlacesCrossEntropy
from torch_dmft.core.errors import InvalidInputError

VOCABULARY, LENGTH = 3, 2
TOKENS = torch.tensor([[0, 1], [2, 2], [1, 0]])
NEXT = torch.tensor([[1, 2], [2, 0], [0, 0]])
PAST = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
STEPS, RECORD = 8, (0, 4, 8)
SOLVER = dmft.solvers.InfiniteWidth(1024, 4)


class Model(nn.Module):
    """Next tokens from this one and the mean of those so far; ``flat`` returns rows, as measurements need them."""

    def __init__(self, width: int = 16, *, flat: bool = False) -> None:
        super().__init__()
        self.flat = flat
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.mix, self.head = nn.Linear(width, width, bias=False), nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        known = torch.tanh(self.tokens(x))
        past = PAST @ known
        scores: Tensor = self.head(torch.tanh(self.mix(past)))
        return scores.flatten(1) if self.flat else scores


def flat(returned: Tensor) -> Tensor:
    return returned.flatten(1)


def of_all_places(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.view(-1, VOCABULARY), targets.view(-1))


def of_the_last_place(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs[:, -VOCABULARY:], targets[:, -1])


def wrapped(model: nn.Module, *, gamma0: float = 1.0) -> dmft.Plan:
    """A plan whose weights are always the same; tables keep what they started with."""
    generator = torch.Generator().manual_seed(1)
    nn.init.normal_(model.get_parameter("tokens.weight"), generator=generator)
    return dmft.parameterize(model, TOKENS, gamma0=gamma0, gain=1.0, generator=generator)


def recorded(
    model: nn.Module,
    outputs: Callable[[Tensor], Tensor] | None,
    *,
    gamma0: float = 1.0,
    lr: float = 0.5,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> dmft.Recorder:
    """A recorded run of a loop of one's own on next tokens."""
    plan = wrapped(model, gamma0=gamma0)
    recorder = dmft.Recorder(plan, dmft.Probe(TOKENS, NEXT), outputs=outputs, loss=loss, schedule=RECORD)
    optimizer = torch.optim.SGD(plan.param_groups(lr))
    with recorder.attach(optimizer):
        for _ in range(STEPS):
            optimizer.zero_grad()
            scores = model(TOKENS).view(len(TOKENS), LENGTH, VOCABULARY)
            (loss or of_all_places)(scores.flatten(1), NEXT).backward()
            optimizer.step()
    return recorder


SOLVERS = [
    dmft.solvers.InfiniteWidth(128, 1),
    dmft.solvers.FiniteWidth(16, 4),
    dmft.solvers.WideEnsemble((16, 32), 4),
]


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
def test_a_function_of_what_a_model_returns_is_as_if_it_returned_that(solver: Any) -> None:
    chosen, returned = recorded(Model(), flat), recorded(Model(flat=True), None)
    torch.testing.assert_close(chosen.trajectory().outputs, returned.trajectory().outputs, rtol=0, atol=0)
    one, other = (dmft.solve(each.problem(), solver, record=RECORD) for each in (chosen, returned))
    for name, values in observables(one).items():
        torch.testing.assert_close(values, observables(other)[name], rtol=0, atol=0)
    assert float(one.losses[0] - one.losses[-1]) > 0.05


def test_part_of_what_a_model_returns_is_f() -> None:
    """The outputs that the loss does not read learn, and are not f."""
    whole = recorded(Model(flat=True), None, loss=of_the_last_place).problem()
    plan = wrapped(Model())
    probe = dmft.Probe(TOKENS, NEXT[:, -1])
    last = dmft.Recorder(plan, probe, outputs=lambda out: out[:, -1], schedule=RECORD)
    optimizer = torch.optim.SGD(plan.param_groups(0.5))
    with last.attach(optimizer):
        for _ in range(STEPS):
            optimizer.zero_grad()
            F.cross_entropy(plan.model(TOKENS)[:, -1], NEXT[:, -1]).backward()
            optimizer.step()
    one, other = (dmft.solve(each, SOLVERS[1], record=RECORD) for each in (last.problem(), whole))
    torch.testing.assert_close(one.outputs, other.outputs[:, :, -VOCABULARY:], rtol=1e-5, atol=1e-6)


def networks(width: int, count: int, gamma0: float, lr: float, generator: torch.Generator) -> dict[str, Tensor]:
    """Plain networks of the model in unit form, with their outputs and losses before each recorded step.

    The second half has the first half's weights and the opposite readout.
    """
    draw = {"tokens": (VOCABULARY, width), "mix": (width, width), "head": (VOCABULARY, width)}
    theta = {name: torch.randn(count // 2, *shape, generator=generator) for name, shape in draw.items()}
    theta = {name: torch.cat([p, -p if name == "head" else p]).requires_grad_() for name, p in theta.items()}
    found: dict[str, list[Tensor]] = {"outputs": [], "losses": []}
    for step in range(STEPS + 1):
        known = torch.tanh(theta["tokens"][:, TOKENS])
        past = torch.stack([known[:, :, 0], known.mean(2)], dim=2)
        last = torch.tanh(past @ theta["mix"].mT[:, None] / math.sqrt(width))
        f = last @ theta["head"].mT[:, None] / (gamma0 * width)
        chances = f.log_softmax(-1).gather(-1, NEXT.expand(count, -1, -1)[..., None]).squeeze(-1)
        losses = -chances.mean((1, 2))
        if step in RECORD:
            found["outputs"].append(f.flatten(2).detach())
            found["losses"].append(losses.detach())
        descend(theta.values(), losses, lr * gamma0**2 * width)
    return {name: torch.stack(values, dim=1) for name, values in found.items()}


@pytest.fixture(scope="module", params=[(0.5, 1.0), (2.0, 0.3)], ids=["gamma0=0.5", "gamma0=2"])
def case(request: pytest.FixtureRequest) -> tuple[Limit, dict[str, float]]:
    """The limit of networks that the package knows nothing of, and how they were trained."""
    gamma0, lr = request.param
    generator = torch.Generator().manual_seed(5)
    sizes = {32: 1024, 64: 512, 128: 256}
    found = [estimate(width, networks(width, count, gamma0, lr, generator)) for width, count in sizes.items()]
    return fit(found), {"gamma0": gamma0, "lr": lr}


def off(answer: dmft.Trajectory, limit: Limit) -> float:
    """By how many standard errors, at most, an output or a loss is not that of the networks."""
    found, worst = observables(answer), 0.0
    for name, errors in observables(answer.stderr).items():
        if name in limit.mean:
            together = (errors.double() ** 2 + limit.stderr[name] ** 2).sqrt()
            assert (
                float(together.square().mean().sqrt() / limit.mean[name].square().mean().sqrt()) < 0.05
            )  # sharp enough
            scores = (found[name].double() - limit.mean[name]).abs() / together.clamp_min(1e-6)
            worst = max(worst, float(scores.max()))
    return worst


def test_limit_is_that_of_wide_networks(case: tuple[Limit, dict[str, float]]) -> None:
    limit, run = case
    problem = recorded(Model(), flat, **run).problem()
    assert isinstance(problem.loss, PlacesCrossEntropy)
    assert off(dmft.solve(problem, SOLVER, record=RECORD), limit) < STANDARD_ERRORS
    assert float(limit.mean["losses"][0] - limit.mean["losses"][-1]) > 0.1


def test_next_tokens_of_other_places_have_another_limit(case: tuple[Limit, dict[str, float]]) -> None:
    limit, run = case
    wrong = recorded(Model(), flat, **run, loss=lambda f, y: of_all_places(f, y.flip(1))).problem()
    assert off(dmft.solve(wrong, SOLVER, record=RECORD), limit) > 3 * STANDARD_ERRORS


def test_loss_of_all_places_is_that_of_torch() -> None:
    """By value and by gradient, and known as the same loss whatever it is called."""
    outputs = torch.randn(3, LENGTH * VOCABULARY, generator=torch.Generator().manual_seed(0)).requires_grad_()
    theirs = nn.CrossEntropyLoss()(outputs.view(3, LENGTH, VOCABULARY).mT, NEXT)
    ours = PlacesCrossEntropy()(outputs, NEXT)
    slopes = [torch.autograd.grad(each, outputs)[0] for each in (ours, theirs)]
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*slopes)
    default, named = (recorded(Model(), flat, loss=loss).problem().training for loss in (None, of_all_places))
    assert len(default.loss_print) == 3
    torch.testing.assert_close(torch.tensor(default.loss_print), torch.tensor(named.loss_print))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (F.one_hot(NEXT[:, 0], 6), r"0\.\.0 at each of 6 places.*targets\.float\(\).*one-hot"),
        (torch.full((3, 2), 3), r"0\.\.2 at each of 2 places"),
        (torch.zeros(3, 4, dtype=torch.long), r"places of 6 outputs"),
    ],
)
def test_classes_without_outputs_are_refused(targets: Tensor, message: str) -> None:
    plan = dmft.parameterize(Model(flat=True), TOKENS)
    with pytest.raises(InvalidInputError, match=message):
        dmft.Problem.like(plan, dmft.Probe(TOKENS, targets), lr=0.1, steps=2)
    with pytest.raises(
        InvalidInputError, match=r"Every class needs an output.*at each of \d places of a model with 6 outputs"
    ):
        dmft.Probe(TOKENS, targets).target_values(6)


def test_classes_of_places_in_places_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"\(sample, place\).*Got: shape \(3, 2, 1\).*flatten"):
        dmft.Probe(TOKENS, NEXT[..., None])
