r"""Uniform numbers, as torch draws the parameters of its layers: how they are told from Gaussian ones, and their size.

Of n numbers with root mean square s, none of them beyond b, the two likelihoods at their best are

.. math:: (2 b)^{-n}, \qquad (2 \pi e\, s^2)^{-n/2} ,

so that uniform numbers are likelier if :math:`b < s \sqrt{\pi e / 2}`; n uniform numbers have :math:`s \approx b / \sqrt 3`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

UNIFORM = "uniform"
"""How a parameter starts that is drawn from U(-b, b)."""
_FEWEST = 128
"""Numbers that tell a bound that nothing else tells of: one Gaussian set in ten thousand looks uniform, one uniform set in
a thousand Gaussian."""
_ODDS = 5.0
"""Logarithm of the ratio of likelihoods that it takes: a bound is unlikely before numbers are seen, torch's own likely."""
_EDGE = 9.0
"""Uniform numbers of which none is among the last 9 / n of their range are one in eight thousand sets."""
_SIGMAS = 3.0
"""Standard errors of a size up to which it may be another."""
_SIGNIFICANT = 2.2
"""sqrt(n) times the largest distance of n uniform numbers' distribution from theirs is below this but once in ten thousand."""


def bound_of(numbers: Tensor, *, own: float | None = None) -> float | None:
    """The bound of numbers that look drawn from U(-b, b); None if they look otherwise, or are too few to tell.

    Biases in the range that torch draws them from are taken for its own unless they are e^5 times likelier Gaussian, however
    few they are; so runs of one network from several seeds, or at several widths, start alike.

    Args:
        numbers: of any shape.
        own: the bound that torch draws them with, if it does.
    """
    flat = numbers.detach().double().flatten()
    n = len(flat)
    if not bool(flat.any()) or (n > 1 and bool((flat == flat[0]).all())):
        return None
    top = float(flat.abs().max())
    if own is not None and own * (1 - _EDGE / n) <= top <= own * (1 + 1e-6) and _is_spread(flat, own, -_ODDS):
        return own
    unbiased = top * (n + 1) / n
    return unbiased if n >= _FEWEST and _is_spread(flat, unbiased, _ODDS) else None


def size_of(numbers: Tensor, *, own: float | None = None) -> float:
    """The standard deviation of what numbers were drawn from: b / sqrt(3) if they are uniform, else their root mean square."""
    bound = bound_of(numbers, own=own)
    return root_mean_square(numbers) if bound is None else bound / math.sqrt(3)


def root_mean_square(numbers: Tensor) -> float:
    """Of all entries; 0 of none."""
    return float(numbers.detach().square().mean().sqrt()) if numbers.numel() else 0.0


def size_of_rows(table: Tensor) -> float:
    """The standard deviation of what the rows of an embedding were drawn from, rows of zeros (of a padding token) aside.

    ``nn.Embedding`` draws N(0, 1); numbers that may be such have the size 1 and not the one that they happen to have.
    """
    rows = table.detach()[table.detach().any(1)]
    size = root_mean_square(rows)
    return 1.0 if len(rows) and abs(size - 1) * math.sqrt(2 * rows.numel()) < _SIGMAS else size


def own_bound(fan_in: int) -> float:
    """1 / sqrt(fan_in), which ``nn.Linear`` and convolutions draw weights and biases with."""
    return 1 / math.sqrt(fan_in)


def uniform_like(latents: Tensor) -> Tensor:
    """Uniform numbers of mean zero and variance one, U(-sqrt 3, sqrt 3), from standard Gaussian ones."""
    return math.sqrt(3) * torch.erf(latents / math.sqrt(2))


def _is_spread(flat: Tensor, bound: float, odds: float) -> bool:
    """Whether uniform numbers are likelier than Gaussian ones, and their distribution is close to that of U(-b, b)."""
    n, size = len(flat), float(flat.square().mean().sqrt())
    if not n * math.log(math.sqrt(math.pi * math.e / 2) * size / bound) > odds:
        return False
    middle = (torch.arange(n, dtype=flat.dtype, device=flat.device) + 0.5) / n
    distance = float((flat.sort().values / (2 * bound) + 0.5 - middle).abs().max())
    return distance * math.sqrt(n) < _SIGNIFICANT
