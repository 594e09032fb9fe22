"""Shared parts of methods that go step by step: error signals, a stop where training diverges, a progress bar."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from torch_dmft.core.errors import ConvergenceError
from torch_dmft.theory.problem import Problem


def error_signal(problem: Problem, outputs: Float[Tensor, "sample output"], step: int) -> Tensor:
    """Delta = -dL/df of a step in the precision of ``outputs``; the loss itself sees the problem's dtype."""
    return problem.error(outputs.to(problem.dtype), step).to(outputs.dtype)


def require_finite(problem: Problem, outputs: Tensor, step: int) -> None:
    """Stop where training itself diverges.

    Raises:
        ConvergenceError: if an output is not finite.
    """
    if not bool(torch.isfinite(outputs).all()):
        raise ConvergenceError(
            f"Training diverges: the outputs at step {step} are not finite.",
            remedy=f"an lr smaller than {problem.training.rate}",
        )


def track(steps: Iterable[int], description: str, *, progress: bool) -> Iterable[int]:
    """The steps themselves, with a progress bar if asked for."""
    if not progress:
        return steps
    from rich.markup import escape
    from rich.progress import track as bar

    return bar(list(steps), description=escape(description))
