"""Comparing runs: which steps, which weights, what is refused, and what is said."""

from dataclasses import replace

import pytest
import torch

from tests.trajectories import filled, two_layers
from torch_dmft.comparison import compare, movement, target_alignment, target_alignments
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.kernel import Kernel
from torch_dmft.core.prints import data_print
from torch_dmft.core.training import Training

THEORY, STATIC = "theory (N=inf)", "static NTK (N=inf)"


@pytest.fixture(scope="module")
def comparison():
    return compare(
        two_layers(noise=0.02, seed=1, test=2),
        two_layers(noise=0.002, seed=2, test=2, origin=THEORY, stderr=0.002),
        two_layers(richness=0, test=2, origin=STATIC),
    )


def test_a_run_does_not_deviate_from_itself():
    run = two_layers()
    found = compare(run, replace(run, origin=THEORY)).deviations[0]
    for layer in found.layers:
        for each in (layer.forward, layer.backward, layer.ntk):
            assert each.relative_error.max() == 0
            assert each.alignment.min() > 1 - 1e-10
    assert found.outputs.rms.max() == 0
    assert found.losses.rms.max() == 0


def test_only_common_steps_are_compared():
    measured = two_layers(steps=(0, 1, 2, 4, 8, 16))
    predicted = two_layers(steps=(0, 4, 16, 32), origin=THEORY, stderr=0.1)
    found = compare(measured, predicted)
    assert found.steps.tolist() == [0, 4, 16]
    assert found.recorded == (6, 4)
    assert found.deviations[0].ntk.relative_error.max() < 1e-12
    assert len(found.deviations[0].ntk.relative_error) == 3


def test_layers_are_matched_by_position_and_named_by_the_measured_model():
    measured, predicted = two_layers(), two_layers(origin=THEORY)
    renamed = replace(predicted, layers=tuple(replace(layer, name=f"h{i}") for i, layer in enumerate(predicted.layers)))
    found = compare(measured, renamed)
    assert [layer.name for layer in found.deviations[0].layers] == ["0", "2", "4"]


def test_the_static_prediction_is_farther_than_the_theory(comparison):
    theory, static = comparison.deviations
    for ours, theirs in zip(theory.layers, static.layers, strict=True):
        assert ours.ntk.relative_error[-1] < 0.1 * theirs.ntk.relative_error[-1]
    assert comparison.verdict.index(THEORY) < comparison.verdict.index(STATIC)


def test_test_rows_are_judged_apart(comparison):
    deviations = comparison.deviations[0]
    measured, predicted = comparison.runs[:2]
    expected = (measured.outputs - predicted.outputs)[:, ~measured.train].square().mean((1, 2)).sqrt()
    torch.testing.assert_close(deviations.test_outputs.rms, expected)
    assert compare(two_layers(), two_layers(origin=THEORY)).deviations[0].test_outputs is None


def test_standard_errors_reach_the_differences(comparison):
    theory, static = comparison.deviations
    torch.testing.assert_close(theory.losses.noise, torch.full((10,), 0.002, dtype=torch.float64))
    torch.testing.assert_close(theory.outputs.noise, torch.full((10,), 0.002, dtype=torch.float64))
    assert static.losses.noise.isnan().all()


def test_several_outputs_are_compared_entry_by_entry():
    measured = two_layers(outputs=3, noise=0.02)
    found = compare(measured, two_layers(outputs=3, origin=THEORY))
    x, y = (run.layers[0].backward.array[-1] for run in found.runs)
    expected = (x - y).norm() / y.norm()
    torch.testing.assert_close(found.deviations[0].layers[0].backward.relative_error[-1], expected)


def test_equal_origins_are_numbered():
    found = compare(two_layers(), two_layers(seed=1), two_layers(origin=THEORY))
    assert [run.origin for run in found.runs] == ["network (N=256) #1", "network (N=256) #2", THEORY]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"samples": 5}, "outputs are"),
        ({"outputs": 2}, "outputs are"),
        ({"test": 1}, "trained on"),
        ({"steps": (1, 2, 3)}, "no recorded step in common"),
    ],
)
def test_other_problems_are_refused(change, told):
    with pytest.raises(InvalidInputError, match=told):
        compare(two_layers(), two_layers(origin=THEORY, **change))


def test_every_difference_is_listed_at_once():
    other = two_layers(origin=THEORY)
    first = other.layers[0]
    broken = replace(first, backward=Kernel(torch.zeros(10, 6, 1, 6, 1)))
    other = replace(
        other, training=other.training.with_numbers(lr=0.3), targets=-other.targets, layers=(broken, *other.layers[1:])
    )
    with pytest.raises(InvalidInputError) as raised:
        compare(two_layers(), other)
    for told in (
        "targets differ",
        "learning rate: network (N=256) 0.1, theory (N=inf) 0.3",
        "the backward kernel of weight '0'",
        "Remedy",
    ):
        assert told in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"optimizer": "AdamW"}, "optimizer: network AdamW, theory SGD"),
        ({"momentum": 0.9}, "momentum: network 0.9, theory 0"),
        ({"momentum": 0.9, "nesterov": 1.0}, "nesterov: network 1, theory 0"),
        ({"momentum": 0.9, "dampening": 0.5}, "dampening: network 0.5, theory 0"),
        ({"weight_decay": 2.0}, "weight decay: network 2, theory 0"),
        ({"gamma0": 3.0}, "gamma0: network 3, theory 1"),
        ({"lr": [0.1] * 20 + [0.01] * 30}, "learning rate at step 20: network 0.01, theory 0.1"),
        ({"frozen": ("2.weight",)}, "frozen parameters: network 2.weight, theory none"),
        ({"exceptions": {"2.weight": {"lr": 0.5}}}, "learning rate of 2.weight: network 0.5, theory 0.1"),
        ({"starts": {"2.weight": "zero"}}, "start of 2.weight: network zero, theory Gaussian"),
        ({"batches": (torch.arange(2),) * 50}, "batches: network of 2 rows, theory all rows"),
        ({"batches_known": False}, "batches: network unknown, theory all rows"),
        ({"temperature": 0.1}, "temperature: network 0.1, theory 0"),
        ({"loss": "L1Loss()", "loss_print": (2.0, 1.0, 1.0)}, r"loss: network L1Loss\(\), theory MSELoss\(\)"),
        ({"notes": ("clipped gradients",)}, "network: clipped gradients"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_training_is_refused_by_value(changes, told):
    plain = replace(two_layers().training, loss="MSELoss()", loss_print=(1.0, 1.0, 1.0))
    numbers = {name: value for name, value in changes.items() if name not in Training.__dataclass_fields__}
    fields = {name: value for name, value in changes.items() if name not in numbers}
    other = replace(plain, **fields).with_numbers(**numbers)
    measured = replace(two_layers(), training=other)
    theory = replace(two_layers(origin=THEORY), training=plain, solver="InfiniteWidth")
    if "notes" not in changes:
        compare(measured, replace(theory, training=other))
    with pytest.raises(InvalidInputError, match=told):
        compare(measured, theory)
    if isinstance(changes.get("lr"), list):  # what comes after the last common step does not matter
        compare(replace(measured.at_steps(torch.tensor([0, 10, 20]))), theory)


def test_missing_weights_are_named():
    other = two_layers(origin=THEORY)
    with pytest.raises(InvalidInputError, match=r"\[0, 2, 4\] and \[0, 2\]"):
        compare(two_layers(), replace(other, layers=other.layers[:2]))


def test_the_verdict_names_the_culprit():
    measured, predicted = two_layers(), two_layers(origin=THEORY, stderr=1e-6)
    spoiled = replace(measured.layers[1], forward=Kernel(1.5 * measured.layers[1].forward.array))
    measured = replace(measured, layers=(measured.layers[0], spoiled, measured.layers[2]))
    verdict = compare(measured, predicted).verdict
    assert "Phi of weight 1 (module 2)" in verdict
    assert "0.5 ±" in verdict
    assert "8 / sqrt(N) with N = 256, the inputs of the readout" in verdict  # 0.5 * sqrt(256)
    assert "own noise" not in verdict


def test_the_verdict_says_when_noise_hides_the_difference():
    verdict = compare(two_layers(noise=0.01), two_layers(origin=THEORY, stderr=0.1)).verdict
    assert "prediction's own noise" in verdict


def test_other_inputs_are_refused():
    mine, other = (
        replace(two_layers(origin=origin), probe_print=data_print(3, torch.arange(6.0).reshape(3, 2) + shift))
        for origin, shift in (("network (N=256)", 0.0), (THEORY, 0.01))
    )
    with pytest.raises(InvalidInputError, match="the inputs of the probe differ"):
        compare(mine, other)
    compare(mine, replace(other, probe_print=mine.probe_print))


def test_a_prediction_in_the_place_of_the_measured_run_is_refused():
    theory = replace(two_layers(origin=THEORY), solver="InfiniteWidth")
    static = replace(two_layers(origin=STATIC, richness=0), solver="StaticNTK")
    with pytest.raises(InvalidInputError, match=r"measured run must come first.*'theory .N=inf.*network .N=256"):
        compare(theory, two_layers())
    with pytest.raises(InvalidInputError, match="measured run must come first"):
        compare(theory, static, two_layers())
    assert compare(theory, static).measured.origin == THEORY  # two solvers


def test_runs_without_targets_still_compare():
    untrained = replace(two_layers(), targets=None, losses=torch.full((10,), torch.nan))
    found = compare(untrained, replace(untrained, origin=THEORY))
    assert "diverged" not in found.verdict
    assert "Loss" not in str(found)
    assert "nan" in str(found.details())


def test_movement_and_target_alignment_over_time():
    run = two_layers()
    kernel = run.layers[2].forward
    x = kernel.array
    moved = movement(kernel)
    assert moved[0] == 0
    torch.testing.assert_close(moved[-1], (x[-1] - x[0]).norm() / x[0].norm())
    aligned = target_alignments(kernel, run.targets)
    assert aligned[3].item() == pytest.approx(target_alignment(x[3], run.targets), abs=1e-10)
    assert aligned[-1] > 0.9 > aligned[0]


def test_an_ensemble_as_the_measured_side_adds_its_own_error():
    measured, predicted = two_layers(noise=0.02), two_layers(origin=THEORY, stderr=0.002)
    alone = compare(measured, predicted).deviations[0].ntk.relative_error_stderr
    averaged = replace(measured, stderr=filled(measured, 0.01))
    assert (compare(averaged, predicted).deviations[0].ntk.relative_error_stderr > alone).all()


def test_a_comparison_is_read_by_machines(comparison):
    import json

    told = json.loads(comparison.to_json())
    assert told["schema"] == "torch_dmft/compare/1"
    assert told["verdict"] == comparison.verdict
    assert told["steps"] == comparison.steps.tolist()
    first, kernel = (
        comparison.deviations[0].layers[1].forward,
        told["predictions"][0]["deviations"]["layers"][1]["forward"],
    )
    assert kernel["relative_error"] == first.relative_error.tolist()
    assert told["predictions"][0]["deviations"]["layers"][1]["name"] == comparison.deviations[0].layers[1].name
