"""LayerKernels: the kernels of one weight, and the fields of its neurons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torch_dmft.core.activation import activation
from torch_dmft.core.arguments import typed
from torch_dmft.core.equality import by_value
from torch_dmft.core.kernel import Kernel

_FLAT = 1e-4
"""Slopes phi'(h) below which z cannot be computed from g = phi'(h) z."""


@typed
@by_value
@dataclass(frozen=True)
class Fields:
    """The fields of single neurons after one weight at some of the recorded times: the data of densities.

    Of more than a million numbers per field and time only some neurons are kept.

    Attributes:
        steps: ``(time,)`` integer steps, the first and the last recorded one by default, and up to three between.
        preactivation: ``(time, sample, neuron)``, h^{l+1}, the output of weight l.
        gradient: ``(time, sample, output, neuron)``, g^{l+1} = gamma0 N df/dh^{l+1}.
        activation: name of the phi of g = phi'(h) z, in chains of smooth activations, else None.
    """

    steps: Tensor
    preactivation: Tensor
    gradient: Tensor
    activation: str | None = None

    @property
    def pregradient(self) -> Tensor | None:
        """Z^{l+1} of g = phi'(h) z, laid out like ``gradient``, NaN where |phi'| < 1e-4; None without ``activation``."""
        if self.activation is None:
            return None
        slope = activation(self.activation).first(self.preactivation).unsqueeze(2)
        return torch.where(slope.abs() > _FLAT, self.gradient / slope, torch.nan)


@typed
@by_value
@dataclass(frozen=True)
class LayerKernels:
    """The kernels of one weight, l = 0..L counted along the forward pass.

    Attributes:
        name: module path of the weight, for example ``"2"`` or ``"encoder.0.fc"``.
        forward: Phi^l, the Gram matrix of the weight's inputs per feature.
        backward: G^{l+1}, the Gram matrix of gamma0 * N_out * df/d(output) per feature; the identity over outputs at
            the readout.
        ntk: what the parameters of this module (weight and bias) add to the NTK, per unit of the base learning rate; None if
            it was not recorded.
        fields: fields of single neurons at a handful of recorded times, if they were kept.
        width: how many features (neurons, channels) the weight makes, if they are many by choice; None for the data's and the
            outputs' own numbers, and for infinitely many.
    """

    name: str
    forward: Kernel
    backward: Kernel
    ntk: Kernel | None
    fields: Fields | None = None
    width: int | None = None

    def __repr__(self) -> str:
        return f"<LayerKernels {self.name!r}: Phi {self.forward!r}, G {self.backward!r}>"

    def each(self, change: Callable[[Kernel], Kernel]) -> LayerKernels:
        """The same weight with every kernel changed."""
        ntk = None if self.ntk is None else change(self.ntk)
        return replace(self, forward=change(self.forward), backward=change(self.backward), ntk=ntk)
