"""Random numbers of a measurement, drawn from copies of the generators that other threads draw from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from torch_dmft.core.torch_private import argument_names, with_generator


class OwnDraws(TorchDispatchMode):
    """A mode in which this thread draws from copies of torch's global generators; the global ones are left alone.

    A copy is made at the first draw on its device, and lasts from one entering of the mode to the next. An operator that takes
    no generator (dropout and attention on accelerators) has the copy's state in the global one's place while it is launched;
    numbers that another thread draws in these microseconds are drawn again.

    Args:
        seed: of the copies, if they are not to begin where the global generators are.
    """

    def __init__(self, seed: int | None = None) -> None:
        super().__init__()
        self._seed = seed
        self._copies: dict[torch.device, torch.Generator] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        settings = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **settings)
        given = dict(zip(argument_names(func), args, strict=False)) | settings
        device = _device_of(given)
        if given.get("generator") is not None or device.type == "meta":
            return func(*args, **settings)
        seeded = with_generator(func)
        if seeded is not None:
            at = argument_names(seeded).index("generator")
            return seeded(*args[:at], **{**settings, "generator": self._copy(device)})
        if _draws_nothing(given):
            return func(*args, **settings)
        copy, before = self._copy(device), global_state(device)
        try:
            set_global_state(copy.get_state(), device)
            return func(*args, **settings)
        finally:
            copy.set_state(global_state(device))
            set_global_state(before, device)

    def states(self) -> list[object]:
        """What tells whether numbers were drawn between two moments."""
        return [(str(device), copy.get_state().numpy().tobytes()) for device, copy in self._copies.items()]

    def _copy(self, device: torch.device) -> torch.Generator:
        generator = self._copies.get(device)
        if generator is None:
            generator = torch.Generator(device)
            self._copies[device] = generator
            if self._seed is None:
                generator.set_state(global_state(device))
            else:
                generator.manual_seed(self._seed)
        return generator


def _device_of(given: Mapping[str, Any]) -> torch.device:
    """Where an operator draws, with a number if there are several devices of the kind."""
    device = given.get("device") or next((one.device for one in given.values() if isinstance(one, Tensor)), "cpu")
    device = torch.device(device)
    if device.type in ("cpu", "meta") or device.index is not None:
        return device
    return torch.device(device.type, torch.get_device_module(device).current_device())


def _draws_nothing(given: Mapping[str, Any]) -> bool:
    """Whether dropout is off in an operator that has it as an option."""
    is_attention = {"query", "key", "value"} <= given.keys()
    return given.get("train") is False or given.get("dropout_p", 0.0 if is_attention else None) == 0.0


def global_state(device: torch.device) -> Tensor:
    """The state of torch's global generator of a device."""
    if device.type == "cpu":
        return torch.random.get_rng_state()
    return torch.get_device_module(device).get_rng_state(device)


def set_global_state(state: Tensor, device: torch.device) -> None:
    """Let torch's global generator of a device go on from a state."""
    if device.type == "cpu":
        torch.random.set_rng_state(state)
    else:
        torch.get_device_module(device).set_rng_state(state, device)
