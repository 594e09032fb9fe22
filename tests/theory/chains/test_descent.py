"""The recursion of SGD is that of torch.optim.SGD, and what is linear in it follows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from torch_dmft.core.training import Training
from torch_dmft.theory.chains.descent import Descent, propagators, weighted_sum_of_tensors

STEPS = 9
RATES = [0.1, 0.3, 0.0, 0.2, 0.05, 0.4, 0.1, 0.2, 0.3]
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"lr": 0.2},
    "schedule": {"lr": RATES},
    "momentum": {"lr": 0.2, "momentum": 0.9},
    "decay inside": {"lr": RATES, "momentum": 0.7, "weight_decay": 0.5},
    "Nesterov": {"lr": RATES, "momentum": 0.7, "weight_decay": 0.5, "nesterov": True},
    "dampening": {"lr": RATES, "momentum": 0.7, "weight_decay": 0.5, "dampening": 0.3},
    "a momentum that begins late": {"lr": 0.2, "momentum": [0.0, 0.0, *[0.5] * 7], "weight_decay": 0.1},
}


def by_torch(settings: dict[str, Any], start: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """The states that torch.optim.SGD goes through."""
    value = start.clone().requires_grad_()
    fixed = {name: value for name, value in settings.items() if not isinstance(value, list)}
    optimizer, states = torch.optim.SGD([value], **{"lr": 0.1} | fixed), [start]
    for step, gradient in enumerate(gradients):
        optimizer.param_groups[0].update({name: v[step] for name, v in settings.items() if isinstance(v, list)})
        value.grad = gradient.clone()
        optimizer.step()
        states.append(value.detach().clone())
    return torch.stack(states)


@pytest.mark.parametrize("case", SETTINGS)
def test_is_the_recursion_of_torch(case: str, generator: torch.Generator) -> None:
    settings = SETTINGS[case]
    start, gradients = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((4,), (STEPS, 4)))
    expected = by_torch(settings, start, gradients)
    training = Training.sgd(settings["lr"], STEPS).with_numbers(
        **{name: float(v) if isinstance(v, bool) else v for name, v in settings.items()}
    )
    value, descent = start, Descent(training, weighted_sum_of_tensors)
    for step, gradient in enumerate(gradients):
        value = descent.update(step, value, -gradient)
        torch.testing.assert_close(value, expected[step + 1], rtol=1e-12, atol=1e-12)
    left, weights, _ = propagators(training, STEPS + 1)
    linear = left[:, None] * start - weights[:, :STEPS] @ gradients
    torch.testing.assert_close(linear, expected, rtol=1e-12, atol=1e-12)


def test_decay_outside_of_the_momentum_is_another_recursion() -> None:
    inside = Training.sgd(0.2, STEPS, momentum=0.7, weight_decay=0.5)
    outside = inside.with_numbers(decoupled=1.0)
    left = [propagators(training, STEPS + 1)[0] for training in (inside, outside)]
    torch.testing.assert_close(left[1], (1 - 0.2 * 0.5) ** torch.arange(STEPS + 1.0, dtype=torch.float64))
    assert not torch.allclose(*left, rtol=0.1)


def test_noise_is_left_as_the_weights_are() -> None:
    _, _, noise = propagators(Training.sgd(RATES, STEPS, weight_decay=0.5), STEPS + 1)
    keep = 1 - 0.5 * torch.tensor(RATES, dtype=torch.float64)
    assert noise[5, 2] == pytest.approx(float(keep[3] * keep[4]))
    assert noise[2, 2] == 0
