"""The single-site process of one hidden layer: one neuron driven by two Gaussian processes (paper, eq. 10).

With rows (t, mu) of h and (t, mu, c) of z and g, and the couplings K_h (strictly causal) and K_z (causal),

    h = a_h u + b + K_h g,    x = phi(h),    z = a_z r + K_z x,    g_c = phi'(h) z_c,

where a_h and a_z depend on time only. Everything is found by forward substitution in time, for many neurons at once.
The responses differentiate the same recursions by the raw drives:

    A(t, s) = < dx(t) / dr(s) >, s < t,    B(t, s) = < dg(t) / du(s) >, s <= t.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from torch_dmft.core.activation import Activation

_BYTES_AT_ONCE = 2**24  # of derivatives, which are averaged chunk by chunk: more would leave the cache


@dataclass(frozen=True)
class Site:
    """What all neurons of a layer share.

    Attributes:
        activation: phi, twice differentiable.
        samples: P.
        outputs: C.
        forward_coupling: K_h.
        backward_coupling: K_z.
        forward_gain: a_h(t).
        backward_gain: a_z(t).
    """

    activation: Activation
    samples: int
    outputs: int
    forward_coupling: Float[Tensor, "row row_output"]
    backward_coupling: Float[Tensor, "row_output row"]
    forward_gain: Float[Tensor, " time"]
    backward_gain: Float[Tensor, " time"]


@dataclass(frozen=True)
class SiteFields:
    """The fields of many neurons, each ``(neuron, row)`` with rows (t, mu) or (t, mu, c).

    Attributes:
        preactivation: h.
        activity: x = phi(h).
        pregradient: z.
        gradient: g.
    """

    preactivation: Tensor
    activity: Tensor
    pregradient: Tensor
    gradient: Tensor


def simulate(
    site: Site, forward_drive: Float[Tensor, "neuron row"], backward_drive: Float[Tensor, "neuron row_output"]
) -> SiteFields:
    """The fields that the drives a_h u + b and a_z r produce."""
    P, PC = site.samples, site.samples * site.outputs
    h, z = forward_drive.clone(), backward_drive.clone()
    x, g = torch.empty_like(h), torch.empty_like(z)
    for t in range(len(site.forward_gain)):
        now, now_c = slice(t * P, (t + 1) * P), slice(t * PC, (t + 1) * PC)
        h[:, now] += g[:, : t * PC] @ site.forward_coupling[now, : t * PC].mT
        x[:, now] = site.activation.function(h[:, now])
        z[:, now_c] += x[:, : now.stop] @ site.backward_coupling[now_c, : now.stop].mT
        g[:, now_c] = site.activation.first(h[:, now]).repeat_interleave(site.outputs, dim=1) * z[:, now_c]
    return SiteFields(h, x, z, g)


def response(site: Site, fields: SiteFields, drive: Literal["u", "r"]) -> Tensor:
    """The mean response of all neurons to one drive: B = <dg/du> or A = <dx/dr>.

    Per neuron this costs O((T P C)^2 T P) operations and O((T P C)^2) memory.
    """
    neurons, rows = fields.preactivation.shape
    rows_c = rows * site.outputs
    sources = rows if drive == "u" else rows_c
    total = fields.gradient.new_zeros(rows_c if drive == "u" else rows, sources)
    chunk = max(1, _BYTES_AT_ONCE // (fields.gradient.element_size() * sources * (rows + rows_c)))
    for start in range(0, neurons, chunk):
        some = slice(start, start + chunk)
        total += _summed_response(site, fields.preactivation[some], fields.pregradient[some], drive)
    return total / neurons


def _summed_response(site: Site, h: Tensor, z: Tensor, drive: Literal["u", "r"]) -> Tensor:
    P, C = site.samples, site.outputs
    PC = P * C
    step = P if drive == "u" else PC  # sources per time
    first, curved = site.activation.first(h), site.activation.second(h).repeat_interleave(C, dim=1) * z
    neurons, rows = h.shape
    sources = rows if drive == "u" else rows * C
    dx, dg = h.new_zeros(neurons, rows, sources), h.new_zeros(neurons, rows * C, sources)
    for t in range(len(site.forward_gain)):
        now, now_c = slice(t * P, (t + 1) * P), slice(t * PC, (t + 1) * PC)
        known = slice(0, (t + 1) * step)  # the response to later drives is zero
        dh = site.forward_coupling[now, : t * PC] @ dg[:, : t * PC, known]
        if drive == "u":
            dh[:, :, t * step :].diagonal(dim1=1, dim2=2).add_(site.forward_gain[t])
        dx[:, now, known] = first[:, now, None] * dh
        dz = site.backward_coupling[now_c, : now.stop] @ dx[:, : now.stop, known]
        if drive == "r":
            dz[:, :, t * step :].diagonal(dim1=1, dim2=2).add_(site.backward_gain[t])
        dg[:, now_c, known] = first[:, now].repeat_interleave(C, dim=1)[:, :, None] * dz + curved[
            :, now_c, None
        ] * dh.repeat_interleave(C, dim=1)
    return (dg if drive == "u" else dx).sum(0)


def causal_root(kernel: Float[Tensor, "row row"], block: int, *, tolerance: float = 1e-10) -> Float[Tensor, "row row"]:
    """A lower block-triangular R with R R^T = kernel, for kernels that are positive semidefinite only.

    Block Cholesky with symmetric square roots on the diagonal: the drive R n at a time depends on the kernel up to that
    time alone, and continuously, so that with the same normals n it follows the kernels through the iteration.

    Args:
        kernel: rows ordered by time.
        block: rows per time.
        tolerance: variances below this share of the mean variance count as zero.
    """
    root = torch.zeros_like(kernel)
    floor = tolerance * kernel.diagonal().mean()
    for start in range(0, len(kernel), block):
        now = slice(start, start + block)
        rest = kernel[start:, now] - root[start:, :start] @ root[now, :start].mT
        values, vectors = torch.linalg.eigh(rest[:block])
        inverse_root = torch.where(values > floor, values.clamp(min=floor).rsqrt(), 0.0)
        root[start:, now] = rest @ (vectors * inverse_root) @ vectors.mT
    return root
