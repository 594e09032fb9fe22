"""What every test shares: checked shapes, one thread, no display, and explicit random numbers."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
import torch

from tests.checked_imports import check_imports_of
from tests.vision import make_importable

# Before anything imports the package, so that every annotation of its functions is checked while the tests run.
check_imports_of("torch_dmft")
make_importable()  # of torchvision, which other libraries import

# Small matrices on several workers: threads only get into each other's way.
torch.set_num_threads(1)
os.environ["MPLBACKEND"] = "Agg"  # read when matplotlib is first imported, which most tests never do


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collect no garbage while modules are imported, nor look at what they made later: nearly all of it stays."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that libraries and other tests have left behind are no company of a test; those that it starts itself are."""
    before, frames = set(threading.enumerate()) - {threading.current_thread()}, sys._current_frames
    left = set(frames()) - {threading.get_ident()}  # those that did not begin as threads of `threading` too
    monkeypatch.setattr(threading, "active_count", lambda: len(set(threading.enumerate()) - before))
    monkeypatch.setattr(sys, "_current_frames", lambda: {k: v for k, v in frames().items() if k not in left})


@pytest.fixture
def generator() -> torch.Generator:
    """The test's source of random numbers, seeded."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def make_generator() -> Callable[[int], torch.Generator]:
    """Build further seeded sources of random numbers: ``make_generator(seed)``."""
    return lambda seed: torch.Generator().manual_seed(seed)
