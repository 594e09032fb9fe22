"""Random states are put back, also after an exception."""

import contextlib
import random
import threading
import time
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from torch_dmft.core import random_state
from torch_dmft.core.random_state import random_state_kept


def test_all_sources_go_on_where_they_were() -> None:
    kept = []
    with contextlib.suppress(ZeroDivisionError), random_state_kept([torch.device("cpu")]):
        kept += [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]  # type: ignore[index]  # noqa: NPY002
        random.random()
        np.random.rand()  # noqa: NPY002
        torch.rand(())
        raise ZeroDivisionError
    assert random.getstate() == kept[0]
    assert np.random.get_state()[1].tolist() == kept[1]  # type: ignore[index]  # noqa: NPY002
    assert torch.get_rng_state().tolist() == kept[2]


@contextlib.contextmanager
def beside(run: Callable[[threading.Event, threading.Event], None]) -> Iterator[None]:
    """A thread that runs in the body: it is given an event to set when it has begun, and one that ends it."""
    begun, over = threading.Event(), threading.Event()
    thread = threading.Thread(target=run, args=(begun, over))
    thread.start()
    begun.wait()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _waits(begun: threading.Event, over: threading.Event) -> None:
    """As progress bars, loggers and Jupyter do."""
    begun.set()
    over.wait()


def _until_all_wait() -> None:
    """Those that have begun, and are about to wait."""
    ends = time.monotonic() + 30
    while random_state.waiting() is None:
        assert time.monotonic() < ends, "another thread never waits"


def test_beside_a_thread_that_waits_they_are_put_back() -> None:
    with beside(_waits), warnings.catch_warnings():
        warnings.simplefilter("error")
        _until_all_wait()
        with random_state_kept():
            python, numpy = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
            random.random()
            np.random.rand()  # noqa: NPY002
        assert random.getstate() == python
        assert np.random.get_state()[1].tolist() == numpy  # type: ignore[index]  # noqa: NPY002


def test_beside_a_thread_that_woke_up_they_go_on() -> None:
    drawn: list[float] = []
    wake, done = threading.Event(), threading.Event()

    def draws(begun: threading.Event, over: threading.Event) -> None:
        begun.set()
        wake.wait(30)
        drawn.append(random.random())
        done.set()
        over.wait()

    with beside(draws):
        _until_all_wait()
        said = pytest.warns(UserWarning, match=r"numbers of random were drawn")
        with said, random_state_kept():
            wake.set()
            done.wait(30)
            _until_all_wait()  # again, but not as before
        assert random.random() != drawn[0]
