"""Copies, pickles and checkpoints of runs: they go on bit for bit, and state of another width is refused."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

import torch_dmft as dmft
from tests.end_to_end.places import INPUTS, TARGETS, backward, normed, ordinary, sgd, train, wrapped
from torch_dmft.core.errors import InvalidInputError


def copied(value: Any) -> Any:
    return copy.deepcopy(value)


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def saved(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("how", [copied, pickled, saved], ids=lambda how: how.__name__)
def test_a_copy_goes_on_alike(how: Callable[[Any], Any]) -> None:
    """Plan, model, optimizer and recorder together, in the middle of an attach; what is undone in one stays in the other."""
    model, plan, recorder = wrapped(normed)
    before = {name: value.clone() for name, value in normed_start().items()}
    optimizer = sgd(plan)
    with recorder.attach(optimizer):
        backward(model)
        optimizer.step()
        twin, other_plan, other_optimizer, other = how((model, plan, optimizer, recorder))
        assert other_plan.model is twin
        assert other.subject.plan.model is twin
        for run, stepping, watch in ((model, optimizer, None), (twin, other_optimizer, other)):
            with nullcontext() if watch is None else watch.attach(stepping):
                for _ in range(2):
                    backward(run)
                    stepping.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    one, two = recorder.trajectory(), other.trajectory()
    assert one.steps.tolist() == two.steps.tolist() == [0, 1, 2, 3]
    assert torch.equal(one.ntk.array, two.ntk.array)
    assert two.training.notes == one.training.notes == ()
    other_plan.undo()
    assert all(torch.equal(value, before[name]) for name, value in twin.state_dict().items())
    assert not torch.equal(model[0].weight, twin[0].weight)
    plan.undo()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def normed_start() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return normed().state_dict()


def test_a_run_is_resumed_bit_for_bit() -> None:
    """From state_dicts alone, in a new model, plan, optimizer and recorder."""
    whole, recorder = train(normed, ordinary, record=True)
    model, plan, first = wrapped(normed)
    optimizer = sgd(plan)
    with first.attach(optimizer):
        for _ in range(2):
            backward(model)
            optimizer.step()
    state = saved([one.state_dict() for one in (model, plan, optimizer, first)])
    torch.manual_seed(5)
    model = normed()
    plan = dmft.parameterize(model, INPUTS)
    for one, kept in zip((model, plan), state, strict=False):
        one.load_state_dict(kept)
    optimizer, later = sgd(plan), dmft.Recorder(plan, dmft.Probe(INPUTS, TARGETS))
    optimizer.load_state_dict(state[2])
    later.load_state_dict(state[3])
    with later.attach(optimizer):
        for _ in range(2):
            backward(model)
            optimizer.step()
    assert all(torch.equal(value, whole[-1][name]) for name, value in model.state_dict().items())
    one, other = recorder.trajectory(), later.trajectory()
    assert one.steps.tolist() == other.steps.tolist()
    assert torch.equal(one.ntk.array, other.ntk.array)
    for mine, theirs in zip(one.layers, other.layers, strict=True):
        assert torch.equal(mine.forward.array, theirs.forward.array)
        assert torch.equal(mine.backward.array, theirs.backward.array)
    assert other.training == one.training


@pytest.mark.parametrize("wrap", [True, False])
def test_state_of_another_width_is_refused(wrap: bool) -> None:
    """That of a plan and that of a recorder; the remedy is a model of the saved width, or a new plan."""

    def at(width: int) -> tuple[Any, dmft.Recorder]:
        model = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))
        plan = dmft.parameterize(model, INPUTS) if wrap else model
        return plan, dmft.Recorder(plan, dmft.Probe(INPUTS, TARGETS))

    narrow, recorder = at(16)
    recorder.record()
    wide, other = at(32)
    if wrap:
        rules = wide.rules
        with pytest.raises(
            InvalidInputError, match=r"width of this plan.*2\.weight \(fan-in 16, here 32\).*wrap the model"
        ):
            wide.load_state_dict(narrow.state_dict())
        assert wide.rules == rules
    with pytest.raises(
        InvalidInputError, match=r"at another width.*2\.weight with fan-in 16, here 32.*of its own width"
    ):
        other.load_state_dict(recorder.state_dict())
    assert (other.step, other.records) == (0, [])
    other.record()  # it goes on as if nobody had tried
    _, again = at(16)
    again.load_state_dict(recorder.state_dict())
    assert again.trajectory().steps.tolist() == [0]


def test_an_optimizer_of_another_width_is_said() -> None:
    """Its state brings the rates of the other width along."""
    _, plan, _ = wrapped()
    wide = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    other = dmft.parameterize(wide, INPUTS)
    optimizer = SGD(other.param_groups(0.1))
    optimizer.load_state_dict(SGD(plan.param_groups(0.1)).state_dict())
    recorder = dmft.Recorder(other, dmft.Probe(INPUTS, TARGETS))
    with pytest.warns(UserWarning, match="not those of plan"), recorder.attach(optimizer):
        pass
