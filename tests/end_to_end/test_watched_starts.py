"""A run that starts otherwise than theory does, or that is resumed, is seen as what it is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

import torch_dmft as dmft
from tests.end_to_end.watched import INPUTS, TARGETS, Run, chain, refused, scale, with_loader
from torch_dmft import solvers
from torch_dmft.core.errors import InvalidInputError, UnsupportedProblemError


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def test_weights_drawn_anew_after_the_first_record() -> None:
    run = Run()
    with run.recorder.attach(run.optimizer):
        run.model[0].reset_parameters()
        run.steps(4)
    refused(run, r"changed between steps \(0.weight, 0.bias\)")


@torch.no_grad()
def constant_bias(plan: dmft.Plan) -> None:
    plan.model.get_parameter("2.bias").fill_(0.3)


def larger(plan: dmft.Plan) -> None:
    scale(plan.model.get_parameter("2.weight"), 1.5)


@torch.no_grad()
def output_bias(plan: dmft.Plan) -> None:
    plan.model.get_parameter("4.bias").fill_(0.3)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (constant_bias, "2.bias: numbers of size 0.3, which were"),
        (larger, "2.weight: numbers 1.52 times as large"),
        (output_bias, "4.bias: numbers of size 0.3 instead of zero"),
    ],
)
def test_starts_that_theory_does_not_have(change: Any, told: str) -> None:
    run = Run(before_attach=change)
    run.train(4)
    with pytest.raises(UnsupportedProblemError, match=told):
        run.recorder.problem()
    assert run.recorder.problem(assume_gaussian=True).training.assumptions == ("start",)


@pytest.mark.parametrize(("bias", "told"), [(0.3, "mean 1 of their size"), (0.0, "")])
def test_biases_that_are_constant_when_the_model_is_wrapped(bias: float, told: str) -> None:
    model = chain()
    nn.init.constant_(model.get_parameter("2.bias"), bias)
    plan = dmft.parameterize(model, INPUTS)
    with pytest.raises(UnsupportedProblemError, match=told) if told else contextlib.nullcontext():
        dmft.Problem.like(plan, dmft.Probe(INPUTS, TARGETS), lr=0.1, steps=4)


@pytest.mark.parametrize("gain", [1.0, 1.5, 0.0])
def test_norm_layers_that_do_not_start_at_one(gain: float) -> None:
    model = nn.Sequential(nn.Linear(6, 32), nn.LayerNorm(32), nn.Tanh(), nn.Linear(32, 1))
    nn.init.constant_(model.get_parameter("1.weight"), gain)
    plan = dmft.parameterize(model, INPUTS)
    with pytest.raises(UnsupportedProblemError, match=r"1\.weight") if gain != 1 else contextlib.nullcontext():
        dmft.Problem.like(plan, dmft.Probe(INPUTS, TARGETS), lr=0.1, steps=4)


def resumed(run: Run, **settings: Any) -> Run:
    later = Run()
    later.recorder = dmft.Recorder(later.plan, run.recorder.probe, every=4, **settings)
    later.model.load_state_dict(run.model.state_dict())
    later.optimizer.load_state_dict(run.optimizer.state_dict())
    later.recorder.load_state_dict(run.recorder.state_dict())
    return later


def test_a_run_that_is_resumed_remembers_its_training_set() -> None:
    run = Run()
    run.recorder = dmft.Recorder(run.plan, dmft.Probe(INPUTS[:4], TARGETS[:4]), every=4)
    with_loader(run, lambda: TensorDataset(INPUTS, TARGETS))
    later = resumed(run)
    with pytest.raises(InvalidInputError, match="training set of its own"):
        later.recorder.problem()
    assert later.recorder.problem(data=(INPUTS, TARGETS)).training == run.recorder.problem().training
    with pytest.raises(InvalidInputError, match="must be the training set"):
        later.recorder.problem(data=(INPUTS[1:], TARGETS[1:]))
    with_loader(later, lambda: TensorDataset(INPUTS, TARGETS))
    assert later.recorder.problem().train_samples == 16
    with pytest.raises(InvalidInputError, match="another training set"):
        resumed(run, data=(INPUTS[1:], TARGETS[1:]))


def test_a_run_that_is_resumed_with_other_weights_is_found_out() -> None:
    run = Run()
    run.train(4)
    later = resumed(run)
    scale(later.model.get_parameter("2.weight"))
    later.train(4)
    refused(later, "changed between steps")


def test_momenta_that_are_reset() -> None:
    run = Run()

    def reset(step: int) -> None:
        if step == 6:
            for state in run.optimizer.state.values():
                state["momentum_buffer"].zero_()

    run.train(12, reset)
    refused(run, "momenta or other states of optimizers that were changed between steps")


def test_a_run_that_is_resumed_at_another_richness_is_refused() -> None:
    run, later = Run(), Run()
    run.train(4)
    later.plan.undo()
    plan = dmft.parameterize(later.model, INPUTS, gamma0=3.0)
    recorder = dmft.Recorder(plan, run.recorder.probe, every=4)
    with pytest.raises(InvalidInputError, match=r"another plan .*3\.0"):
        recorder.load_state_dict(run.recorder.state_dict())


def test_a_network_that_was_trained_before_its_recorder() -> None:
    """Without biases nothing but the weights tells; another draw in their place is as good as theirs."""

    def bias_free(train: int, redraw: bool = False) -> dmft.Recorder:
        model = chain(64, bias=False)
        plan = dmft.parameterize(model, INPUTS, generator=torch.Generator().manual_seed(0))
        if redraw:
            other = dmft.parameterize(chain(64, bias=False), INPUTS, generator=torch.Generator().manual_seed(1))
            model.load_state_dict(other.model.state_dict())
        optimizer = SGD(plan.param_groups(0.1))

        def steps(count: int) -> None:
            for _ in range(count):
                optimizer.zero_grad()
                nn.functional.mse_loss(model(INPUTS), TARGETS).backward()
                optimizer.step()

        steps(train)
        recorder = dmft.Recorder(plan, dmft.Probe(INPUTS, TARGETS))
        with recorder.attach(optimizer):
            steps(3)
        return recorder

    for recorder in (bias_free(0), bias_free(0, redraw=True)):
        assert recorder.training.starts == {}
        recorder.problem()
    late = bias_free(2)
    assert set(late.training.starts) == {"0.weight", "2.weight", "4.weight"}
    with pytest.raises(UnsupportedProblemError, match="changed since the model was wrapped"):
        late.problem()
    theory = dmft.solve(bias_free(0).problem(), solvers.StaticNTK(), record=[0, 1, 2, 3])
    with pytest.raises(InvalidInputError, match=r"start of 2\.weight: network numbers that were changed"):
        dmft.compare(late.trajectory(), theory)
