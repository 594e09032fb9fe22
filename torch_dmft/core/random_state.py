"""Looking must draw no random numbers that training would have drawn: a context that puts all sources back.

In a process with a single thread what was drawn from is put back. Beside other threads that would take back their draws as
well, so that they draw the same numbers twice. There torch's numbers are drawn from copies of its generators, of which nobody
else knows. The generators of python and numpy cannot be told apart by threads: whoever drew from them, they go on from there,
and a warning says so.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_map

from torch_dmft.core.own_draws import OwnDraws, global_state, set_global_state
from torch_dmft.core.threads import in_company, nobody_else_inside, waiting

_draws: ContextVar[OwnDraws | None] = ContextVar("draws", default=None)
"""From where this thread draws torch's numbers, if not from the global generators."""


class RandomStates(NamedTuple):
    """The states that a thread draws from at a moment; equal at two moments if it drew nothing between them.

    Attributes:
        python: of ``random``, which all threads draw from, and type checkers too.
        numpy: of ``numpy.random``, which all threads draw from.
        torch: of torch.
    """

    python: object
    numpy: object
    torch: list[Any]


def random_states(devices: Iterable[torch.device] = ()) -> RandomStates:
    """The states that this thread draws from now.

    Args:
        devices: accelerators in use.
    """
    own = _draws.get()
    return RandomStates(
        *_of_python(),
        [global_state(device).numpy().tobytes() for device in _all_of(devices)] if own is None else own.states(),
    )


@contextmanager
def random_state_kept(
    devices: Iterable[torch.device] = (), *, seed: int | None = None, inside_of: Collection[nn.Module] | None = None
) -> Iterator[None]:
    """Run the body and leave the random states of python, numpy and torch as they were, also after an exception.

    Args:
        devices: accelerators whose states are kept beside that of the CPU.
        seed: of all sources in the body, if they are not to begin where they are.
        inside_of: a network with all its submodules, if nothing else in the body draws. No other thread runs it meanwhile.
    """
    if not in_company():
        with _put_back(devices, seed):
            yield
        return
    own = OwnDraws(seed)
    token = _draws.set(own)
    try:
        if inside_of is None:
            with _drawn_from(own, seed):
                yield
        else:
            with nobody_else_inside(inside_of, lambda: _drawn_from(own, seed)):
                yield
    finally:
        _draws.reset(token)


@contextmanager
def _put_back(devices: Iterable[torch.device], seed: int | None) -> Iterator[None]:
    """Put back the states of all sources behind the body."""
    where = _all_of(devices)
    python, of_torch = _of_python(), {device: global_state(device) for device in where}
    try:
        if seed is not None:
            _seed_python(seed)
            for device in where:
                set_global_state(torch.Generator(device).manual_seed(seed).get_state(), device)
        yield
    finally:
        _set_python(python)
        for device, state in of_torch.items():
            set_global_state(state, device)


@contextmanager
def _drawn_from(own: OwnDraws, seed: int | None) -> Iterator[None]:
    """Draw torch's numbers from copies, and say if somebody draws from the sources of which there are none."""
    before, others = _of_python(), waiting()
    if seed is not None:
        _seed_python(seed)
    begun = _of_python()
    try:
        with own:
            yield
    finally:
        drawn = [
            name for name, one, now in zip(("random", "numpy.random"), begun, _of_python(), strict=True) if one != now
        ]
        alone = others is not None and others == waiting()
        if seed is not None or (drawn and alone):
            _set_python(before)
        if drawn and not alone:
            warnings.warn(
                _SAID.format(" and ".join(drawn), _FROM_THERE if seed is None else _FROM_BEFORE), stacklevel=5
            )


_SAID = (
    "While a network was measured, numbers of {} were drawn, by it or by another thread. {} Remedy: let threads draw from "
    "generators of their own (numpy.random.default_rng(), random.Random()), and the network from torch."
)
_FROM_THERE = (
    "These sources go on from there, so that no number is drawn twice; if it was the network, training draws other numbers "
    "than it would without the measurement."
)
_FROM_BEFORE = "These sources go on from where they were before, so that another thread may draw numbers twice."


def _all_of(devices: Iterable[torch.device]) -> set[torch.device]:
    return {torch.device("cpu"), *(device for device in devices if device.type not in ("cpu", "meta"))}


def _of_python() -> tuple[object, object]:
    """The states of the sources that know no threads: python's and numpy's."""
    numpy: dict[str, Any] = np.random.get_state(legacy=False)  # type: ignore[assignment]  # noqa: NPY002, users' data sets draw there
    return random.getstate(), _State(numpy)


def _set_python(states: tuple[Any, Any]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1].numpy)  # noqa: NPY002


def _seed_python(seed: int) -> None:
    random.setstate(random.Random(seed).getstate())
    np.random.set_state(np.random.RandomState(seed % 2**32).get_state(legacy=False))  # noqa: NPY002, models may draw there


class _State:
    """A state of numpy's generator, which holds an array, and can be compared."""

    def __init__(self, numpy: dict[str, Any]) -> None:
        self.numpy = numpy

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _State) and self._plain == other._plain

    __hash__ = None  # type: ignore[assignment]

    @property
    def _plain(self) -> object:
        return tree_map(lambda one: one.tobytes() if isinstance(one, np.ndarray) else one, self.numpy)
