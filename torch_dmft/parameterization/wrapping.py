"""Wrapping: the choices of a call of ``parameterize``, so that other instances of the model can be wrapped alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from torch_dmft.architecture.describe import Roles
from torch_dmft.uses.describe import Wider, takes_a_width
from torch_dmft.uses.outputs import Selection


@dataclass(frozen=True, eq=False)
class Wrapping:
    """How a model was wrapped, beside scheme and gamma0; the fields are arguments of ``parameterize``."""

    gain: float | str = "auto"
    init: str = "normal"
    roles: Roles | None = None
    wider: Wider | None = None
    outputs: Selection | None = None
    depth: str | None = None

    @property
    def factory(self) -> Callable[[int], nn.Module] | None:
        """What builds the model at any width, if that was given as ``wider``."""
        wider = self.wider
        return None if wider is None or isinstance(wider, nn.Module) or not takes_a_width(wider) else wider
