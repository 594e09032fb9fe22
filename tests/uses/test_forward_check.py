"""What chance does to the comparison of sizes at two widths: it refuses next to no model without a fault, and hides none."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from torch_dmft.uses.forward_check import Instance, Site, grown

PLACES, GROWTH = 60, 2.0


class Scattered(Instance):
    """A model whose features have sizes that scatter from draw to draw, with the logarithm of them given."""

    logs: Tensor

    def sizes(self, seed: int) -> dict[tuple[str, Site], float]:
        """The sizes of one draw."""
        return {("step", (f"place {number}", 0)): float(log) for number, log in enumerate(self.logs[seed])}


def _pair(scatter: float, exponent: float, generator: torch.Generator) -> tuple[Instance, Instance]:
    """Features at two widths; at a third of the places they go with a power of the width, and at one they may be zero."""
    made = []
    for shift in (0.0, exponent * math.log(GROWTH)):
        one = Scattered(nn.Identity(), nn.Identity(), torch.zeros(1), {}, {})
        logs = scatter * _heavy(generator)
        logs[:, ::3] += shift
        logs[::4, 1] = math.nan
        object.__setattr__(one, "logs", logs)
        made.append(one)
    return made[0], made[1]


def _heavy(generator: torch.Generator) -> Tensor:
    """Numbers of order one with a heavier tail than Gaussians, as squeezed and multiplied features have."""
    normal = torch.randn(2, 64, PLACES, generator=generator, dtype=torch.float64)
    return normal[0] * (0.6 + 0.5 * normal[1].abs())


@pytest.mark.parametrize(("scatter", "powers"), [(0.1, (-0.5, 0.5, 1.0)), (0.3, (-0.5, 0.5, 1.0)), (0.6, (-1.0, 1.0))])
def test_chance_refuses_next_to_no_model_and_hides_no_fault(scatter, powers, generator) -> None:
    refused = sum(grown(*_pair(scatter, 0.0, generator), GROWTH) is not None for _ in range(200))
    assert refused <= 1
    for power in powers:
        found = sum(grown(*_pair(scatter, power, generator), GROWTH) is not None for _ in range(10))
        assert found >= 9, (power, found)
