"""Phi and G alone, kernels averaged over outputs, some rows of a probe: each is a part of the full record, and exact."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_dmft as dmft
from tests.measurement.cases import Conv
from tests.measurement.test_zoo import brute_force, close
from tests.measurement.zoo import ZOO, Entry
from torch_dmft.core.errors import InsufficientMemoryError, InvalidInputError, UnsupportedModelError
from torch_dmft.core.kernel import Kernel
from torch_dmft.measurement import Recorder, empirical_ntk, self_check, snapshot, subject_of, wanted
from torch_dmft.measurement.moment import Snapshot
from torch_dmft.measurement.probe import Probe
from torch_dmft.measurement.subject import watched_subject
from torch_dmft.measurement.wanted import Wanted
from torch_dmft.measurement.watched import Known, measure_watched
from torch_dmft.uses import forms
from torch_dmft.uses.outputs import count, select

AVERAGED = Wanted(per_output=False, fields=False)


@pytest.fixture(params=ZOO, ids=lambda entry: entry.name)
def entry(request: pytest.FixtureRequest) -> Entry:
    return request.param


def mean(kernel: Tensor) -> Tensor:
    return Kernel(kernel[None]).per_sample().array[0]


def measured(
    entry: Entry, generator: torch.Generator, *, known: Any = None, **settings: Any
) -> tuple[Any, Any, Snapshot]:
    """All outputs of every place, so that there are several."""
    model, inputs = entry.make(generator)

    def flat(returned: Any) -> Tensor:
        found = select(returned, entry.outputs)
        return found.flatten(1) if found.ndim > 1 else found

    outputs = entry.outputs if callable(entry.outputs) else flat
    subject = replace(watched_subject(model, inputs, outputs=outputs), batch_norm="run")
    return subject, inputs, measure_watched(replace(subject, wanted=Wanted(**settings)), inputs, known)


# Exactness


def test_averaged_over_outputs_it_is_that_of_brute_force(entry: Entry, generator: torch.Generator) -> None:
    state = generator.get_state()
    subject, inputs, full = measured(entry, generator)
    outputs = full.outputs.shape[1]
    jacobian = brute_force(subject, inputs).reshape(count(inputs), outputs, count(inputs), outputs)
    for fields in (True, False):
        generator.set_state(state)
        _, _, taken = measured(entry, generator, per_output=False, fields=fields)
        assert close(taken.ntk, torch.einsum("mcnc->mn", jacobian) / outputs)
        for one, all_ in zip(taken.layers, full.layers, strict=True):
            assert torch.equal(one.forward, all_.forward)
            assert close(one.backward, mean(all_.backward))
            assert close(one.ntk, mean(all_.ntk)) or not bool(all_.ntk.any() | one.ntk.any())
            if fields:
                assert all(map(torch.equal, one.stream.gradients, all_.stream.gradients))
            else:
                assert all(gradient.shape[1] == 1 for gradient in one.stream.gradients)


def test_without_the_ntk_phi_and_g_are_the_same(entry: Entry, generator: torch.Generator) -> None:
    state = generator.get_state()
    _, _, full = measured(entry, generator)
    generator.set_state(state)
    _, _, taken = measured(entry, generator, ntk=False)
    assert taken.ntk is None
    for one, all_ in zip(taken.layers, full.layers, strict=True):
        assert one.ntk is None
        assert torch.equal(one.forward, all_.forward)
        assert torch.equal(one.backward, all_.backward)


def test_samples_run_apart_give_the_same(entry: Entry, generator: torch.Generator) -> None:
    state = generator.get_state()
    _, _, taken = measured(entry, generator, per_output=False)
    generator.set_state(state)
    _, _, apart = measured(entry, generator, known=Known(None, taken.layouts.by_samples), per_output=False)
    assert close(apart.ntk, taken.ntk)
    assert all(close(a.backward, b.backward) for a, b in zip(apart.layers, taken.layers, strict=True))


class Tied(nn.Module):
    """One matrix as embedding and decoder, a gain, biases."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.gain = nn.Embedding(5, 6), nn.Parameter(torch.ones(6))
        self.norm, self.decode = nn.LayerNorm(6), nn.Linear(6, 5)
        self.decode.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.decode(self.norm(self.table(tokens).mean(1)) * self.gain)


MODELS = {
    "chain": lambda: (
        nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)),
        torch.randn(6, 4, dtype=torch.float64),
    ),
    "convolutions": lambda: (
        nn.Sequential(
            nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)
        ),
        torch.randn(6, 1, 6, 6, dtype=torch.float64),
    ),
    "tied": lambda: (Tied(), torch.randint(0, 5, (6, 3))),
    "attention": lambda: (
        nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), nn.Flatten(), nn.Linear(24, 3)),
        torch.randn(6, 3, 8, dtype=torch.float64),
    ),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", ["layerwise", "jacobian", "vjp"])
def test_every_method_averages(name: str, method: str) -> None:
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    kernel = empirical_ntk(model.double(), inputs, method="jacobian")
    averaged = empirical_ntk(model, inputs, method=method, per_output=False)
    torch.testing.assert_close(averaged, torch.einsum("mcnc->mn", kernel) / kernel.shape[1])


def test_a_plans_rates_and_a_twin(generator: torch.Generator) -> None:
    inputs = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    plan = dmft.parameterize(model, inputs, gamma0=2.0, generator=generator)
    torch.testing.assert_close(empirical_ntk(plan, inputs, per_output=False), mean(empirical_ntk(plan, inputs)))
    limit = dmft.infinite_width(model, inputs, neurons=64, generator=generator)
    full = snapshot(subject_of(limit, inputs), inputs)
    averaged = snapshot(replace(subject_of(limit, inputs), wanted=AVERAGED), inputs)
    torch.testing.assert_close(averaged.ntk, mean(full.ntk))


# Runs


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("two_time", [False, True])
def test_every_option_is_a_part_of_the_full_record_and_changes_no_training(name: str, two_time: bool) -> None:
    def trained(**settings: Any) -> tuple[Any, list[Tensor]]:
        torch.manual_seed(0)
        model, inputs = MODELS[name]()
        model.double()
        targets = torch.tensor([0, 1, 2, 0, 1, 2])
        train = torch.tensor([True, True, True, True, False, True])
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        recorder = Recorder(model, Probe(inputs, targets, train), two_time=two_time, **settings)
        with recorder.attach(optimizer):
            for _ in range(3):
                optimizer.zero_grad()
                f = model(inputs[train])[:, : 5 if name == "tied" else 3]
                nn.functional.cross_entropy(f, targets[train]).backward()
                optimizer.step()
        return recorder, [value.detach() for value in model.state_dict().values()]

    whole, weights = trained()
    full = whole.trajectory()
    rows = torch.tensor([1, 0, 5])
    for settings, part in (
        ({"per_output": False}, full.per_sample()),
        ({"ntk": False}, full.without_ntk()),
        ({"ntk": False, "per_output": False, "fields": False}, full.per_sample().without_ntk()),
        ({"rows": rows}, full.at_rows(rows)),
        ({"rows": [1, 0, 5], "per_output": False}, full.at_rows(rows).per_sample()),
    ):
        recorder, others = trained(**settings)
        taken = recorder.trajectory()
        assert all(map(torch.equal, others, weights))
        torch.testing.assert_close(taken.outputs, part.outputs)
        assert torch.equal(taken.train, part.train)
        assert (taken.ntk is None) == (part.ntk is None)
        for one, other in zip(taken.layers, part.layers, strict=True):
            for kernel in ("forward", "backward", "ntk"):
                a, b = getattr(one, kernel), getattr(other, kernel)
                if b is not None:
                    torch.testing.assert_close(a.array, b.array)
        if taken.ntk is not None:
            torch.testing.assert_close(taken.ntk.array, part.ntk.array)
        if settings.get("fields", True):
            torch.testing.assert_close(taken.layers[1].fields.gradient, part.layers[1].fields.gradient)
        rebuilt = Recorder(whole.subject.plan, whole._whole, two_time=two_time, **settings)
        rebuilt.load_state_dict(recorder.state_dict())
        assert replace(rebuilt.trajectory(), metadata={}) == replace(taken, metadata={})
        with pytest.raises(InvalidInputError, match="does not fit this recorder"):
            Recorder(whole.subject.plan, whole._whole, two_time=two_time).load_state_dict(recorder.state_dict())


def test_the_loss_of_some_rows_is_of_those_among_them_that_are_trained_on() -> None:
    torch.manual_seed(0)
    model, inputs = MODELS["chain"]()
    targets = torch.randn(6, 3, dtype=torch.float64)
    probe = Probe(inputs, targets, torch.tensor([True, True, True, True, False, True]))
    record = Recorder(model.double(), probe, rows=torch.tensor([False, True, False, False, True, True])).record()
    loss = nn.functional.mse_loss(model(inputs)[[1, 5]], targets[[1, 5]])
    torch.testing.assert_close(record.losses, loss.detach()[None])


@pytest.mark.parametrize(
    ("rows", "said"),
    [([0, 0], "each once"), ([1], "at least two"), ([0, 9], "each once"), ([4, 3], "trained on")],
)
def test_rows_that_are_none(rows: list, said: str) -> None:
    model, inputs = MODELS["chain"]()
    probe = Probe(inputs, torch.zeros(6, 3), torch.tensor([True, True, True, False, False, False]))
    with pytest.raises(InvalidInputError, match=said):
        Recorder(model.double(), probe, rows=rows)


def test_theory_is_asked_about_the_rows_that_are_recorded(generator: torch.Generator) -> None:
    inputs = torch.randn(8, 4, generator=generator, dtype=torch.float64)
    targets = torch.randn(8, 2, generator=generator, dtype=torch.float64)
    train = torch.tensor([True, False, True, True, False, True, True, True])
    model = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2)).double()
    plan = dmft.parameterize(model, inputs, gamma0=0.3, generator=generator)
    optimizer = torch.optim.SGD(plan.param_groups(0.1))
    recorders = [
        Recorder(plan, Probe(inputs, targets, train)),
        Recorder(plan, Probe(inputs, targets, train), rows=[6, 4, 0]),
    ]
    with recorders[0].attach(optimizer), recorders[1].attach(optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(inputs[train]), targets[train]).backward()
            optimizer.step()
    whole, some = (dmft.solve(recorder.problem(), dmft.solvers.StaticNTK()) for recorder in recorders)
    torch.testing.assert_close(some.outputs, whole.outputs[:, [6, 4, 0]])
    torch.testing.assert_close(some.ntk.array, whole.at_rows(torch.tensor([6, 4, 0])).ntk.array)
    assert dmft.compare(recorders[1].trajectory(), some).deviations[0].outputs.rms[0] < 1


# Checks and refusals


@pytest.mark.parametrize("settings", [{"per_output": False}, {"ntk": False}])
@pytest.mark.parametrize("name", MODELS)
def test_a_wrong_product_is_found_out_too(
    name: str, settings: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a combination of the outputs, which is held against an ordinary backward pass."""
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    subject = replace(subject_of(model.double(), inputs), wanted=Wanted(**settings))
    snapshot(subject, inputs)

    place = next(module for module in model.modules() if isinstance(module, nn.Linear))
    if name == "chain":  # elsewhere what really comes out of the product is seen
        place.register_forward_hook(lambda module, args, output: 1.1 * output)
    else:
        real = forms.Product.factors
        monkeypatch.setattr(forms.Product, "factors", lambda *given: (1.1 * real(*given)[0], real(*given)[1]))
        real_gradient = forms.Product.gradient
        monkeypatch.setattr(forms.Product, "gradient", lambda *given: 1.1 * real_gradient(*given))
    with pytest.raises(UnsupportedModelError, match="contradicts an ordinary backward pass"):
        snapshot(subject, inputs)


def test_the_combination_has_all_outputs_in_it() -> None:
    outputs = torch.eye(7, dtype=torch.float64)
    assert bool((self_check.combination(outputs).abs() > 1e-3).all())


@pytest.mark.parametrize("name", ["chain", "attention"])
def test_a_refusal_of_size_names_what_fits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The remedies are tried: each records within the memory that there is said to be."""
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    probe = Probe(inputs.repeat(20, *[1] * (inputs.ndim - 1)))
    estimates: list[wanted.Estimate] = []
    real = wanted.require_room

    def spy(what: Wanted, samples: int, outputs: int, device: torch.device, estimate: wanted.Estimate) -> None:
        estimates.append(estimate)
        real(what, samples, outputs, device, estimate)

    for module in ("snapshot", "watched"):
        monkeypatch.setattr(sys.modules[f"torch_dmft.measurement.{module}"], "require_room", spy)
    Recorder(model.double(), probe).look()
    free = estimates[0](AVERAGED, len(probe)) + 1
    for module in ("wanted", "memory"):
        path = "torch_dmft.measurement.wanted" if module == "wanted" else "torch_dmft.core.memory"
        monkeypatch.setattr(f"{path}.free_memory", lambda device: free)
    monkeypatch.setattr("torch_dmft.core.memory._was_plenty", lambda *given: False)
    with pytest.raises(
        InsufficientMemoryError, match=r"per_output=False, fields=False.*at most \d+ samples"
    ) as refusal:
        Recorder(model, probe).look()
    Recorder(model, probe, per_output=False, fields=False).look()
    most = int(str(refusal.value).partition("at most ")[2].partition(" ")[0])
    Recorder(model, probe, rows=range(most)).look()
    with pytest.raises(InsufficientMemoryError):
        Recorder(model, probe, rows=range(most + 1)).look()


def test_targets_leave_nothing_to_average() -> None:
    model, inputs = MODELS["chain"]()
    with pytest.raises(InvalidInputError, match="nothing is left to average"):
        empirical_ntk(model.double(), inputs, torch.zeros(6, dtype=torch.int64), per_output=False)


def test_a_convolution_over_pixels_is_averaged_as_it_is(generator: torch.Generator) -> None:
    model, images = Conv().double().eval(), torch.randn(3, 3, 7, 6, generator=generator, dtype=torch.float64)
    kernel = empirical_ntk(model, images, batch_norm="run")
    torch.testing.assert_close(empirical_ntk(model, images, batch_norm="run", per_output=False), mean(kernel))
