"""Whatever a user gives to a public name or flag is right, or refused by the package in time: what, got, and a remedy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import torch_dmft as dmft

ROOT = Path(__file__).parents[2]
CASES = 600
"""That there are at the least."""

Told = dict[str, tuple[str, str]]


def run(*words: str) -> str:
    """What a module of this folder prints, in a process whose annotations are not checked by the tests."""
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def told() -> dict[str, Told]:
    """What came of every case, by the kinds of cases."""
    found: dict[str, Told] = json.loads(run("tests.inputs.outcomes"))
    return found


def others(found: Told, kind: str) -> list[str]:
    """The cases of which something else came, with what that was."""
    return [f"{name}: {what}: {words[:200]}" for name, (what, words) in found.items() if what != kind]


def test_right_calls_go_through(told: dict[str, Told]) -> None:
    for kind in ("right", "right commands", "right uses"):
        assert not others(told[kind], "silent")


def test_every_wrong_value_of_every_parameter_is_refused(told: dict[str, Told]) -> None:
    found = told["generated"]
    assert not others(found, "refused")
    assert len(found) > CASES


def test_what_no_annotation_tells_is_refused_in_the_right_words(told: dict[str, Told]) -> None:
    found = told["handmade"]
    assert not others(found, "refused")
    assert len(found) > 150


def test_every_flag_of_every_command_refuses_wrong_values(told: dict[str, Told]) -> None:
    from tests.inputs.command import flags

    found = told["command"]
    assert not others(found, "refused")
    for command, names in flags().items():
        assert all(any(case.startswith(f"{command} {name}=") for case in found) for name in names)


def test_any_settings_are_refused_or_make_finite_numbers(
    told: dict[str, Told],
) -> None:
    run("tests.inputs.settings_property")


def test_without_the_check_of_annotations_wrong_values_pass_or_end_raw(told: dict[str, Told]) -> None:
    found = told["unchecked"]
    kinds = [what for what, _ in found.values()]
    assert kinds.count("raw") > 20
    assert kinds.count("silent") > 20


def test_every_public_name_is_tried(told: dict[str, Told]) -> None:
    names, tried = set(told["public"]), set(told["right"])
    assert {"Kernel.at", "Recorder", "Trajectory", "figures.kernels", "StaticNTK.run", "Problem.mlp"} <= names
    assert sorted(names - tried - set(LEFT_OUT)) == []
    assert sorted((tried | set(LEFT_OUT)) - names) == []
    assert sorted(tried & set(LEFT_OUT)) == []


LEFT_OUT = {
    **dict.fromkeys(("Recorder.attach", "Problem.trained", "Role", "Part"), "among the cases by hand"),
    "Training.kind": "any name that has no optimizer of its own has the usual one",
    **dict.fromkeys(
        ("LearningRule", "Verdict", "Setup", "Setup.step", "Richness", "MuonGroups", "DepthLimit"),
        "a function of the package makes it",
    ),
    **dict.fromkeys(
        ("Transferred", "Transferred.lr", "Transferred.text", "Transferred.to_json"), "transfer() makes it"
    ),
    **dict.fromkeys(
        (
            *(f"InfiniteWidth{kind}" for kind in ("Classifier", "Regressor")),
            *(
                f"InfiniteWidth{kind}.{what}"
                for kind in ("Classifier", "Regressor")
                for what in ("fit", "estimate", "predict")
            ),
            *(f"InfiniteWidthClassifier.{what}" for what in ("decision_function", "predict_proba")),
        ),
        "check_estimator of scikit-learn tries them",
    ),
    "Indexed.__getitem__": "an index is for the data set to refuse",
    **dict.fromkeys(("Solver", "Solver.check", "Solver.estimate", "Solver.run"), "a protocol"),
    **dict.fromkeys(
        (
            *("Snapshot", "Subject", "Subject.rate", "capture", "follow", "in_streams", "mean_field", "measure"),
            *("parameter_rules", "snapshot", "subject_of", "architecture.Wrapper"),
            *("Architecture.folded_at", "Architecture.holding"),
        ),
        "what rooms of the package give to each other, and no page names",
    ),
    **dict.fromkeys(
        (
            *(
                "integrations.lightning.RecorderCallback.on_train_start",
                "integrations.lightning.RecorderCallback.on_train_batch_start",
            ),
            *(
                "integrations.lightning.RecorderCallback.on_train_end",
                "integrations.lightning.RecorderCallback.on_exception",
            ),
            *(
                "integrations.lightning.RecorderCallback.load_state_dict",
                "integrations.transformers.RecorderCallback.on_train_begin",
            ),
            *(
                "integrations.transformers.RecorderCallback.on_train_end",
                "integrations.transformers.RecorderCallback.on_save",
            ),
        ),
        "a trainer calls it",
    ),
}
"""What no wrong values are generated for, and why."""


@pytest.mark.parametrize("size", [1e200, 1e-200, 1.0])
def test_kernels_of_any_size_are_compared(size: float, generator: torch.Generator) -> None:
    from torch_dmft.comparison import centered_alignment, relative_error

    a = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    b = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    assert dmft.alignment(size * a, size * a) == pytest.approx(1, abs=1e-10)
    assert dmft.alignment(size * a, size * b) == pytest.approx(dmft.alignment(a, b), abs=1e-10)
    assert centered_alignment(size * a, size * b) == pytest.approx(centered_alignment(a, b), abs=1e-10)
    assert relative_error(size * a, size * b) == pytest.approx(relative_error(a, b), rel=1e-10)
