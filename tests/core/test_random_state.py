"""Random states are put back, also after an exception."""

import contextlib
import random

import numpy as np
import torch

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
