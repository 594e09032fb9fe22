"""What tests of files and of threads share: a saved run, and a second thread."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.core.meetings import FOREVER
from tests.core.saved import example
from torch_dmft.core.training import Training
from torch_dmft.core.trajectory import Trajectory


@pytest.fixture
def run(generator: torch.Generator) -> Trajectory:
    """A run of every part."""
    return example(generator)


@pytest.fixture
def path(run: Trajectory, tmp_path: Path) -> Path:
    """A saved run."""
    run.save(tmp_path / "run.npz")
    return tmp_path / "run.npz"


@pytest.fixture
def small(run: Trajectory) -> Trajectory:
    """A run with fewer parts."""
    layers = (replace(run.layers[0], fields=None),)
    return replace(run, layers=layers, stderr=None, training=Training.sgd(torch.ones(5), 5), metadata={"width": 64})


@pytest.fixture
def other() -> Iterator[ThreadPoolExecutor]:
    """A second thread, which lives before and during the test."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result(FOREVER)
        yield pool
