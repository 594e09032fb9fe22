r"""A measurement holds itself against an ordinary backward pass.

For random numbers v, one backward pass of v . f gives the gradients of all parameters, and with the rates m_p of the plan

.. math:: v^T K v = \sum_p m_p\, \Big| \frac{\partial (v \cdot f)}{\partial \theta_p} \Big|^2

holds for every parameter by itself. Where it does not, a use of the parameter was not seen, or misunderstood.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from torch_dmft.core.errors import Place, UnsupportedModelError

_TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-2, torch.float16: 0.5, torch.bfloat16: 0.5}
"""Relative errors of v^T K v that are rounding."""
_NOTHING = {torch.float64: 1e-14, torch.float32: 1e-7, torch.float16: 1e-2, torch.bfloat16: 1e-2}
"""What is nothing beside the sum over all parameters."""


_ROWS = 256
"""Rows of a gradient that are squared at once."""


def probe_vector(outputs: Tensor) -> Tensor:
    """The random numbers v, always the same."""
    generator = torch.Generator("cpu").manual_seed(0)
    return torch.randn(outputs.shape, generator=generator, dtype=torch.float64).to(outputs)


def combination(outputs: Tensor) -> Tensor:
    """One random combination of the outputs, ``(sample, 1)``: what is held against a backward pass where not all are measured.

    What is wrong in a use of a parameter is wrong in the gradient of this one function too.
    """
    generator = torch.Generator("cpu").manual_seed(1)
    weights = torch.randn(outputs.shape[1], 1, generator=generator, dtype=torch.float64, device="cpu")
    return outputs @ (weights / outputs.shape[1] ** 0.5).to(outputs)


def squares(outputs: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """|d(v.f)/d theta|^2 for every parameter, by one backward pass; the graph is kept."""
    scalar = (probe_vector(outputs) * outputs).sum()
    if not scalar.requires_grad or not parameters:
        return {name: scalar.new_zeros((), dtype=torch.float64) for name in parameters}
    found = torch.autograd.grad(scalar, list(parameters.values()), retain_graph=True, allow_unused=True)
    blank = scalar.detach().new_zeros(1)
    gradients = dict(zip(parameters, (blank if one is None else one.detach() for one in found), strict=True))
    del found
    # A large parameter is not copied: its rows are squared one after the other.
    return {
        name: torch.stack(
            [
                torch.linalg.vector_norm(row, dtype=torch.float64)
                for row in torch.atleast_1d(gradients.pop(name)).split(_ROWS)
            ]
        )
        .square()
        .sum()
        for name in parameters
    }


def form(kernel: Tensor, outputs: Tensor) -> Tensor:
    """v^T K v of a kernel ``(sample, output, sample, output)``."""
    v = probe_vector(outputs).double().flatten()
    square = kernel.double().reshape(len(v), len(v))
    return v @ square @ v


def wrong(
    shares: Mapping[str, Tensor], backward: Mapping[str, Tensor], outputs: Tensor, *, dtype: torch.dtype | None = None
) -> dict[str, float]:
    """The parameters whose share is not that of the backward pass, and by which factor it is off.

    Args:
        shares: ``(sample, output, sample, output)`` by name; one that is missing counts as zero.
        backward: ``squares`` of the same parameters.
        outputs: f, ``(sample, output)``.
        dtype: in which the network computes; default that of the outputs.
    """
    dtype = outputs.dtype if dtype is None else dtype
    if not backward:
        return {}
    names = list(backward)
    given = torch.stack(
        [form(shares[n], outputs) if n in shares else outputs.new_zeros((), dtype=torch.float64) for n in names]
    )
    known = torch.stack([backward[n] for n in names]).to(given)
    nothing = _NOTHING.get(dtype, 1e-7) * known.sum()
    off = (given - known).abs() > _TOLERANCES.get(dtype, 1e-2) * torch.maximum(given, known) + nothing
    off |= ~torch.isfinite(given) & torch.isfinite(known)
    return {
        name: float(given[i] / known[i]) if known[i] else float("inf") for i, name in enumerate(names) if bool(off[i])
    }


def contradiction(places: Mapping[str, tuple[str, float]]) -> UnsupportedModelError:
    """The error for shares that are not those of the backward pass: name -> (module path, factor)."""
    return UnsupportedModelError(
        "The measurement contradicts an ordinary backward pass:",
        [
            Place(
                path or "(model)",
                f"the NTK share of {name} is {factor:.3g} times that of an ordinary backward pass",
                "let nothing but the module itself work on its input and output (hooks added after wrapping, subclasses); "
                "empirical_ntk(..., method='jacobian') is right in any case",
            )
            for name, (path, factor) in places.items()
        ],
    )
