"""The field equations of one input by Gauss-Hermite quadrature: no sampling, and no code of the package.

h(t) = u(t) + sum_{s<t} [A(t, s) + c D(s) Phi(t, s)] g(s),    z(t) = r(t) + sum_{s<=t} B(t, s) phi(s)
                                                                          + c sum_{s<t} D(s) G(t, s) phi(s),
A = <d phi / d r>, B = <d g / d u>, g = phi'(h) z, with the error signal D = y - f and c = lr gamma0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]


def nodes(counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Points of N(0, 1) in as many dimensions as there are counts, ``(point, dimension)``, and their weights."""
    each = []
    for count in counts:
        off_diagonal = torch.diag(torch.arange(1, count, dtype=torch.float64).sqrt(), 1)
        node, vectors = torch.linalg.eigh(off_diagonal + off_diagonal.T)
        each.append((node, vectors[0].square()))
    points, weights = (torch.cartesian_prod(*side) for side in zip(*each, strict=True))
    return points, weights.prod(1)


def solve(
    phi: Function,
    slope: Function,
    *,
    depth: int,
    square: float,
    target: float,
    gamma0: float,
    lr: float,
    counts: Sequence[int],
) -> dict[str, Tensor]:
    """Outputs ``(time,)`` and kernels ``(time, time)`` named "forward.l" and "backward.l" as in ``ensembles.observables``.

    Args:
        phi: the activation.
        slope: its derivative.
        depth: hidden layers.
        square: Phi^0 of the input.
        target: y.
        gamma0: richness.
        lr: eta.
        counts: nodes for u(0), u(1), .., then r(0), r(1), ..; what is new at later times is of order gamma0 and needs few.
    """
    times = len(counts) // 2
    points, weights = nodes(counts)
    identity, none = torch.eye(times, dtype=torch.float64), torch.zeros(times, times, dtype=torch.float64)
    forward = [torch.full((times, times), square, dtype=torch.float64)] + [identity] * depth
    backward, f = [identity] * depth + [torch.ones(times, times, dtype=torch.float64)], torch.zeros(times).double()
    a, b = [none] * (depth + 1), [none] * (depth + 1)

    def site(u: Tensor, r: Tensor, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """Activity, pregradient and gradient of a hidden layer, counted from 1: ``(point, time)`` each."""
        c_delta = lr * gamma0 * (target - f)
        k_h, k_z = a[layer - 1] + c_delta * forward[layer - 1], b[layer] + c_delta * backward[layer]
        x: list[Tensor] = []
        z: list[Tensor] = []
        g: list[Tensor] = []
        for t in range(times):
            h = u[:, t] + sum((k_h[t, s] * g[s] for s in range(t)), torch.zeros_like(u[:, t]))
            x.append(phi(h))
            past = sum((k_z[t, s] * x[s] for s in range(t)), torch.zeros_like(h))
            z.append(r[:, t] + past + b[layer][t, t] * x[t])
            g.append(slope(h) * z[t])
        return torch.stack(x, 1), torch.stack(z, 1), torch.stack(g, 1)

    for _ in range(2 * depth * times + 2):  # causal: every sweep carries exact values one layer or one time further
        before = torch.stack([f.diag(), *forward, *backward, *a, *b])
        for layer in range(1, depth + 1):
            u = points[:, :times] @ root(forward[layer - 1]).T
            r = points[:, times:] @ root(backward[layer]).T
            x, z, g = site(u, r, layer)
            forward[layer] = torch.einsum("nt,ns,n->ts", x, x, weights)
            backward[layer - 1] = torch.einsum("nt,ns,n->ts", g, g, weights)
            if layer == depth:
                f = torch.einsum("nt,nt,n->t", z, x, weights) / gamma0
            for s in range(times):
                kick = torch.zeros_like(u)
                kick[:, s] = 1.0
                if layer < depth:
                    (moved, _, _) = torch.func.jvp(lambda r, u=u, l=layer: site(u, r, l), (r,), (kick,))[1]
                    a[layer] = a[layer].index_copy(1, torch.tensor([s]), (weights @ moved)[:, None])
                if layer > 1:
                    (_, _, moved) = torch.func.jvp(lambda u, r=r, l=layer: site(u, r, l), (u,), (kick,))[1]
                    b[layer - 1] = b[layer - 1].index_copy(1, torch.tensor([s]), (weights @ moved)[:, None])
        if torch.allclose(torch.stack([f.diag(), *forward, *backward, *a, *b]), before, rtol=0, atol=1e-14):
            break
    else:
        raise RuntimeError("the sweeps have not converged")
    found = {f"forward.{layer}": forward[layer] for layer in range(1, depth + 1)}
    found |= {f"backward.{layer}": backward[layer] for layer in range(depth)}
    return {"outputs": f, **found}


def root(kernel: Tensor) -> Tensor:
    """Lower triangular R with R R^T = kernel, also for singular ones."""
    factor = torch.zeros_like(kernel)
    for t in range(len(kernel)):
        rest = kernel[t:, t] - factor[t:, :t] @ factor[t, :t]
        if float(rest[0]) > 1e-13:
            factor[t:, t] = rest / rest[0].sqrt()
    return factor
