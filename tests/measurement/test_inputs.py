"""Probes of anything that ``forward`` takes."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

import torch_dmft as dmft
from tests.measurement.forms import WIDTH, P, Two, brute_force, double, drawn, same
from tests.measurement.zoo import Gpt, Masked, ids_with_mask, masked
from torch_dmft.core.errors import (
    InvalidInputError,
    UnsupportedModelError,
    UnsupportedProblemError,
)
from torch_dmft.uses.outputs import count, rows

# What a probe holds


FORMS = {
    "tuple": (drawn(P, 3), drawn(P, 2, seed=1)),
    "list": [drawn(P, 3), drawn(P, 2, seed=1)],
    "mapping": {"a": drawn(P, 3), "b": drawn(P, 2, seed=1), "scale": 1.0},
    "mapping of a library": UserDict(a=drawn(P, 3), b=drawn(P, 2, seed=1)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_two_arguments_is_measured(form: str) -> None:
    model, inputs = double(Two()), FORMS[form]
    record = dmft.Recorder(model, dmft.Probe(inputs, drawn(P, 2))).record()
    expected = brute_force(model, lambda mu: model(FORMS["tuple"][0][mu : mu + 1], FORMS["tuple"][1][mu : mu + 1]))
    same(record.ntk.array, expected)
    same(dmft.empirical_ntk(model, inputs), expected)
    same(dmft.empirical_ntk(model, inputs, method="jacobian"), expected)
    same(dmft.empirical_ntk(model, inputs, method="vjp"), expected)
    assert float(record.losses) == pytest.approx(
        float((model(*FORMS["tuple"]) - drawn(P, 2)).square().mean()), rel=1e-12
    )


def test_a_probe_is_a_copy() -> None:
    inputs, targets, train = {"a": drawn(P, 3), "b": [drawn(P, 2)]}, drawn(P, 2), torch.arange(P) < 4
    probe = dmft.Probe(inputs, targets, train)
    before = probe.print
    for tensor in (inputs["a"], inputs["b"][0], targets, train):
        tensor.zero_()
    assert float(probe.inputs["a"].norm()) > 0
    assert float(probe.inputs["b"][0].norm()) > 0
    assert float(probe.targets.norm()) > 0
    assert int(probe.train_rows.sum()) == 4
    assert dmft.Probe(probe.inputs).print == before != dmft.Probe(inputs).print
    assert len(probe) == P
    assert repr(probe) == "Probe(inputs['a'] (6, 3), inputs['b'][0] (6, 2), targets (6, 2), 4 rows trained on)"


def test_a_probe_moves() -> None:
    probe = dmft.Probe({"a": drawn(P, 3)}, drawn(P, 2), torch.arange(P) < 4).to("cpu")
    assert probe.inputs["a"].device.type == "cpu"
    assert int(probe.train_rows.sum()) == 4


def test_prints_tell_every_tensor_apart() -> None:
    first = dmft.Probe({"a": drawn(P, 3), "b": drawn(P, 2)})
    assert first.print == dmft.Probe({"a": drawn(P, 3), "b": drawn(P, 2)}).print
    assert first.print != dmft.Probe({"a": drawn(P, 3), "b": drawn(P, 2, seed=1)}).print
    assert dmft.Probe(drawn(P, 3)).print == dmft.Probe((drawn(P, 3),)).print


def test_inference_tensors_and_int32_classes_are_taken() -> None:
    with torch.inference_mode():
        inputs, classes = drawn(P, 3), torch.arange(P, dtype=torch.int32) % 2
    probe = dmft.Probe(inputs, classes)
    assert not probe.inputs.is_inference()
    assert probe.targets.dtype == torch.int64
    record = dmft.Recorder(double(Two()), probe).record()
    assert float(record.losses) > 0


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"a": torch.zeros(1, 3)}, r"two samples.*inputs\['a'\] of shape \(1, 3\)"),
        ({"a": "words"}, "dict without a tensor"),
        ({"a": torch.zeros(P, 3), "b": torch.full((P,), torch.nan)}, r"inputs\['b'\] hold NaN or infinity"),
        ((torch.full((P, 2), torch.inf), torch.zeros(P)), r"inputs\[0\] hold NaN or infinity"),
        ((torch.zeros(P, 2), torch.zeros(P, 0)), r"empty. Got: inputs\[1\]"),
    ],
)
def test_probes_that_are_refused(inputs: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        dmft.Probe(inputs)


def test_masks_that_are_added_may_be_infinite() -> None:
    dmft.Probe({"x": torch.zeros(P, 2), "mask": torch.full((P, 2), -torch.inf)})


def test_targets_count_the_rows_of_the_first_tensor() -> None:
    with pytest.raises(InvalidInputError, match="first tensor of the inputs"):
        dmft.Probe({"positions": torch.zeros(2, 4), "x": torch.zeros(P, 2)}, torch.zeros(P))


# Training


@pytest.mark.parametrize("recorded", [True, False])
def test_a_run_on_a_dictionary_is_seen_as_it_is(recorded: bool) -> None:
    """Rows, gradients and the loss; weights are bit for bit those of a run that nobody records."""
    model = double(Two())
    inputs, targets, train = FORMS["mapping"], drawn(P, 2, seed=3), torch.arange(P) < 4
    optimizer = SGD(model.parameters(), lr=0.1)
    recorder = dmft.Recorder(model, dmft.Probe(inputs, targets, train))

    def fit(used: nn.Module, stepper: SGD) -> None:
        for _ in range(3):
            stepper.zero_grad()
            nn.functional.mse_loss(used(**rows(inputs, [0, 1, 2, 3])), targets[:4]).backward()
            stepper.step()

    with recorder.attach(optimizer):
        fit(model, optimizer)
    other = double(Two())
    fit(other, SGD(other.parameters(), lr=0.1))
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    seen = recorder.trajectory()
    assert seen.training.doubt == ""
    assert seen.training.batches_known
    assert seen.losses[-1] == pytest.approx(
        float(nn.functional.mse_loss(model(**rows(inputs, [0, 1, 2, 3])), targets[:4])), rel=1e-12
    )
    with pytest.raises(UnsupportedProblemError):
        recorder.problem()


def test_a_run_on_other_rows_than_said_is_found_out() -> None:
    model = double(Two())
    inputs, targets = FORMS["mapping"], drawn(P, 2, seed=3)
    optimizer = SGD(model.parameters(), lr=0.1)
    recorder = dmft.Recorder(model, dmft.Probe(inputs, targets))
    with recorder.attach(optimizer):
        nn.functional.mse_loss(model(**rows(inputs, [0, 1])), targets[:2]).backward()
        optimizer.step()
    assert "were not those of MSELoss" in recorder.training.doubt


def test_batches_of_a_training_set_of_tuples() -> None:
    model = double(Two())
    inputs, targets = (drawn(12, 3), drawn(12, 2, seed=1)), drawn(12, 2, seed=3)
    probe = dmft.Probe(rows(inputs, list(range(4))), targets[:4])
    optimizer = SGD(model.parameters(), lr=0.1)
    recorder = dmft.Recorder(model, probe, data=(inputs, targets))
    with recorder.attach(optimizer):
        for batch in torch.arange(12).split(4):
            recorder.batch(batch)
            optimizer.zero_grad()
            nn.functional.mse_loss(model(*rows(inputs, batch)), targets[batch]).backward()
            optimizer.step()
    training = recorder.training
    assert (training.doubt, training.batches_known) == ("", True)
    assert [batch.tolist() for batch in training.batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    with pytest.raises(InvalidInputError, match="12 inputs and 3 targets"):
        dmft.Recorder(model, probe, data=(inputs, targets[:3]))


def test_a_gpt_with_masks_and_a_model_of_keywords(generator: torch.Generator) -> None:
    for model, inputs, outputs in (
        (Gpt(WIDTH), ids_with_mask(generator, P), lambda out: out["logits"][:, -1, :3]),
        (Masked(WIDTH), masked(generator, P), None),
    ):
        model = double(model)
        record = dmft.Recorder(model, dmft.Probe(inputs), outputs=outputs).record()
        same(record.ntk.array, dmft.empirical_ntk(model, inputs, outputs=outputs, method="jacobian"))
        assert count(inputs) == P


def test_dropout_of_a_watched_model_leaves_gradients_unchecked() -> None:
    """They are not those of the loss on the rows, and nobody can know of which random numbers they are."""
    model = double(nn.Sequential(Two(), nn.Dropout(0.5), nn.Linear(2, 2)))
    inputs, targets = drawn(P, 3), drawn(P, 2, seed=3)

    class Runs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, *, a: Tensor) -> Tensor:
            return self.inner(a)

    whole = Runs()
    optimizer = SGD(whole.parameters(), lr=0.1)
    recorder = dmft.Recorder(whole, dmft.Probe({"a": inputs}, targets))
    with recorder.attach(optimizer):
        nn.functional.mse_loss(whole(a=inputs), targets).backward()
        optimizer.step()
    assert "off by" not in recorder.training.doubt
    assert recorder.subject.architecture.train_differs


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (drawn(P, 3).float(), r"inputs of torch.float32 for a model of torch.float64.*\.to\(torch.float64\)"),
        (drawn(P, 4), "cannot be multiplied"),
        ((drawn(P, 3), drawn(P, 2), drawn(P, 2)), "a tuple for several"),
        ({"c": drawn(P, 3)}, "unexpected keyword"),
    ],
)
def test_inputs_that_the_model_cannot_take(inputs: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        dmft.Recorder(double(Two()), dmft.Probe(inputs))


def test_models_that_cannot_run() -> None:
    with torch.inference_mode():
        frozen = double(Two())
    with pytest.raises(InvalidInputError, match=r"left.weight of inference mode.*outside of torch.inference_mode"):
        dmft.Recorder(frozen, dmft.Probe(drawn(P, 3)))
    with pytest.raises(InvalidInputError, match=r"the meta device for left.weight.*to_empty"):
        dmft.Recorder(Two().to("meta"), dmft.Probe(drawn(P, 3)))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.arange(P), "Every class needs an output. Got: class 5 of a model with 2 outputs"),
        (torch.zeros(P, 3), r"as many numbers per sample.*targets \(6, 3\) and 2 outputs"),
        (torch.zeros(P), r"as many numbers per sample.*targets \(6, 1\) and 2 outputs"),
    ],
)
def test_targets_that_do_not_fit_the_outputs(targets: Tensor, message: str) -> None:
    model = double(Two())
    recorder = dmft.Recorder(model, dmft.Probe(drawn(P, 3), targets))
    with pytest.raises(InvalidInputError, match=message), recorder.attach(SGD(model.parameters(), lr=0.1)):
        pytest.fail("nothing is trained")


def test_theory_is_about_one_tensor(generator: torch.Generator) -> None:
    model = nn.Sequential(nn.Linear(3, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))
    plan = dmft.parameterize(model, torch.randn(P, 3), generator=generator)
    probe = dmft.Probe((torch.randn(P, 3),), torch.randn(P, 1))
    with pytest.raises(UnsupportedModelError, match=r"a tuple and not one tensor.*WideEnsemble\(factory=...\)"):
        dmft.solve(dmft.Problem.like(plan, probe, lr=0.1, steps=2))


class Twice(nn.Module):
    """One module under two paths, and one parameter in two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(3, 3)
        self.right, self.tied = self.left, nn.Linear(3, 3)
        self.tied.weight = self.left.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.tied(torch.tanh(self.right(torch.tanh(self.left(x)))))


def test_shared_modules_and_parameters_stay_what_they_are() -> None:
    """``functional_call`` leaves a plain tensor in a module that is found under two paths."""
    model, inputs, targets = double(Twice()), drawn(P, 3), drawn(P, 3, seed=1)
    before = {name: id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False)}
    optimizer = SGD(model.parameters(), lr=0.1)
    recorder = dmft.Recorder(model, dmft.Probe((inputs,), targets))
    with recorder.attach(optimizer):
        nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
    assert recorder.training.doubt == ""
    expected = brute_force(model, lambda mu: model(inputs[mu : mu + 1]))
    for method in ("layerwise", "jacobian", "vjp"):
        same(dmft.empirical_ntk(model, inputs, method=method), expected)
    assert {name: id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False)} == before
