"""Other threads beside a measurement: the numbers they draw, and what they compute with the measured network.

No test waits for a time: threads meet at events, and where one has to be inside of a call or waiting, its stack is looked at.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import pickle
import random
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import torch_dmft as dmft
from torch_dmft.core import random_state, threads
from torch_dmft.core.errors import BusyModelError
from torch_dmft.core.random_state import random_state_kept, random_states
from torch_dmft.core.undisturbed import undisturbed

FOREVER = 30.0
"""Seconds after which a test that hangs fails."""


class Meets(nn.Module):
    """Passes its input on; in the thread that measures it lets another one act meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.act: Callable[[], object] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.act is not None:
            self.act()
        return x

    def once(self, act: Callable[[], object]) -> None:
        """Act in the next pass; the attribute alone would be put back behind a measurement."""
        acts = iter([act])
        self.act = lambda: next(acts, int)()


class AlwaysDrops(nn.Module):
    """Dropout in both modes."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, training=True) + torch.randn_like(x) + torch.rand(x.shape)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 8), Meets(), nn.Tanh(), nn.Linear(8, 2))


def with_norm() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), Meets(), nn.ReLU(), nn.Linear(8, 2))


def with_dropout() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 8), nn.Dropout(), Meets(), nn.ReLU(), nn.Linear(8, 2))


def convolution() -> nn.Sequential:
    convolution = nn.Conv1d(1, 4, 2)
    return nn.Sequential(
        nn.Unflatten(1, (1, 3)), convolution, nn.BatchNorm1d(4), Meets(), nn.Flatten(), nn.Linear(8, 2)
    )


MODELS = [mlp, with_norm, with_dropout, convolution]


def meeting(model: nn.Module) -> Meets:
    return next(module for module in model.modules() if isinstance(module, Meets))


@pytest.fixture
def other() -> Iterator[ThreadPoolExecutor]:
    """A second thread, which lives before and during the test."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result(FOREVER)
        yield pool


def inside(thread: int, *where: Callable[..., Any]) -> None:
    """Wait until a thread is inside of one of these functions."""
    codes = {one.__code__ for one in where}
    ends = time.monotonic() + FOREVER
    while time.monotonic() < ends:
        time.sleep(0)
        frame = sys._current_frames().get(thread)
        while frame is not None and isinstance(frame.f_code, CodeType):  # as torch.compile tears frames down
            if any(frame.f_code is code for code in codes):
                return
            frame = frame.f_back
    raise AssertionError("it never came there")


def calling(thread: int, model: nn.Module) -> None:
    """Wait until a thread is inside of a call of a module."""
    ends = time.monotonic() + FOREVER
    while not any(one is model for one in threads.calls_of_threads()[thread]):
        assert time.monotonic() < ends


# Random numbers

SOURCES: dict[str, tuple[Callable[[int], object], Callable[[], float]]] = {
    "torch": (torch.manual_seed, lambda: float(torch.rand(()))),
    "normal": (torch.manual_seed, lambda: float(torch.empty(3).normal_()[0])),
    "dropout": (torch.manual_seed, lambda: float(F.dropout(torch.ones(40)).dot(torch.arange(40.0)))),
    "numpy": (np.random.seed, np.random.rand),
    "python": (random.seed, random.random),
}


def numbers_beside_a_record(
    source: str, model: nn.Module, other: ThreadPoolExecutor
) -> tuple[list[float], list[float]]:
    """What a thread draws before, during and behind a record; and what it draws alone."""
    seed, draw = SOURCES[source]
    seed(0)
    alone = [draw() for _ in range(60)]
    recorder = dmft.Recorder(model, dmft.Probe(torch.randn(4, 3), torch.randn(4, 2)))
    seed(0)
    drawn = other.submit(lambda: [draw() for _ in range(20)]).result(FOREVER)
    meeting(model).once(lambda: drawn.extend(other.submit(lambda: [draw() for _ in range(20)]).result(FOREVER)))
    recorder.record()
    drawn += other.submit(lambda: [draw() for _ in range(20)]).result(FOREVER)
    return drawn, alone


@pytest.mark.filterwarnings("ignore:While a network was measured")
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("source", SOURCES)
def test_a_thread_draws_the_numbers_it_would_draw_alone(
    source: str, model: Callable[[], nn.Module], other: ThreadPoolExecutor
) -> None:
    drawn, alone = numbers_beside_a_record(source, model(), other)
    if source == "python":  # from which the checks of annotations draw, too
        assert len(set(drawn)) == 60
    else:
        assert drawn == alone


def test_numbers_of_python_are_those_without_checks_of_annotations() -> None:
    here = Path(__file__)
    code = f"""
import sys; sys.path.insert(0, {str(here.parent)!r})
from concurrent.futures import ThreadPoolExecutor
from {here.stem} import MODELS, numbers_beside_a_record
for model in MODELS:
    with ThreadPoolExecutor(1) as other:
        drawn, alone = numbers_beside_a_record("python", model(), other)
    assert drawn == alone
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=here.parents[2])


@pytest.mark.parametrize("source", ["torch", "normal", "numpy"])
def test_put_back_they_would_be_drawn_twice(
    source: str, other: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random_state, "in_company", lambda: False)
    drawn, alone = numbers_beside_a_record(source, mlp(), other)
    assert drawn != alone
    assert len(set(drawn)) == 40


@pytest.mark.parametrize("source", ["torch", "normal", "dropout"])
def test_a_network_that_draws_while_it_is_measured_takes_no_number_from_anybody(
    source: str, other: ThreadPoolExecutor
) -> None:
    seed, draw = SOURCES[source]
    model = nn.Sequential(nn.Linear(3, 8), AlwaysDrops(), Meets(), nn.Linear(8, 2))
    seed(0)
    alone = [draw() for _ in range(20)]
    seed(0)
    drawn = [draw() for _ in range(5)]
    meeting(model).once(lambda: drawn.extend(other.submit(lambda: [draw() for _ in range(10)]).result(FOREVER)))
    with undisturbed(model):
        one = model(torch.ones(2, 3))
        two = model(torch.ones(2, 3))
    assert not torch.equal(one, two)
    assert drawn + [draw() for _ in range(5)] == alone


def test_copies_go_on_where_the_global_generator_was(other: ThreadPoolExecutor) -> None:
    torch.manual_seed(0)
    expected = [torch.rand(2), torch.randn(3), torch.bernoulli(torch.full((4,), 0.5)), torch.randint(9, (5,))]
    expected += [torch.randperm(5), torch.rand_like(torch.ones(2)), torch.randint_like(torch.ones(2), 9)]
    expected += [torch.multinomial(torch.ones(4), 2), torch.normal(torch.ones(2)), F.dropout(torch.ones(9))]
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    states = random_states().torch
    with random_state_kept():
        assert random_states().torch != states  # nothing was drawn from a copy
        drawn = [torch.rand(2), torch.randn(3), torch.bernoulli(torch.full((4,), 0.5)), torch.randint(9, (5,))]
        assert torch.equal(torch.random.get_rng_state(), before)
        drawn += [torch.randperm(5), torch.rand_like(torch.ones(2)), torch.randint_like(torch.ones(2), 9)]
        drawn += [torch.multinomial(torch.ones(4), 2), torch.normal(torch.ones(2)), F.dropout(torch.ones(9))]
        own = torch.Generator().manual_seed(1)
        assert torch.equal(torch.rand(2, generator=own), torch.rand(2, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(torch.random.get_rng_state(), before)
    for one, two in zip(drawn, expected, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("beside", [False, True])
def test_a_seed_holds_for_all_sources(beside: bool) -> None:
    def numbers() -> list[float]:
        kept = [repr(np.random.get_state()), torch.random.get_rng_state().tolist()]  # noqa: NPY002
        with random_state_kept(seed=3):
            drawn = [random.random(), float(np.random.rand()), *torch.rand(3).tolist()]  # noqa: NPY002
        assert kept == [repr(np.random.get_state()), torch.random.get_rng_state().tolist()]  # noqa: NPY002
        return drawn[1:]

    expected = numbers()
    if not beside:
        assert expected[1:] == torch.rand(3, generator=torch.Generator().manual_seed(3)).tolist()
        return
    with ThreadPoolExecutor(1) as pool, warnings.catch_warnings(record=True) as said:
        pool.submit(int).result(FOREVER)
        warnings.simplefilter("always")
        assert numbers() == expected
    assert any("may draw numbers twice" in str(one.message) for one in said)


@pytest.mark.parametrize("name", ["numpy", "python"])
def test_sources_that_know_no_threads_are_said(name: str, other: ThreadPoolExecutor) -> None:
    model = mlp()
    meeting(model).once(random.random if name == "python" else np.random.rand)
    what = {"numpy": r"numbers of numpy\.random were drawn", "python": r"numbers of random were drawn"}[name]
    with pytest.warns(UserWarning, match=what), undisturbed(model):
        model(torch.ones(2, 3))


def test_nothing_is_said_of_draws_outside_of_the_network(other: ThreadPoolExecutor) -> None:
    model = mlp()
    with warnings.catch_warnings(), undisturbed(model):
        warnings.simplefilter("error")
        other.submit(np.random.rand).result(FOREVER)
        model(torch.ones(2, 3))


@pytest.mark.parametrize("train", [False, True])
def test_dropout_is_found_beside_a_thread_that_draws(train: bool, other: ThreadPoolExecutor) -> None:
    stop = threading.Event()
    begun = threading.Event()

    def draw() -> None:
        while not stop.is_set():
            torch.rand(7)
            begun.set()

    drawing = other.submit(draw)
    begun.wait(FOREVER)
    try:
        inputs = torch.randn(4, 3)
        plain = dmft.describe(mlp(), inputs).train_differs
        dropping = dmft.describe(with_dropout(), inputs).train_differs
    finally:
        stop.set()
        drawing.result(FOREVER)
    assert not plain
    assert [place.path for place in dropping] == ["1"]


def test_training_beside_loaders_and_prefetching_threads_is_what_it_is_without_a_recorder(
    other: ThreadPoolExecutor,
) -> None:
    """A thread transforms batches with random numbers, one ahead, and workers fetch them."""

    def train(records: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.Dropout(), nn.ReLU(), nn.Linear(16, 2))
        data = TensorDataset(torch.randn(12, 3), torch.randn(12, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        recorder = dmft.Recorder(model, dmft.Probe(*data[:6]))
        loader = DataLoader(data, batch_size=4, shuffle=True, num_workers=1, generator=torch.Generator().manual_seed(1))

        def augmented(batch: list[Tensor]) -> tuple[Tensor, Tensor]:
            return batch[0] + 0.1 * torch.randn_like(batch[0]), batch[1]

        with recorder.attach(optimizer) if records else contextlib.nullcontext():
            batches = iter(loader)
            ahead = other.submit(augmented, next(batches))
            for _ in range(3):
                x, y = ahead.result(FOREVER)
                following = next(batches, None)
                optimizer.zero_grad()
                F.mse_loss(model(x), y).backward()
                if following is not None:  # drawn while the step is recorded, and before anything else is
                    meets, done = threading.Event(), threading.Event()
                    ahead = other.submit(lambda one, at: (at.wait(FOREVER), augmented(one))[1], following, meets)
                    ahead.add_done_callback(lambda _, at=done: at.set())
                    hook = optimizer.register_step_post_hook(
                        lambda *_, at=meets, end=done: (at.set(), end.wait(FOREVER))
                    )
                    optimizer.step()
                    hook.remove()
                else:
                    optimizer.step()
        return [value.detach().clone() for value in model.state_dict().values()]

    assert all(map(torch.equal, train(records=False), train(records=True)))


# Calls of the measured network


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
