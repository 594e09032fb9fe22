"""Where people train: nothing changes by one bit, and the records are those of the weights between the steps."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.checkpoint import checkpoint

import torch_dmft as dmft
from tests.end_to_end.places import (
    INPUTS,
    PLACES,
    TARGETS,
    Checkpointed,
    Lookahead,
    backward,
    chain,
    normed,
    sgd,
    train,
    wrapped,
)
from torch_dmft.core.errors import InvalidInputError, UnsupportedModelError
from torch_dmft.measurement import snapshot, subject_of

CASES = [(name, make) for name, place in PLACES.items() for make in place.models]


@pytest.mark.parametrize(("name", "make"), CASES, ids=[f"{name}, {number}" for number, (name, _) in enumerate(CASES)])
@pytest.mark.filterwarnings("ignore")
def test_a_place(name: str, make: Callable[[], nn.Module]) -> None:
    place = PLACES[name]
    plain, _ = train(make, place.loop, record=False)
    states, recorder = train(make, place.loop, record=True)
    assert len(plain) == len(states) > 3
    for one, other in zip(plain, states, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert all(not torch.equal(plain[0][key], plain[-1][key]) for key in plain[0])

    measured = recorder.trajectory()
    assert measured.steps.tolist() == list(range(len(states)))
    other_model = make()
    other_plan = dmft.parameterize(other_model, INPUTS)
    for time, state in enumerate(states):
        other_model.load_state_dict(state)
        expected = snapshot(subject_of(other_plan, INPUTS), INPUTS)
        torch.testing.assert_close(measured.outputs[time], expected.outputs)
        torch.testing.assert_close(measured.ntk.array[time], expected.ntk)
        for layer, wanted in zip(measured.layers, expected.layers, strict=True):
            torch.testing.assert_close(layer.forward.array[time], wanted.forward)
            torch.testing.assert_close(layer.backward.array[time], wanted.backward)

    training = recorder.training
    assert (training.optimizer, training.steps) == (place.sees, len(states) - 1)
    assert place.notes in " ".join(training.notes) if place.notes else training.notes == ()
    assert place.doubt in training.doubt if place.doubt else training.doubt == ""
    assert recorder.subject.frozen == frozenset()
    if place.sees == "SGD" and not place.notes and not place.doubt:
        assert recorder.problem().steps == len(states) - 1


# What is said, and whether the remedy works


def test_weights_that_move_without_a_step_are_said() -> None:
    """An optimizer that nobody steps is attached, and another one trains."""
    model, plan, recorder = wrapped()

    def train_by_another() -> None:
        with recorder.attach(sgd(plan)):
            backward(model)
            sgd(plan).step()

    with pytest.warns(UserWarning, match=r"The weights moved, but no step of SGD was seen"):
        train_by_another()
    assert recorder.training.notes
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with recorder.attach(sgd(plan)):  # nothing happens, and nothing is said
            pass


def test_an_engine_instead_of_an_optimizer_is_refused_by_name() -> None:
    class Engine:
        """As DeepSpeed's, which is no optimizer of torch."""

    class Facade(SGD):
        optimizer = Engine()

    Facade.__module__ = "accelerate.utils.deepspeed"
    _, _, recorder = wrapped()
    facade = Facade.__new__(Facade)
    with (
        pytest.raises(InvalidInputError, match=r"Facade around Engine.*setting recorder\.step"),
        recorder.attach(facade),
    ):
        pass
    recorder.step = 3  # the remedy
    assert int(recorder.record().steps) == 3


@pytest.mark.parametrize("scheduled", [False, True])
def test_a_class_without_hooks_is_as_it_was(scheduled: bool) -> None:
    """Also with a scheduler, which puts something of its own around ``step`` while hooks are there."""
    model, plan, recorder = wrapped()
    optimizer = Lookahead(sgd(plan))
    before = dict(vars(optimizer))
    with recorder.attach(optimizer):
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9) if scheduled else None
        backward(model)
        optimizer.step()
    if scheduler is None:
        assert vars(optimizer).keys() == before.keys()
    else:
        scheduler.step()
    assert "step" in vars(Lookahead)
    assert not hasattr(Lookahead.step, "hooked")
    optimizer.step()
    Lookahead(sgd(plan)).step()  # nor is any other of its class touched
    assert recorder.step == 1


def test_a_clip_within_the_backward_pass_is_found_out() -> None:
    model, plan, recorder = wrapped()
    optimizers = {p: SGD([{**group, "params": [p]}]) for group in plan.param_groups(0.1) for p in group["params"]}

    def step(p: Tensor) -> None:
        if p is model[0].weight:  # the last to have its gradient
            p.grad.mul_(1e-3)
        optimizers[p].step()
        optimizers[p].zero_grad(set_to_none=False)

    for p in optimizers:
        p.register_post_accumulate_grad_hook(step)
    with recorder.attach(*optimizers.values()):
        for _ in range(3):
            nn.functional.mse_loss(model(INPUTS), TARGETS).backward()
    assert recorder.step == 3
    assert "the gradients were not those" in recorder.training.doubt


@pytest.mark.parametrize("settings", [{"foreach": True}, {"fused": True}], ids=str)
def test_rows_of_a_skipped_step_wait_alike(settings: dict[str, bool]) -> None:
    model, plan, recorder = wrapped(data=(INPUTS, TARGETS))
    optimizer, scaler = sgd(plan, **settings), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    with recorder.attach(optimizer):
        for blown in (1.0, float("inf"), 1.0):
            if blown != 1.0:
                recorder.forget()
            recorder.batch(range(6))
            model.zero_grad()
            scaler.scale(blown * nn.functional.mse_loss(model(INPUTS), TARGETS)).backward()
            scaler.step(optimizer)
            scaler.update()
            if blown != 1.0:
                recorder.forget()
    assert (recorder.step, recorder.training.doubt) == (2, "")
    assert [rows.tolist() for rows in recorder.problem().batches or ()] in ([], [list(range(6))] * 2)


@pytest.mark.parametrize("in_place", [False, True])
def test_compiled_before_it_is_wrapped(in_place: bool) -> None:
    """It is measured as it comes; wrapping asks for the other order."""
    torch.manual_seed(0)
    model = chain()
    expected = dmft.Recorder(model, dmft.Probe(INPUTS, TARGETS)).record()
    run = torch.compile(model, backend="eager")
    if in_place:
        model.compile(backend="eager")
        run = model
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recorder = dmft.Recorder(run, dmft.Probe(INPUTS, TARGETS))
        optimizer = SGD(run.parameters(), lr=0.05)
        with recorder.attach(optimizer):
            backward(model, run)
            optimizer.step()
    measured = recorder.trajectory()
    torch.testing.assert_close(measured.ntk.array[0], expected.ntk.array[0])
    assert [layer.name for layer in measured.layers] == ["0", "2", "4"]
    with pytest.raises(UnsupportedModelError, match=r"is compiled.*compile it afterwards"):
        dmft.parameterize(run, INPUTS)


def test_what_is_inside_of_data_parallelism_is_measured() -> None:
    torch.manual_seed(0)
    model = chain()
    record = dmft.Recorder(nn.DataParallel(model), dmft.Probe(INPUTS, TARGETS)).record()
    torch.testing.assert_close(record.ntk.array, dmft.Recorder(model, dmft.Probe(INPUTS, TARGETS)).record().ntk.array)
    assert [layer.name for layer in record.layers] == ["0", "2", "4"]


def test_the_meta_device_asks_for_numbers_first() -> None:
    with torch.device("meta"):
        model = normed()
    for call in (
        lambda: dmft.parameterize(model, INPUTS),
        lambda: dmft.describe(model, INPUTS),
        lambda: dmft.Recorder(model, dmft.Probe(INPUTS, TARGETS)),
        lambda: dmft.empirical_ntk(model, INPUTS),
        lambda: dmft.empirical_ntk(model, INPUTS, method="jacobian"),
    ):
        with pytest.raises(InvalidInputError, match=r"must have numbers.*meta device for 0\.weight.*to_empty"):
            call()
    with pytest.raises(InvalidInputError, match=r"example_input.*must be dense and hold numbers.*on meta"):
        dmft.parameterize(model, INPUTS.to("meta"))
    # The remedy.
    model.to_empty(device="cpu")
    torch.manual_seed(0)
    for module in model:
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    plan = dmft.parameterize(model, INPUTS, generator=torch.Generator().manual_seed(2))
    expected = wrapped(normed)[2].record()
    torch.testing.assert_close(dmft.Recorder(plan, dmft.Probe(INPUTS, TARGETS)).record().ntk.array, expected.ntk.array)
    assert not dmft.Recorder(plan, dmft.Probe(INPUTS, TARGETS)).record().notes


def test_averaged_weights_can_be_recorded_too() -> None:
    """A recorder of their own, which is told the step; that of the network is not disturbed."""
    model, plan, recorder = wrapped()
    average = torch.optim.swa_utils.AveragedModel(model)
    beside = dmft.Recorder(average.module, dmft.Probe(INPUTS, TARGETS))
    optimizer = sgd(plan)
    with recorder.attach(optimizer):
        for _ in range(3):
            backward(model)
            optimizer.step()
            average.update_parameters(model)
            beside.step = recorder.step
            beside.record()
    assert beside.trajectory().steps.tolist() == [1, 2, 3]
    with torch.no_grad():
        torch.testing.assert_close(beside.records[-1].outputs[0], average(INPUTS))
    assert not torch.equal(beside.records[-1].outputs, recorder.records[-1].outputs)


class CutOff(Checkpointed):
    """Its first layer stands behind a reentrant checkpoint of inputs without gradients, so that it is not trained."""

    def __init__(self) -> None:
        super().__init__(use_reentrant=True)

    def forward(self, x: Tensor) -> Tensor:
        h = checkpoint(lambda x: torch.tanh(self.first(x)), x, use_reentrant=True)
        return self.last(torch.tanh(self.middle(h)))


@pytest.mark.filterwarnings("ignore")
def test_what_a_reentrant_checkpoint_cuts_off_is_no_part_of_the_ntk() -> None:
    torch.manual_seed(0)
    model = CutOff()
    with pytest.raises(UnsupportedModelError, match=r"first.*without gradients cuts gradients"):
        dmft.parameterize(model, INPUTS)
    backward(model)
    assert model.first.weight.grad is None
    record = dmft.Recorder(model, dmft.Probe(INPUTS, TARGETS)).record()
    assert [layer.name for layer in record.layers] == ["middle", "last"]
    plain = Checkpointed(use_reentrant=False)
    plain.load_state_dict(model.state_dict())
    plain.first.requires_grad_(False)
    expected = dmft.empirical_ntk(plain, INPUTS, method="jacobian")
    torch.testing.assert_close(record.ntk.array[0], expected)
    torch.testing.assert_close(dmft.empirical_ntk(model, INPUTS, method="jacobian"), expected)


def test_a_model_of_fabric_is_measured_in_the_precision_of_its_weights() -> None:
    from lightning import Fabric

    torch.manual_seed(0)
    model = chain()
    expected = dmft.Recorder(model, dmft.Probe(INPUTS, TARGETS)).record()
    run = Fabric(accelerator="cpu", precision="bf16-mixed").setup_module(model)
    recorder = dmft.Recorder(run, dmft.Probe(INPUTS, TARGETS))
    torch.testing.assert_close(recorder.record().ntk.array, expected.ntk.array)
    assert recorder.trajectory().metadata["precision"] == "float32"
