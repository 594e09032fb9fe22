"""Chains that learn by each of the rules."""

from __future__ import annotations

from typing import Any

import torch

from tests.reference.learning_rules import Rule
from torch_dmft.theory.problem import Problem

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(5, 6, generator=GENERATOR)
TARGETS = torch.tensor([[1.0], [-1.0], [1.0], [-1.0], [-1.0]])
RECORD = [0, 6, 12]
RULES = [
    ("feedback_alignment", 0.0),
    ("feedback_alignment", 0.5),
    ("feedback_alignment", 1.0),
    ("direct_feedback_alignment", 0.0),
    ("hebb", 0.0),
]


def pose(case: Rule, **settings: Any) -> Problem:
    """What the oracle trains, as a problem."""
    own = {name: getattr(case, name) for name in ("depth", "gamma0", "lr", "steps", "rule", "rho")}
    return Problem.mlp(case.inputs, case.targets, **{**own, **settings})
