"""A factory of another model than the run's is refused, by value; where nothing is known, one stands in."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torch_dmft as dmft
from tests.theory.factories import (
    ROWS,
    SEQUENCES,
    TARGETS,
    TOKENS,
    Factory,
    Recurrent,
    Transformer,
    drawn,
    mlp,
    trained,
)
from torch_dmft.core.errors import InvalidInputError, UnsupportedModelError
from torch_dmft.theory.choose import choose
from torch_dmft.theory.solvers import FiniteWidth, WideEnsemble

# What is refused, by value


def wider_inside(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, width, bias=False),
        nn.Tanh(),
        nn.Linear(width, 2 * width, bias=False),
        nn.Tanh(),
        nn.Linear(2 * width, 1, bias=False),
    )


def fails(width: int) -> nn.Module:
    if width % 24:
        raise ValueError(f"{width} is no multiple of 24")
    return mlp(width)


WRONG: dict[str, tuple[Factory, str]] = {
    "another activation": (lambda n: mlp(n, activation=nn.ReLU), r"outputs of factory\(16\) are off by \d"),
    "another shape": (wider_inside, r"2.weight of shape \(16, 16\) in the run, \(32, 16\) in factory\(16\)"),
    "other parameters": (lambda n: mlp(n, bias=True), r"only in the factory's: 0.bias"),
    "a fixed width": (lambda n: mlp(16), r"the same shapes at 8 and 16"),
    "a width it does not take": (fails, r"factory\(8\): ValueError: 8 is no multiple of 24"),
    "no module": (lambda n: n, r"factory\(8\) of type int"),  # type: ignore[dict-item,return-value]
}


@pytest.mark.parametrize(("factory", "message"), WRONG.values(), ids=WRONG)
def test_a_factory_of_another_model_is_refused(factory: Factory, message: str) -> None:
    problem = trained(mlp, ROWS, steps=1).problem()
    with pytest.raises(InvalidInputError, match=message):
        dmft.solve(problem, WideEnsemble((8, 16), 4, factory=factory))


def test_other_roles_and_gains_are_refused() -> None:
    plan = dmft.parameterize(mlp(16), ROWS, wider=mlp, roles={"2": "input"})
    problem = dmft.Problem.like(plan, dmft.Probe(ROWS, TARGETS), lr=0.1, steps=1)
    dmft.solve(problem, FiniteWidth(8, 4, factory=mlp))  # the same roles are given
    plan.wrapping = replace(plan.wrapping, roles=None)
    with pytest.raises(InvalidInputError, match=r"2.weight: input in the run, hidden in factory\(8\)"):
        dmft.solve(problem, FiniteWidth(8, 4, factory=mlp))


def load(model: nn.Module) -> None:
    """A checkpoint: numbers that no fresh draw has."""
    with torch.no_grad():
        model[2].weight.copy_(torch.outer(drawn(16), drawn(16)) / 16)


def test_pretrained_and_frozen_values_that_the_factory_does_not_have_are_refused() -> None:
    def frozen(model: nn.Module) -> None:
        load(model)
        model[2].weight.requires_grad_(False)

    for before, init in ((frozen, "normal"), (load, "keep"), (load, "untouched")):
        problem = trained(mlp, ROWS, steps=1, before=before, init=init, wider=mlp).problem()
        with pytest.raises(InvalidInputError, match=r"2.weight starts .* in the run, .* in the factory's"):
            dmft.solve(problem, FiniteWidth(8, 4, factory=mlp))

    def random(model: nn.Module) -> None:  # values that the factory has too, as good as those of any draw
        model[2].weight.requires_grad_(False)

    problem = trained(mlp, ROWS, steps=1, before=random, wider=mlp).problem()
    dmft.solve(problem, FiniteWidth(8, 4, factory=mlp))


def test_a_checkpoint_that_was_loaded_after_wrapping_is_refused() -> None:
    plan = dmft.parameterize(mlp(16), ROWS, wider=mlp)
    load(plan.model)
    optimizer = torch.optim.SGD(plan.param_groups(0.1))
    recorder = dmft.Recorder(plan, dmft.Probe(ROWS, TARGETS))
    with recorder.attach(optimizer):
        F.mse_loss(plan.model(ROWS), TARGETS).backward()
        optimizer.step()
    with pytest.raises(InvalidInputError, match=r"2.weight starts .* in the run"):
        dmft.solve(recorder.problem(), FiniteWidth(8, 4, factory=mlp))


def test_a_problem_without_a_model_has_no_use_for_a_factory() -> None:
    problem = dmft.Problem.mlp(ROWS, TARGETS, steps=1)
    with pytest.raises(InvalidInputError, match=r"Problem.mlp.*widened by itself"):
        dmft.solve(problem, WideEnsemble((8, 16), 4, factory=mlp))
    with pytest.raises(InvalidInputError, match=r"function width -> model"):
        WideEnsemble((8, 16), 4, factory=mlp(8))


# What stands in


def test_what_has_no_theory_says_so_and_the_remedy_works() -> None:
    problem = trained(Transformer, TOKENS, steps=1, width=64, wider=Transformer(256)).problem()
    with pytest.raises(UnsupportedModelError, match=r"WideEnsemble\(factory=\.\.\.\)") as caught:
        dmft.solve(problem)
    assert "attention" in {place.path for place in caught.value.places}
    with pytest.raises(UnsupportedModelError, match=r"WideEnsemble\(factory=\.\.\.\)"):
        dmft.solve(problem, dmft.solvers.InfiniteWidth())
    with pytest.raises(UnsupportedModelError, match=r"WideEnsemble\(factory=\.\.\.\)"):
        dmft.solve(problem, WideEnsemble((8, 16), 4))
    assert dmft.solve(problem, WideEnsemble((8, 16), 4, factory=Transformer), record=[1]).stderr is not None
    # A plan that was made with the factory knows it.
    solver, why = choose(trained(Transformer, TOKENS, steps=1, width=64, wider=Transformer).problem())
    assert isinstance(solver, WideEnsemble)
    assert "no infinite-width law for attention" in why
    compared = dmft.compare(
        (recorder := trained(Recurrent, SEQUENCES, steps=1, wider=Recurrent)).trajectory(),
        dmft.solve(recorder.problem(), WideEnsemble((8, 16), 4)),
        problem=recorder.problem(),
        replicas=4,
    )
    assert compared.predictions[1].width == 16


@pytest.mark.parametrize("always", [False, True], ids=["self.training", "training=True"])
def test_functional_dropout_is_found(always: bool) -> None:
    class Dropping(Recurrent):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.dropout(self.lstm(x)[0][:, -1], 0.3, always or self.training))

    plan = dmft.parameterize(Dropping(16), SEQUENCES, wider=Dropping)
    assert [place.path for place in plan.architecture.train_differs] == ["(model)"]
    with pytest.raises(UnsupportedModelError, match="draws random numbers in train mode"):
        dmft.Problem.like(plan, dmft.Probe(SEQUENCES, TARGETS), lr=0.1, steps=1)


def test_dropout_is_found_where_it_is() -> None:
    def factory(width: int) -> nn.Module:
        return nn.Sequential(nn.Embedding(11, width), nn.Flatten(), nn.Dropout(0.1), Half(width), nn.Linear(width, 1))

    class Half(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.inside = nn.Sequential(nn.Linear(5 * width, width), nn.Tanh(), nn.Dropout(0.2))

        def forward(self, h: Tensor) -> Tensor:
            return F.dropout(self.inside(h), 0.5, self.training)

    plan = dmft.parameterize(factory(16), TOKENS, wider=factory, outputs=lambda out: out)
    assert [place.path for place in plan.architecture.train_differs] == ["2", "3.inside.2", "3"]
