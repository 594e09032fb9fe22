r"""The outlying singular values of a weight that is a Gaussian matrix but for what is known of it.

An infinite layer knows its weight W on orthonormal bases Q (inputs) and Q' (gradients), and of the rest that it is Gaussian:

.. math:: W = \begin{pmatrix} A & B \\ C & X \end{pmatrix}, \quad
   A = Q' W Q^T,\; B = Q' W P,\; C = P' W Q^T,\; X_{ij} \sim N(0, \sigma^2),

P and P' projecting off the bases. X is independent of A, B and C, so that the resolvent of the symmetric matrix
((0, W), (W^T, 0)), restricted to Q' and Q, is the inverse of

.. math:: M(s) = \begin{pmatrix} s - \bar h(s)\, B B^T & -A \\ -A^T & s - h(s)\, C^T C \end{pmatrix},

in which h and :math:`\bar h` are the normalised traces of the resolvent of X over outputs and inputs,

.. math:: h = \frac{1}{s - \sigma^2 n_{in} \bar h}, \qquad \bar h = \frac{1}{s - \sigma^2 n_{out} h} .

Beyond the bulk, which ends at sigma (sqrt n_out + sqrt n_in), M(s) grows with s, so that W has as many singular values above s
as M(s) has negative eigenvalues, and one at each s at which M is singular. The null vector there is (Q' u, Q v) up to a
factor, of the singular vectors u and v; their lengths outside of the bases are in (Q' u, Q v)^T M'(s) (Q' u, Q v) = 2.

Source: the argument is that of Benaych-Georges & Nadakuditi 2012 for perturbations of low rank, here without their assumption
that the perturbation is independent of the Gaussian matrix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from torch_dmft.theory.engine.lazy_layer import LazyLayer

_TRACY_WIDOM = 2.02
"""The 99% quantile of the Tracy-Widom law of real matrices (Johnstone 2001, Table 1)."""
_MOST, _SMALL = 60, 1e-11
"""Iterations for one outlier, and the eigenvalue of M, relative to s, that counts as zero."""


@dataclass(frozen=True)
class Outliers:
    """The singular values of one weight beyond its bulk.

    Attributes:
        values: decreasing, ``(outlier,)``.
        learned: the share u^T (W - g a W_0) v / s of each that what was learned makes; the rest is the start's.
        edge: the end of the bulk, sigma (sqrt n_out + sqrt n_in).
    """

    values: Float[Tensor, " outlier"]
    learned: Float[Tensor, " outlier"]
    edge: float


def bulk_edge(sigma: float, outputs: int, inputs: int) -> float:
    """Where the singular values of a Gaussian matrix end, sigma (sqrt n_out + sqrt n_in)."""
    return sigma * (math.sqrt(outputs) + math.sqrt(inputs))


def beyond_chance(edge: float, outputs: int, inputs: int) -> float:
    """What the largest singular value of a Gaussian matrix of finite size stays below in 99 of 100 draws (Johnstone 2001)."""
    roots = math.sqrt(outputs) + math.sqrt(inputs)
    width = roots * (outputs**-0.5 + inputs**-0.5) ** (1 / 3)  # of the largest eigenvalue of W W^T / sigma^2
    return edge * math.sqrt(1 + _TRACY_WIDOM * width / roots**2)


@torch.no_grad()
def outliers(layer: LazyLayer) -> Outliers:
    """The outlying singular values of a layer's weight as it is now; a convolution's is outputs by (inputs and taps).

    Those within the chance of a Gaussian matrix of S neurons (``beyond_chance``) belong to the bulk.
    """
    known = _Known.of(layer)
    edge = bulk_edge(known.sigma, *known.sizes)
    start = beyond_chance(edge, *known.sizes)
    count = int((torch.linalg.eigvalsh(known.matrix(start)) < 0).sum())
    found = [known.zero(k, start) for k in range(count)]
    shares = [known.learned_share(s, x) for s, x in found]
    columns = torch.tensor([[s for s, _ in found], shares], dtype=torch.float64, device="cpu")
    return Outliers(columns[0], columns[1], edge)


@dataclass(frozen=True, eq=False)
class _Known:
    """The blocks of a weight, in float64.

    Attributes:
        a: A, ``(k', k)``, k times the taps of a convolution.
        bb: B B^T, ``(k', k')``.
        cc: C^T C, ``(k, k)``.
        learned: Q' (W - g a W_0) Q^T, ``(k', k)``.
        sigma: standard deviation of the Gaussian entries.
        sizes: n_out and n_in of the whole matrix.
    """

    a: Tensor
    bb: Tensor
    cc: Tensor
    learned: Tensor
    sigma: float
    sizes: tuple[int, int]

    @classmethod
    def of(cls, layer: LazyLayer) -> _Known:
        """The blocks of a layer, W = g a (Xi^T Q + Q'^T Xi' + Q'^T K Q) + Q'^T m Q."""
        matrix, scale = layer.matrix, float(layer.gain * layer.initial_scale)
        q, xi = (rows.rows.double() for rows in (matrix.forward_side.basis, matrix.forward_side.latents))
        q_out, xi_out = (rows.rows.double() for rows in (matrix.backward_side.basis, matrix.backward_side.latents))
        copies, (k_out, k) = matrix.copies, (len(q_out), len(q))
        m = layer.core[:k_out, :k].double().reshape(k_out, k * copies)
        per_copy = xi_out.reshape(k_out, copies, -1)
        along = torch.einsum("acn,kn->akc", per_copy, q).reshape(k_out, k * copies)  # Xi' on Q, tap by tap
        start = q_out @ xi.T + along + matrix.core.double().reshape(k_out, k * copies)
        outside_in = (per_copy - torch.einsum("akc,kn->acn", along.reshape(k_out, k, copies), q)).reshape(k_out, -1)
        outside_out = xi - (xi @ q_out.T) @ q_out
        outputs, inputs = layer.sizes
        return cls(
            a=scale * start + m,
            bb=scale**2 * outside_in @ outside_in.T,
            cc=scale**2 * outside_out @ outside_out.T,
            learned=m,
            sigma=abs(scale) * matrix.scale,
            sizes=(outputs, copies * inputs),
        )

    def traces(self, s: float) -> tuple[float, float]:
        """The normalised traces h (outputs) and h-bar (inputs) of the resolvent of X at s beyond the bulk."""
        outputs, inputs = self.sizes[0] - len(self.a), self.sizes[1] - self.a.shape[1]
        p, q = self.sigma**2 * inputs, self.sigma**2 * outputs
        # q s h^2 - (s^2 + q - p) h + s = 0, the root that falls like 1 / s.
        middle = s * s + q - p
        h = 2 * s / (middle + math.sqrt(middle**2 - 4 * q * s * s))
        return h, 1 / (s - q * h)

    def matrix(self, s: float) -> Tensor:
        """M(s)."""
        h, h_in = self.traces(s)
        upper = torch.cat([s * self.bb.new_ones(len(self.bb)).diag() - h_in * self.bb, -self.a], dim=1)
        lower = torch.cat([-self.a.T, s * self.cc.new_ones(len(self.cc)).diag() - h * self.cc], dim=1)
        return torch.cat([upper, lower])

    def slope(self, s: float, x: Tensor) -> float:
        """The slope x^T M'(s) x."""
        step = 1e-6 * s
        (h, h_in), (h_before, h_in_before) = self.traces(s + step), self.traces(s - step)
        u, v = x[: len(self.a)], x[len(self.a) :]
        moved = (h_in - h_in_before) * (u @ self.bb @ u) + (h - h_before) * (v @ self.cc @ v)
        return float(x @ x - moved / (2 * step))

    def zero(self, k: int, start: float) -> tuple[float, Tensor]:
        """Where the k-th eigenvalue of M, negative at ``start``, becomes zero, and its vector there, by Newton's method."""
        low, high, s = start, math.inf, start
        for _ in range(_MOST):
            values, vectors = torch.linalg.eigh(self.matrix(s))
            value, x = float(values[k]), vectors[:, k]
            if abs(value) < _SMALL * s:
                break
            low, high = (s, high) if value < 0 else (low, s)
            s -= value / self.slope(s, x)
            if not low < s < high:  # an eigenvalue may bend
                s = (low + high) / 2 if high < math.inf else 2 * low
        return s, x

    def learned_share(self, s: float, x: Tensor) -> float:
        """The share u^T L v / s of a singular value s that the learned part L makes."""
        u, v = x[: len(self.a)], x[len(self.a) :]
        return float(2 * (u @ self.learned @ v) / self.slope(s, x) / s)
