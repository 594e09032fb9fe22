"""What of a model's outputs is f, and what becomes of many outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_dmft as dmft
from tests.measurement.forms import WIDTH, Output, P, Tokens, Two, brute_force, double, drawn, ids, same
from torch_dmft.core import memory
from torch_dmft.core.errors import (
    InsufficientMemoryError,
    InvalidInputError,
)
from torch_dmft.measurement import Projection

# What of the outputs is f


SELECTIONS: dict[str, tuple[Callable[[Tensor], Any], Any]] = {
    "tuple": (lambda f: (f, "state"), None),
    "mapping": (lambda f: {"loss": None, "logits": f, "hidden": f}, None),
    "alone in a mapping": (lambda f: {"energies": f, "name": "x"}, None),
    "key": (lambda f: {"u": 2 * f, "v": f}, "v"),
    "index": (lambda f: [2 * f, f], 1),
    "attribute": (lambda f: Output(f), lambda out: out.scores),
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_outputs_of_every_form(name: str) -> None:
    shape, outputs = SELECTIONS[name]
    plain, model = double(Two()), double(Two(shape))
    expected = dmft.Recorder(plain, dmft.Probe(drawn(P, 3), drawn(P, 2))).record()
    record = dmft.Recorder(model, dmft.Probe(drawn(P, 3), drawn(P, 2)), outputs=outputs).record()
    same(record.outputs, expected.outputs)
    same(record.ntk.array, expected.ntk.array[0])
    assert float(record.losses) == pytest.approx(float(expected.losses))
    assert len(record.layers) == 2
    same(dmft.empirical_ntk(model, drawn(P, 3), outputs=outputs, method="jacobian"), expected.ntk.array[0])


@pytest.mark.parametrize(
    ("shape", "outputs", "message"),
    [
        (lambda f: {"u": f, "v": f}, None, "not known which.*keys u, v"),
        (lambda f: {"u": f, "v": f}, "w", "nothing under 'w'.*keys u, v"),
        (lambda f: (f,), 3, "nothing under 3"),
        (lambda f: Output(f), None, "must be a tensor. Got: Output"),
        (lambda f: f.argmax(1), None, "real floating-point numbers. Got: torch.int64"),
        (lambda f: f.T, None, r"put.* the samples first: out.transpose\(0, 1\)"),
    ],
)
def test_outputs_that_are_refused(shape: Callable[[Tensor], Any], outputs: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        dmft.Recorder(double(Two(shape)), dmft.Probe(drawn(P, 3)), outputs=outputs)


TOKENS: dict[str, Callable[[Tensor], Tensor]] = {
    "one place": lambda out: out[:, -1],
    "the mean": lambda out: out.mean(1),
    "all": lambda out: out.flatten(1),
}


@pytest.mark.parametrize("name", TOKENS)
def test_outputs_per_token(name: str) -> None:
    model, choose = double(Tokens()), TOKENS[name]
    with pytest.raises(InvalidInputError, match=r"out\[:, -1\] of one place, out.mean\(1\).*out.flatten\(1\)"):
        dmft.Recorder(model, dmft.Probe(ids()))
    record = dmft.Recorder(model, dmft.Probe(ids()), outputs=choose).record()
    same(record.ntk.array, brute_force(model, lambda mu: choose(model(ids()[mu : mu + 1]))))


def test_maps_name_their_remedy() -> None:
    with pytest.raises(InvalidInputError, match=r"out.mean\(\(2, 3\)\) of every channel"):
        dmft.Recorder(nn.Conv2d(1, 2, 3).double(), dmft.Probe(drawn(P, 1, 4, 4)))


def test_outputs_of_a_wrapped_model_are_selected_and_checked(generator: torch.Generator) -> None:
    """A plain chain of which a part is f; a function that mixes samples is found out."""
    model = double(nn.Sequential(nn.Linear(3, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3)))
    plan = dmft.parameterize(model, drawn(P, 3), generator=generator)
    whole = dmft.empirical_ntk(plan, drawn(P, 3))
    part = dmft.Recorder(plan, dmft.Probe(drawn(P, 3), drawn(P)), outputs=lambda out: out[:, 1]).record()
    same(part.ntk.array[0], whole[:, 1, :, 1])
    mixed = dmft.Recorder(plan, dmft.Probe(drawn(P, 3), drawn(P, 3)), outputs=lambda out: out - out.mean(0))
    with pytest.raises(ValueError, match="outputs of one sample depend on the others"):
        mixed.record()


# Many outputs


def test_a_projection_is_that_of_the_whole_kernel() -> None:
    model, chosen = double(Tokens(20)), Projection(3, of=lambda out: out[:, -1])
    whole = dmft.empirical_ntk(model, ids(), outputs=lambda out: out[:, -1])
    few = dmft.empirical_ntk(model, ids(), outputs=chosen)
    matrix = chosen.matrix(20)
    same(few, torch.einsum("mcad,ci,dj->miaj", whole, matrix, matrix))
    same(few, dmft.empirical_ntk(model, ids(), outputs=chosen, method="jacobian"))
    record = dmft.Recorder(model, dmft.Probe(ids()), outputs=Projection(3, of=lambda out: out[:, -1])).record()
    same(record.ntk.array, few)


def test_a_projection_summed_is_the_sum_over_classes_on_average() -> None:
    model = double(Tokens(20))
    whole = torch.einsum("mcac->ma", dmft.empirical_ntk(model, ids(), outputs=lambda out: out[:, -1]))
    found = []
    for seed in range(60):
        few = dmft.empirical_ntk(model, ids(), outputs=Projection(4, of=lambda out: out[:, -1], seed=seed))
        found.append(torch.einsum("mcac->ma", few))
    drawn_ones = torch.stack(found)
    z = (drawn_ones.mean(0) - whole) / (drawn_ones.std(0) / len(found) ** 0.5)
    assert float(z.abs().max()) < 5
    assert float(drawn_ones.std(0).max()) > 0


def test_a_large_vocabulary_is_refused_with_a_remedy_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Tokens(2000)
    monkeypatch.setattr(memory, "free_memory", lambda device: 2**29)
    last = dmft.Recorder(model, dmft.Probe(ids()), outputs=lambda out: out[:, -1])
    with pytest.raises(InsufficientMemoryError, match=r"2000 outputs.*Projection\(8\)"):
        last.record()
    record = dmft.Recorder(model, dmft.Probe(ids()), outputs=Projection(8, of=lambda out: out[:, -1])).record()
    assert record.ntk.array[0].shape == (P, 8, P, 8)


def test_classes_have_no_loss_of_projected_outputs() -> None:
    classes = torch.zeros(P, dtype=torch.int64)
    with pytest.raises(InvalidInputError, match="a probe without targets"):
        dmft.Recorder(double(Two()), dmft.Probe(drawn(P, 3), classes), outputs=Projection(2))
    with pytest.raises(InvalidInputError, match="a probe without targets"):
        dmft.empirical_ntk(double(Two()), drawn(P, 3), classes, outputs=Projection(2))
