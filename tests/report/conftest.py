"""One comparison of synthetic runs for every test of the report."""

from dataclasses import replace

import pytest

from tests.trajectories import two_layers
from torch_dmft.comparison import Comparison, compare


@pytest.fixture(scope="session")
def comparison() -> Comparison:
    return compare(
        two_layers(noise=0.02, seed=1, test=2),
        # As solvers do: they know no targets of test rows.
        replace(two_layers(noise=0.002, seed=2, test=2, origin="theory (N=inf)", stderr=0.002), targets=None),
        two_layers(richness=0, test=2, origin="static NTK (N=inf)"),
    )
