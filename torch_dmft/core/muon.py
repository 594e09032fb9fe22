r"""Muon: what decides its steps, and the rate that means the same at every width.

With the gradient G_t of a matrix W ``(out, in)``, as ``torch.optim.Muon`` has it,

.. math::
    B_t = \beta B_{t-1} + (1 - \beta) G_t, \qquad
    U_t = (1 - \beta) G_t + \beta B_t \;\text{(Nesterov)}, \; B_t \;\text{(without)}, \qquad
    O_t = \mathrm{NS}(U_t), \\
    W_{t+1} = (1 - r \lambda') W_t - r\, a(out, in)\, O_t,

where NS is X -> c_1 X + (c_2 X X^T + c_3 (X X^T)^2) X, some times in turn, from X = U / max(|U|_F, eps) on. It leaves singular
vectors as they are and sends singular values to about 1; the polar factor sends them to 1. The number a is
sqrt(max(1, out/in)) ("original") or 0.2 sqrt(max(out, in)) ("match_rms_adamw").

A step has the spectral norm r a. One of Adam, with entries of its rate, has that rate times sqrt(out in), if it is coherent. So
the base rate eta of Muon is r a in units of m = (Adam's rate per eta) sqrt(out in), which is gamma0 sqrt(out/in) for hidden
matrices: features then move by O(eta gamma0) at every width. Decay is the share eta lambda = r lambda' of a step. The norm
|G|_F of a hidden matrix is O(1/gamma0) at every width, so that eps stays as torch has it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

MUON_NUMBERS: dict[str, float] = {
    "lr": 0.0,
    "momentum": 0.95,
    "nesterov": 1.0,
    "weight_decay": 0.0,
    "eps": 1e-7,
    "ns_steps": 5.0,
    "ns_a": 3.4445,
    "ns_b": -4.7750,
    "ns_c": 2.0315,
    "exact": 0.0,
}
"""torch's default of every number that decides a step of Muon. ``ns_a`` to ``ns_c`` are its ``ns_coefficients``; ``exact``
takes the polar factor in the place of the iteration."""

SCALES = ("original", "match_rms_adamw")
"""What ``adjust_lr_fn`` can be, by its number in a sight."""


def scale_of(shape: tuple[int, ...], adjust: str) -> float:
    """What torch multiplies the rate of a matrix with, a.

    Args:
        shape: ``(out, in)``.
        adjust: one of ``SCALES``.
    """
    rows, columns = shape
    return math.sqrt(max(1.0, rows / columns)) if adjust == SCALES[0] else 0.2 * math.sqrt(max(rows, columns))


def step_norm(adam_lr: float, shape: tuple[int, ...]) -> float:
    """m, the spectral norm of Muon's step per unit of the base rate.

    Args:
        adam_lr: Adam's rate of the parameter per unit of the base rate.
        shape: ``(out, in)``.
    """
    return adam_lr * math.sqrt(math.prod(shape))


def newton_schulz(matrix: Tensor, group: dict[str, Any]) -> Tensor:
    """What the iteration of ``torch.optim.Muon`` makes of a matrix; all of whose singular values are then about 1.

    Args:
        matrix: U, ``(out, in)``.
        group: ``ns_coefficients``, ``ns_steps``, ``eps``, ``low``.
    """
    a, b, c = group["ns_coefficients"]
    x = matrix.bfloat16() if group["low"] else matrix.clone()
    is_tall = x.shape[0] > x.shape[1]
    x = x.T if is_tall else x
    x = x.div_(x.norm().clamp(min=group["eps"]))
    for _ in range(group["ns_steps"]):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x
