"""Other threads beside a measurement draw the numbers that they would draw alone."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import torch_dmft as dmft
from tests.core.meetings import FOREVER, MODELS, AlwaysDrops, Meets, meeting, mlp, with_dropout
from torch_dmft.core import random_state
from torch_dmft.core.random_state import random_state_kept, random_states
from torch_dmft.core.undisturbed import undisturbed

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
