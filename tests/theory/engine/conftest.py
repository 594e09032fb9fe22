"""What tests of the engine share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def seeded() -> Iterator[None]:
    """Torch's own initial numbers are the same in every run."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
