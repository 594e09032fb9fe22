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
    """How a model was wrapped, beside scheme and gamma0.

    Attributes:
        gain: argument of ``parameterize``.
        init: likewise.
        roles: likewise.
        outputs: likewise.
        compares: whether the model was compared with one of another width.
        factory: what builds the model at any width, if that was given as ``wider``; a second model is not kept.
    """

    gain: float | str = "auto"
    init: str = "normal"
    roles: Roles | None = None
    outputs: Selection | None = None
    compares: bool = False
    factory: Callable[[int], nn.Module] | None = None
    depth: str | None = None

    @classmethod
    def of(
        cls,
        gain: float | str,
        init: str,
        roles: Roles | None,
        outputs: Selection | None,
        wider: Wider | None,
        depth: str | None,
    ) -> Wrapping:
        """The choices of a call."""
        is_factory = wider is not None and not isinstance(wider, nn.Module) and takes_a_width(wider)
        return cls(gain, init, roles, outputs, wider is not None, wider if is_factory else None, depth)
