"""A short version of the table with every change; the page is that of the results."""

from __future__ import annotations

import json

import pytest

from tests.models.__main__ import models
from tests.models.along_width import off
from tests.models.check import check, is_right
from tests.models.entry import Model
from tests.models.page import PAGE, RESULTS, page
from tests.models.reasons import REASONS
from tests.models.wrap import coordinate, is_alike, is_by_chance, is_complete, median, stands_out, wrapped

SHORT = (
    *("message passing", "deep equilibrium", "PINN of a SIREN", "spectral norm", "nn.Transformer"),
    *("DenseNet", "SwinTransformer", "MlpMixer", "ConvMixer"),
    *("GPT2LMHeadModel", "MixtralForCausalLM", "ViTForImageClassification"),
)
"""Models of every library and many kinds, in seconds each."""
WRAPPED = (
    *("message passing", "deep equilibrium", "recurrent cells", "nn.Transformer", "VisionTransformer", "MlpMixer"),
    *(
        "GPT2LMHeadModel",
        "LlamaForCausalLM, heads that grow",
        "MixtralForCausalLM",
        *("GPT2LMHeadModel, tied", "T5ForConditionalGeneration", "T5ForConditionalGeneration, untied"),
        "tied autoencoder",
    ),
)
REFUSED = {"RwkvForCausalLM": "its forward pass writes to"}
"""Refused for a reason that is the model's own."""


@pytest.mark.parametrize("name", SHORT)
def test_a_model_is_measured_as_its_jacobian_says_and_trained_as_without(name: str) -> None:
    row = check(next(model for model in models() if model.name == name))
    assert is_right(row), row


def test_every_model_of_the_results_is_right_or_refused_by_name() -> None:
    rows = json.loads(RESULTS.read_text())["models"]
    assert set(rows) == {f"{model.library}: {model.name}" for model in models()}
    assert len(rows) >= 100
    for key, row in rows.items():
        name = key.split(": ", 1)[1]
        assert is_right(row) or REFUSED.get(name, "\0") in row.get("refused", ""), (key, row)


def test_the_page_is_that_of_the_results() -> None:
    assert PAGE.read_text() == page(json.loads(RESULTS.read_text()))


@pytest.mark.parametrize(
    "broken", [{"difference": 1e-3}, {"identical": False}, {"measured": False}, {"difference": None}]
)
def test_a_wrong_row_is_not_right(broken: dict[str, object]) -> None:
    row = {"measured": True, "identical": True, "difference": 1e-12}
    assert is_right(row)
    assert not is_right({**row, **broken})


def entry(name: str) -> Model:
    return next(model for model in models() if model.name == name)


@pytest.mark.parametrize("name", WRAPPED)
def test_a_model_is_wrapped_by_two_widths_and_undone_bit_for_bit(name: str) -> None:
    row = wrapped(entry(name))
    assert not row["refused"], row
    assert row["undone"]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("name", ["soft experts", "deep equilibrium"])
def test_features_move_alike_at_every_width(name: str, optimizer: str) -> None:
    found = coordinate(entry(name), optimizer)
    assert is_alike(found), found
    assert not found["still"]


def test_every_model_of_the_results_is_wrapped_or_it_is_said_why_not() -> None:
    rows = json.loads(RESULTS.read_text())["models"]
    assert all(is_complete(row["scaled"]) for row in rows.values()) or "not yet" in PAGE.read_text()
    scaled = {key: row["scaled"] for key, row in rows.items() if "fixed" not in row["scaled"]}
    undone = [key for key, one in scaled.items() if one.get("wrapped", {}).get("undone")]
    assert len(undone) >= 90
    for key in set(scaled) - set(undone):
        assert key.split(": ", 1)[1] in REASONS, (key, scaled[key])
    for key, optimizer, one in off(rows):
        assert is_by_chance(one) or key.split(": ", 1)[1] in REASONS, (key, optimizer, median(one), stands_out(one))


@pytest.mark.parametrize(("exponent", "is_none"), [(0.0, True), (-0.05, True), (0.5, False), (-0.5, False)])
def test_exponents_are_told_from_none(exponent: float, is_none: bool) -> None:
    found = {"exponents": {"a": exponent, "b": exponent, "c": 3.0}, "errors": {"a": 0.01, "b": 0.01, "c": 0.01}}
    assert is_alike(found) is is_none
    assert median(found) == (abs(exponent), 0.01)
    assert stands_out(found) == (["c"] if is_none else ["a", "b", "c"])
