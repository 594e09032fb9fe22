"""Kernels of a dense chain with Gaussian weights, before anything is learned: NNGP, backward and tangent kernel.

With q_l = g_l^2 Phi^{l-1} + s_b^2 the covariance of layer l's pre-activations (h, h') ~ N(0, q_l),

    Phi^l = <phi(h) phi(h')>,    S^l = <phi'(h) phi'(h')>,    Phi^0 = x . x' / D,
    G^L = S^L,    G^l = (N_l / N_{l+1}) g_{l+1}^2 G^{l+1} S^l,

    K = sum_{l<L} (N_L / N_{l+1}) G^{l+1} (g_{l+1}^2 Phi^l + [biased]) + Phi^L + [biased].

A bias that is uniform on (-b, b), b = sqrt(3) s_b, is no Gaussian field: q_l is then g_l^2 Phi^{l-1}, and the averages are over
the bias as well, which all rows share (``gaussian.shifted``).

A row is a sample seen by the initial parameters times a scale a, which is what weight decay makes of the initial
weights, W(t) = a(t) W(0) + learned part. Then q_l and G^l gain a factor a a', and K is the kernel between two times.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from torch_dmft.core.activation import activation
from torch_dmft.theory.chain import Chain
from torch_dmft.theory.gaussian.moments import Marginals
from torch_dmft.theory.gaussian.shifted import shifted_marginals


@dataclass(frozen=True)
class ChainKernels:
    """The kernels of a chain between two sets of rows, one number per output pair of equal outputs.

    Attributes:
        forward: Phi^0..Phi^L, each ``(m, n)``.
        backward: G^1..G^L, each ``(m, n)``; times delta_cc' for several outputs.
        slopes: S^1..S^L, each ``(m, n)``.
        ntk: K per unit of the base learning rate, ``(m, n)``.
    """

    forward: tuple[Tensor, ...]
    backward: tuple[Tensor, ...]
    slopes: tuple[Tensor, ...]
    ntk: Tensor


class InitialKernels:
    """Kernels between all samples at any two scales of the initial parameters.

    Variances and projections are computed once for each (scale, sample); pairs are computed when asked for.

    Args:
        chain: the network.
        input_kernel: ``(sample, sample)``, Phi^0, float64.
        scales: ``(scale,)``, a; one for networks whose initial weights do not decay.
        order: largest number of Hermite terms, see ``moments.marginals``.
        uniform: hidden layers, counted from 0, whose biases are uniform; those of others are Gaussian.
    """

    def __init__(
        self,
        chain: Chain,
        input_kernel: Float[Tensor, "sample sample"],
        scales: Sequence[float] = (1.0,),
        *,
        order: int = 1024,
        uniform: Collection[int] = (),
    ) -> None:
        self.chain, self.input_kernel = chain, input_kernel
        stds = [layer.bias_std or 0.0 for layer in chain.hidden]
        self._gaussian = [0.0 if at in uniform else std**2 for at, std in enumerate(stds)]
        bounds = [math.sqrt(3) * std if at in uniform else 0.0 for at, std in enumerate(stds)]
        self.scales = input_kernel.new_tensor(scales)
        self.marginals: list[Marginals] = []
        square = input_kernel.diagonal().repeat(len(scales))
        rows = self._row_scales(slice(None))
        for layer, gaussian, bound in zip(chain.hidden, self._gaussian, bounds, strict=True):
            variance = rows**2 * (layer.gain**2 * square + gaussian)
            phi = activation(layer.activation)
            self.marginals.append(shifted_marginals(phi, variance, bound * rows, order=order))
            square = self.marginals[-1].mean_square()

    def at(self, scale: int = 0) -> ChainKernels:
        """The kernels at one of the scales: arrays ``(sample, sample)``."""
        return self.between(scale, slice(scale, scale + 1))

    def between(self, scale: int, others: slice) -> ChainKernels:
        """The kernels between samples at one scale and samples at others.

        Args:
            scale: position of the scale of the left rows.
            others: positions of the scales of the right rows.

        Returns:
            Arrays ``(sample, others * sample)``.
        """
        samples = len(self.input_kernel)
        start, stop, _ = others.indices(len(self.scales))
        left, right = slice(scale * samples, (scale + 1) * samples), slice(start * samples, stop * samples)
        scaled = torch.outer(self._row_scales(left), self._row_scales(right))
        forward, slopes = [self.input_kernel.repeat(1, stop - start)], []
        for layer, gaussian, rows in zip(self.chain.hidden, self._gaussian, self.marginals, strict=True):
            covariance = scaled * (layer.gain**2 * forward[-1] + gaussian)
            phi, slope = rows.pair(left, right, covariance)
            forward.append(phi)
            slopes.append(slope)
        backward = [scaled * slopes[-1]]
        for below, above, slope in zip(
            self.chain.hidden[-2::-1], self.chain.hidden[:0:-1], slopes[-2::-1], strict=True
        ):
            narrowing = below.width_ratio / above.width_ratio
            backward.insert(0, narrowing * above.gain**2 * scaled * backward[0] * slope)
        ntk = tangent_kernel(self.chain, forward, backward)
        return ChainKernels(tuple(forward), tuple(backward), tuple(slopes), ntk)

    def _row_scales(self, rows: slice) -> Tensor:
        return self.scales.repeat_interleave(len(self.input_kernel))[rows]


def tangent_kernel(chain: Chain, forward: Sequence[Tensor], backward: Sequence[Tensor]) -> Tensor:
    """K = sum_{l<L} (N_L / N_{l+1}) G^{l+1} (g^2 Phi^l + [biased]) + Phi^L + [biased], elementwise.

    Args:
        chain: the network.
        forward: Phi^0..Phi^L, arrays of one shape.
        backward: G^1..G^L, arrays of that shape.
    """
    ntk = forward[-1] + float(chain.readout_bias)
    for layer, phi, g in zip(chain.hidden, forward, backward, strict=False):
        biased = float(layer.bias_std is not None)
        ntk = ntk + g * (layer.gain**2 * phi + biased) / layer.width_ratio
    return ntk
