"""The single-site recursions against autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from torch_dmft.core.activation import activation
from torch_dmft.theory.chains import single_site
from torch_dmft.theory.chains.single_site import Site, causal_root, response, simulate

T, P, C, NEURONS = 4, 2, 2, 5


@pytest.fixture
def site(generator: torch.Generator) -> Site:
    """A site with random causal couplings."""

    def coupling(left: int, right: int, *, strictly: bool) -> Tensor:
        time = torch.arange(T)
        allowed = time[:, None] > time if strictly else time[:, None] >= time
        mask = allowed.repeat_interleave(left, 0).repeat_interleave(right, 1)
        return mask * torch.randn(T * left, T * right, generator=generator, dtype=torch.float64)

    return Site(
        activation("tanh"),
        P,
        C,
        coupling(P, P * C, strictly=True),
        coupling(P * C, P, strictly=False),
        torch.rand(T, generator=generator, dtype=torch.float64),
        torch.rand(T, generator=generator, dtype=torch.float64),
    )


@pytest.mark.parametrize("drive", ["u", "r"])
def test_responses_are_mean_jacobians(
    site: Site, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch, drive: str
) -> None:
    u = torch.randn(NEURONS, T * P, generator=generator, dtype=torch.float64)
    r = torch.randn(NEURONS, T * P * C, generator=generator, dtype=torch.float64)

    def neuron(u: Tensor, r: Tensor) -> Tensor:
        h, z = [], []
        g = torch.zeros(0, dtype=torch.float64)
        for t in range(T):
            rows, rows_c = slice(t * P, (t + 1) * P), slice(t * P * C, (t + 1) * P * C)
            h.append(site.forward_gain[t] * u[rows] + site.forward_coupling[rows, : len(g)] @ g)
            x = torch.tanh(torch.cat(h))
            z.append(site.backward_gain[t] * r[rows_c] + site.backward_coupling[rows_c, : len(x)] @ x)
            slope = (1 - torch.tanh(h[-1]) ** 2).repeat_interleave(C)
            g = torch.cat([g, slope * z[-1]])
        return g if drive == "u" else x

    jacobians = [
        torch.autograd.functional.jacobian(neuron, (one_u, one_r))[0 if drive == "u" else 1]
        for one_u, one_r in zip(u, r, strict=True)
    ]
    forward_drive = u * site.forward_gain.repeat_interleave(P)
    fields = simulate(site, forward_drive, r * site.backward_gain.repeat_interleave(P * C))
    monkeypatch.setattr(single_site, "_BYTES_AT_ONCE", 1)  # one neuron at a time
    torch.testing.assert_close(response(site, fields, drive), torch.stack(jacobians).mean(0), rtol=1e-10, atol=1e-10)


def test_causal_root_reproduces_a_singular_kernel_and_its_beginning(generator: torch.Generator) -> None:
    fields = torch.randn(12, 7, generator=generator, dtype=torch.float64)  # rank 7 of 12
    kernel = fields @ fields.T
    root = causal_root(kernel, 3)
    torch.testing.assert_close(root @ root.T, kernel, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(causal_root(kernel[:6, :6], 3), root[:6, :6], rtol=1e-10, atol=1e-10)
    assert not bool(root[:6, 6:].any())
