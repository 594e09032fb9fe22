"""Descent: the updates of torch.optim.SGD, for anything in which they are linear, with any settings and schedules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from torch_dmft.core.training import Training

Value = TypeVar("Value")


class Descent(Generic[Value]):
    r"""The recursion of ``torch.optim.SGD``, with decay lambda inside of the momentum or (decoupled) outside of it.

    .. math::
        d = \nabla + \lambda \theta, \quad v \leftarrow \beta v + (1 - \tau) d \ (\text{at first } v = d), \quad
        \theta \leftarrow \theta - \eta\, (v \text{ or, Nesterov, } d + \beta v)

    Args:
        training: the settings.
        weighted_sum: the sum of ``(scale, value)`` pairs.
    """

    def __init__(self, training: Training, weighted_sum: Callable[..., Value]) -> None:
        self._training, self._weighted_sum = training, weighted_sum
        self._velocity: Value | None = None

    def update(self, step: int, value: Value, ascent: Value) -> Value:
        """The value after a step along ``ascent``, minus the gradient."""

        def number(name: str) -> float:
            return self._training.at(name, step)

        lr, beta, decay = number("lr"), number("momentum"), number("weight_decay")
        outside = bool(number("decoupled"))
        push = ascent if outside or not decay else self._weighted_sum((1.0, ascent), (-decay, value))
        if beta:
            if self._velocity is None:
                self._velocity = push
            else:
                self._velocity = self._weighted_sum((beta, self._velocity), (1 - number("dampening"), push))
            nesterov = bool(number("nesterov"))
            push = self._weighted_sum((1.0, push), (beta, self._velocity)) if nesterov else self._velocity
        return self._weighted_sum((1 - lr * decay if outside else 1.0, value), (lr, push))


def weighted_sum_of_tensors(*terms: tuple[float, Tensor]) -> Tensor:
    """The sum of scaled tensors."""
    return torch.stack([scale * value for scale, value in terms]).sum(0)


def propagators(
    training: Training, times: int
) -> tuple[Float[Tensor, " time"], Float[Tensor, "time step"], Float[Tensor, "time step"]]:
    r"""Weights of the initial value, of the gradients of earlier steps, and of their noise in the state at time t.

    .. math:: \theta(t) = a(t)\, \theta(0) - \sum_{s<t} w(t, s)\, \nabla(s) + \sum_{s<t} n(t, s)\, \xi(s)

    Args:
        training: the settings, the rates included.
        times: how many states, from 0 on.

    Returns:
        a, w and n in float64; the latter two square, zero for s >= t.
    """
    descent: Descent[Tensor] = Descent(training, weighted_sum_of_tensors)
    state = torch.zeros(1 + 2 * times, dtype=torch.float64, device="cpu")
    state[0] = 1.0
    states = [state]
    for step in range(times - 1):
        ascent = torch.zeros_like(state)
        ascent[1 + step] = 1.0
        state = descent.update(step, state, ascent)
        state[1 + times + step] = 1.0
        states.append(state)
    weights = torch.stack(states)
    return weights[:, 0], weights[:, 1 : 1 + times], weights[:, 1 + times :]
