"""When a theory agrees with trained networks: every entry within five standard errors, and these errors small."""

from __future__ import annotations

import math
from collections.abc import Collection

from tests.reference.ensembles import Limit, observables, z_scores
from torch_dmft.core.trajectory import Trajectory

STANDARD_ERRORS = 5.0
SHARPNESS = 0.03


def assert_agrees(
    limit: Limit, answer: Trajectory, sharpness: float = SHARPNESS, *, without: Collection[str] = ()
) -> None:
    """Outputs, loss and every kernel of an answer with its standard errors are those of the networks' limit.

    Args:
        limit: of the networks.
        answer: of a theory.
        sharpness: the largest standard error, in units of the observable.
        without: what is not compared.

    Raises:
        AssertionError: naming each observable with an entry more than five standard errors off, or with standard errors
            (of theory and networks together) above ``sharpness`` of it, which would let wrong answers pass.
    """
    values = {name: value for name, value in observables(answer).items() if name not in without}
    errors = observables(answer.stderr)
    failures = []
    for name, scores in z_scores(limit, values, errors).items():
        together = (limit.stderr[name] ** 2 + errors[name].double() ** 2).mean().sqrt()
        relative = float(together / limit.mean[name].square().mean().sqrt())
        worst = float(scores.abs().max())
        if not worst <= STANDARD_ERRORS:
            failures.append(f"{name} is {worst:.1f} standard errors off")
        if not relative <= sharpness:
            failures.append(f"{name} is known to {100 * relative:.1f}% only")
    assert not failures, "; ".join(failures)


def moved(limit: Limit, name: str) -> float:
    """How far training moves a kernel of the networks, relative to its start."""
    kernel = limit.mean[name]
    return math.sqrt(float((kernel[-1] - kernel[0]).square().sum() / kernel[0].square().sum()))
