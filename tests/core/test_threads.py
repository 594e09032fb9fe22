"""Other threads beside a measurement compute with the measured network what they would compute alone, or wait.

No test waits for a time; see ``meetings``.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import pickle
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torch_dmft as dmft
from tests.core.meetings import FOREVER, MODELS, calling, convolution, inside, meeting, mlp, with_norm
from torch_dmft.core import random_state, threads
from torch_dmft.core.errors import BusyModelError
from torch_dmft.core.undisturbed import undisturbed


def snapshots_agree(one: dmft.Trajectory, two: dmft.Trajectory) -> None:
    assert torch.equal(one.outputs, two.outputs)
    for mine, theirs in zip(one.layers, two.layers, strict=True):
        assert torch.equal(mine.forward.array, theirs.forward.array)
        assert torch.equal(mine.backward.array, theirs.backward.array)
        assert torch.equal(mine.ntk.array, theirs.ntk.array)


def recorder_of(model: nn.Module, dtype: torch.dtype = torch.float32) -> dmft.Recorder:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(5, 3, generator=generator), torch.randn(5, 2, generator=generator)
    return dmft.Recorder(model, dmft.Probe(x.to(dtype), y.to(dtype)))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_inference_waits_for_a_record_and_both_are_right(
    model: Callable[[], nn.Module], training: bool, other: ThreadPoolExecutor
) -> None:
    torch.manual_seed(0)
    network, inputs = model().train(training), torch.randn(7, 3)
    recorder = recorder_of(network)
    expected = recorder_of(network).record()
    thread = other.submit(threading.get_ident).result(FOREVER)
    kept = pickle.dumps(network.state_dict())
    torch.manual_seed(1)
    right = network(inputs).detach()
    network.load_state_dict(pickle.loads(kept))
    asked: list[Any] = []

    def ask() -> None:
        asked.append(other.submit(lambda: network(inputs).detach()))
        calling(thread, network)

    torch.manual_seed(1)
    meeting(network).once(ask)
    snapshots_agree(recorder.record(), expected)
    assert torch.equal(asked[0].result(FOREVER), right)
    assert all(module.training is training for module in network.modules())


@pytest.mark.parametrize(
    "how", ["wrapped", "compiled", "compiled in place", "compiled around", "compiled around in place"]
)
def test_wrapped_and_compiled_ones_wait_too(how: str, other: ThreadPoolExecutor) -> None:
    torch.manual_seed(0)
    network, inputs = with_norm().eval(), torch.randn(7, 3)
    right, thread, asked = network(inputs).detach(), other.submit(threading.get_ident).result(FOREVER), []
    wrapped: Any = nn.Sequential(network) if how == "wrapped" or "around" in how else network
    if how.endswith("in place"):
        wrapped.compile(backend="eager")
    elif how.startswith("compiled"):
        wrapped = torch.compile(wrapped, backend="eager")
    assert torch.allclose(other.submit(wrapped, inputs).result(FOREVER), right)
    with undisturbed(network):
        network[1].running_mean.fill_(5.0)
        asked.append(other.submit(wrapped, inputs))
        inside(thread, threading.Event.wait)
    assert torch.allclose(asked[0].result(FOREVER), right)


def test_without_waiting_both_are_wrong(other: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def nothing(*_: object) -> Iterator[None]:
        yield

    for name in ("capture", "batch_norm"):
        monkeypatch.setattr(sys.modules[f"torch_dmft.measurement.{name}"], "of_this_thread", lambda hook: hook)
    monkeypatch.setattr(random_state, "nobody_else_inside", nothing)
    torch.manual_seed(0)
    network, inputs = with_norm().eval(), torch.randn(5, 3)
    expected = recorder_of(network).record()
    recorder, right = recorder_of(network), network(inputs).detach()
    answers: list[Tensor] = []

    def ask() -> None:
        meeting(network).once(lambda: answers.append(other.submit(lambda: network(inputs).detach()).result(FOREVER)))

    recorder.subject.run.register_forward_hook(
        lambda *_: ask() if not answers else None
    )  # in the pass with hooks in place
    with contextlib.suppress(Exception):
        record = recorder.record()
        snapshots_agree(record, expected)
        assert torch.equal(answers[0], right)
        pytest.fail("a version without the mend has to fail")
    assert not answers or not torch.equal(answers[0], right)


@pytest.mark.parametrize("model", MODELS)
def test_a_record_waits_for_a_call_that_is_under_way(model: Callable[[], nn.Module], other: ThreadPoolExecutor) -> None:
    torch.manual_seed(0)
    network, inputs = model(), torch.randn(7, 3)
    expected, recorder = recorder_of(network).record(), recorder_of(network)
    torch.manual_seed(1)
    right, kept = network(inputs).detach(), network.state_dict()
    network.load_state_dict(kept)
    main, arrived = threading.get_ident(), threading.Event()

    def wait_for_the_record() -> None:  # inside of the call
        arrived.set()
        inside(main, threads._wait_for_others)

    torch.manual_seed(1)
    meeting(network).once(wait_for_the_record)
    asked = other.submit(lambda: network(inputs).detach())
    assert arrived.wait(FOREVER)
    record = recorder.record()
    assert torch.equal(asked.result(FOREVER), right)  # in train mode to its end
    if not any(isinstance(module, nn.BatchNorm1d) for module in network.modules()):
        snapshots_agree(record, expected)
    assert network.training


def test_who_cannot_wait_any_longer_is_refused(other: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "PATIENCE", 0.01)
    network, inputs = mlp(), torch.randn(7, 3)
    recorder = recorder_of(network)

    def ask() -> None:
        with pytest.raises(BusyModelError, match=r"cannot be run while another thread measures it.*deepcopy"):
            other.submit(network, inputs).result(FOREVER)

    meeting(network).once(ask)
    recorder.record()
    arrived, leave = threading.Event(), threading.Event()
    meeting(network).once(lambda: (arrived.set(), leave.wait(FOREVER)))
    asked = other.submit(network, inputs)
    arrived.wait(FOREVER)
    try:
        with pytest.raises(BusyModelError, match=r"cannot be measured while another thread runs it.*did not end"):
            recorder.look()
    finally:
        leave.set()
        asked.result(FOREVER)
    recorder.look()  # nothing is left behind


def test_a_call_that_waits_to_begin_is_not_waited_for(
    other: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that comes just before it is looked whether anybody is inside; else either waits for the other."""
    network, inputs = mlp(), torch.randn(7, 3)
    recorder, right = recorder_of(network), network(inputs)
    thread, asked, look = other.submit(threading.get_ident).result(FOREVER), [], threads._wait_for_others

    def look_late(*settings: Any) -> None:
        if not asked:
            asked.append(other.submit(network, inputs))
            calling(thread, network)
        monkeypatch.setattr(threads, "PATIENCE", 0.5)
        look(*settings)
        monkeypatch.undo()

    monkeypatch.setattr(threads, "_wait_for_others", look_late)
    recorder.record()
    assert torch.equal(asked[0].result(FOREVER), right)


def test_a_call_whose_hooks_were_off_is_refused(other: ThreadPoolExecutor) -> None:
    """It could not be made right, as torch has looked for the hooks before it could wait."""
    from torch_dmft.core.torch_private import without_hooks

    network, inputs = mlp(), torch.randn(7, 3)
    network.register_forward_pre_hook(lambda _, args: (2 * args[0],))
    thread, asked = other.submit(threading.get_ident).result(FOREVER), []
    with undisturbed(network), without_hooks(network):
        asked.append(other.submit(lambda: network(inputs)))
        calling(thread, network)
    with pytest.raises(BusyModelError, match=r"call it again"):
        asked[0].result(FOREVER)
    assert torch.equal(other.submit(network, inputs).result(FOREVER), network(inputs))


def test_other_networks_and_threads_of_torch_are_let_through(other: ThreadPoolExecutor) -> None:
    network, second, inputs = mlp(), mlp(), torch.randn(7, 3)
    answers, done = [], threading.Event()

    def of_torch() -> None:  # as torch starts threads for backward passes, of which Python does not know
        answers.append(network[0](inputs))
        done.set()

    def act() -> None:
        answers.append(other.submit(second, inputs).result(FOREVER))
        _thread.start_new_thread(of_torch, ())
        assert done.wait(FOREVER)

    meeting(network).once(act)
    with undisturbed(network):
        network(inputs)
    assert torch.equal(answers[0], second(inputs))
    assert torch.equal(answers[1], network[0](inputs))


def test_two_recorders_in_two_threads_record_what_each_records_alone() -> None:
    def run(seed: int, model: Callable[[], nn.Module], start: threading.Barrier) -> dmft.Trajectory:
        generator = torch.Generator().manual_seed(seed)
        network = model()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.normal_(0.0, 0.5, generator=generator)
        recorder = recorder_of(network)
        inputs, targets = recorder.probe.inputs, recorder.probe.targets
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
        start.wait(FOREVER)
        with recorder.attach(optimizer):
            for _ in range(6):
                start.wait(FOREVER)  # so that they record at the same time
                optimizer.zero_grad()
                F.mse_loss(network(inputs), targets).backward()
                optimizer.step()
        return recorder.trajectory()

    runs = [(0, mlp), (1, with_norm), (2, convolution)]
    alone = [run(seed, model, threading.Barrier(1)) for seed, model in runs]
    filters = list(warnings.filters)
    start = threading.Barrier(len(runs))
    with ThreadPoolExecutor(len(runs)) as pool:
        together = [one.result(FOREVER) for one in [pool.submit(run, seed, model, start) for seed, model in runs]]
    for one, two in zip(alone, together, strict=True):
        snapshots_agree(one, two)
    assert warnings.filters == filters
    assert torch.utils.checkpoint.CheckpointFunction.__module__ == "torch.utils.checkpoint"


def test_two_recorders_of_one_network_take_turns(other: ThreadPoolExecutor) -> None:
    network = with_norm()
    expected, one, two = recorder_of(network).record(), recorder_of(network), recorder_of(network)
    thread, asked = other.submit(threading.get_ident).result(FOREVER), []

    def ask() -> None:
        asked.append(other.submit(two.record))
        inside(thread, threads.own_turn.__wrapped__)  # type: ignore[attr-defined]

    meeting(network).once(ask)
    snapshots_agree(one.record(), expected)
    snapshots_agree(asked[0].result(FOREVER), expected)
    assert network.training


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_takes_its_own_turn(other: ThreadPoolExecutor) -> None:
    taken, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with threads.own_turn():
            taken.set()
            leave.wait(FOREVER)

    holding = other.submit(hold)
    taken.wait(FOREVER)
    child = os.fork()
    if child == 0:
        os._exit(0 if threads._turn.acquire(timeout=FOREVER) else 1)
    leave.set()
    holding.result(FOREVER)
    assert os.waitpid(child, 0)[1] == 0


def test_an_interrupt_leaves_no_mode_behind(other: ThreadPoolExecutor) -> None:
    network = mlp()

    def interrupt() -> None:
        raise KeyboardInterrupt

    meeting(network).once(interrupt)
    torch.manual_seed(0)
    with pytest.raises(KeyboardInterrupt), undisturbed(network):
        network(torch.ones(2, 3))
    one = torch.rand(2)
    torch.manual_seed(0)
    assert torch.equal(one, torch.rand(2))
    assert not torch.equal(one, torch.rand(2))
