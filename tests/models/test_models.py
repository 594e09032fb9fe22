"""A short version of the table with every change; the page is that of the results."""

from __future__ import annotations

import json

import pytest

from tests.models.__main__ import models
from tests.models.check import check, is_right
from tests.models.page import PAGE, RESULTS, page

SHORT = (
    *("message passing", "deep equilibrium", "PINN of a SIREN", "spectral norm", "nn.Transformer"),
    *("DenseNet", "SwinTransformer", "MlpMixer", "ConvMixer"),
    *("GPT2LMHeadModel", "MixtralForCausalLM", "ViTForImageClassification"),
)
"""Models of every library and many kinds, in seconds each."""
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
