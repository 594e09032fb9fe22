"""Looking must draw no random numbers that training would have drawn: a context that puts all sources back."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch


@contextmanager
def random_state_kept(devices: Iterable[torch.device] = ()) -> Iterator[None]:
    """Run the body and put back the random states of python, numpy and torch, also after an exception.

    Args:
        devices: accelerators whose states are put back beside that of the CPU.
    """
    accelerators = [device for device in devices if device.type not in ("cpu", "meta")]
    with ExitStack() as stack:
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())  # noqa: NPY002, users' data sets draw there
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for kind in {device.type for device in accelerators}:
            here = [device for device in accelerators if device.type == kind]
            stack.enter_context(torch.random.fork_rng(devices=here, device_type=kind))
        yield


@contextmanager
def random_state_of(seed: int, devices: Iterable[torch.device] = ()) -> Iterator[None]:
    """Run the body with the random states of this seed, and put back those of before.

    Args:
        seed: of python, numpy and torch, on all devices.
        devices: accelerators in use.
    """
    where = list(devices)
    with random_state_kept(where):
        random.setstate(random.Random(seed).getstate())
        np.random.set_state(np.random.RandomState(seed % 2**32).get_state())  # noqa: NPY002, models may draw there
        torch.random.set_rng_state(torch.Generator().manual_seed(seed).get_state())
        for device in where:
            if device.type not in ("cpu", "meta"):
                state = torch.Generator(device).manual_seed(seed).get_state()
                torch.get_device_module(device).set_rng_state(state, device)
        yield
