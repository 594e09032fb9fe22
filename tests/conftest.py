"""What every test shares: checked shapes, one thread, no display, and explicit random numbers."""

from __future__ import annotations

from collections.abc import Callable

import matplotlib as mpl
import pytest
import torch
from jaxtyping import install_import_hook

# Before anything imports the package, so that every annotation of its functions is checked while the tests run.
install_import_hook("torch_dmft", "beartype.beartype")

# Small matrices on several workers: threads only get into each other's way.
torch.set_num_threads(1)
mpl.use("Agg")


@pytest.fixture
def generator() -> torch.Generator:
    """The test's source of random numbers, seeded."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def make_generator() -> Callable[[int], torch.Generator]:
    """Build further seeded sources of random numbers: ``make_generator(seed)``."""
    return lambda seed: torch.Generator().manual_seed(seed)
