r"""Which part of a feature or gradient the engine may leave out of its bases.

What is left out of a vector, relative to its norm, is at most the tolerance, so kernels and updates lack its square: the bias
of the answer is of the order of the tolerance squared, while its sampling error falls like the inverse root of the number of
draws S R. They keep their ratio at

.. math:: \mathrm{tolerance} = c\, (S R)^{-1/4} .

Where fields turn in every step, as those of activations with kinks do and those seen by minibatches, directions are the cost,
and their number falls with the tolerance as steeply as the bias grows. Smooth fields in full batches gain little from a large
tolerance, and strides, which most of them take, tell by the jitter of kernels how far they may go.
"""

from __future__ import annotations

from torch_dmft.core.activation import activation
from torch_dmft.theory.problem import Problem

_OF_KINKS, _OF_BATCHES = 0.25, 0.2
"""c, at which the bias of entries is at most a third of their standard error, and that of sizes, in which errors of entries
average out, about half: measured in pairs of runs with the same seeds at tolerances of 0.02 to 0.08 beside 0.0055 (ReLU: ten
rows in full batches; tanh: 4 of 32 rows). Beside finer answers of far more neurons, errors of G of ReLU, depth 3, 4 x 4096
neurons, are 1.26(5) standard errors, root mean square, at c = 0.4, 1.03(5) at 0.25 and 0.95(4) at the tolerance of smooth
fields."""


def default_tolerance(gamma0: float, draws: int = 1) -> float:
    """Largest relative part of a feature or gradient vector that the engine ignores, where fields turn slowly.

    1e-2, or less where it would show: lazy features move by O(gamma0) only, and more draws of neurons sample more precisely
    (1e-2 changes kernels by less than half of what sampling 4096 neurons does, and the change falls at least in proportion).
    """
    return min(1e-2, 1.5 * draws**-0.5 if draws > 1 else 1.0) * min(1.0, gamma0)


def balanced_tolerance(problem: Problem, draws: int) -> float:
    """The tolerance at which what is left out is small beside the sampling error.

    Args:
        problem: what is trained.
        draws: neurons times replicas, S R.
    """
    usual = default_tolerance(problem.gamma0, draws)
    if not _turns(problem):
        return usual
    constant = _OF_KINKS if problem.batches is None else _OF_BATCHES
    return max(usual, constant * draws**-0.25 * min(1.0, problem.gamma0))


def has_kinks(problem: Problem) -> bool:
    """Whether an activation of a problem's network has no second derivative somewhere."""
    plan = problem.network.plan
    hidden = problem.chain.hidden if problem.chain is not None else () if plan is None else plan.architecture.layers
    names = [layer.activation for layer in hidden]
    return any(name is not None and not activation(name).smooth for name in names)


def _turns(problem: Problem) -> bool:
    """Whether every step brings new directions, and moves weights in proportion to the gradients, as SGD does."""
    training = problem.training
    if training.optimizers != "SGD" or training.rule != "gradient":
        return False
    return problem.batches is not None or has_kinks(problem)
