"""Oracle: many finite networks trained side by side by learning rules of Bordelon & Pehlevan (2210.02157), by brute force.

Dense chains of tanh without biases, in the units of the paper, whose eqs. 1 to 3 these are:

    h^1 = W^0 x / sqrt(D),  h^{l+1} = W^l phi(h^l) / sqrt(N),  f = w phi(h^L) / (gamma0 N),
    w += lr gamma0 sum Delta phi(h^L),  W^l += lr gamma0 / sqrt(N) sum Delta g~^{l+1} phi(h^l)^T,

with D in the place of N and x in that of phi for l = 0, Delta = -dL/df and L the mean square error. No autograd is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.reference.ensembles import Limit
from tests.reference.pairs import limit_of


@dataclass(frozen=True)
class Rule:
    """How a chain is trained.

    Attributes:
        inputs: ``(sample, D)``.
        targets: ``(sample, 1)``.
        rule: "gradient", "feedback_alignment", "direct_feedback_alignment" or "hebb".
        rho: of feedback alignment.
        gamma0: richness.
        depth: L.
        lr: eta.
        steps: T.
    """

    inputs: Tensor
    targets: Tensor
    rule: str
    rho: float = 0.0
    gamma0: float = 1.0
    depth: int = 2
    lr: float = 0.2
    steps: int = 12

    def train(self, width: int, networks: int, generator: torch.Generator, record: Sequence[int]) -> dict[str, Tensor]:
        """Outputs ``(network, time, sample)``; Phi^l, and G^l and NTK of true gradients ``(network, time, sample, sample)``.

        The networks of the second half are those of the first with the opposite readout, and the same W~ and z~.
        """
        dim, gamma0, depth, x = self.inputs.shape[1], self.gamma0, self.depth, self.inputs.T

        def drawn(*shape: int) -> Tensor:
            half = torch.randn(networks // 2, *shape, generator=generator, dtype=x.dtype)
            return torch.cat([half, half])

        first = drawn(width, dim)
        hidden = [drawn(width, width) for _ in range(depth - 1)]
        w = drawn(width, 1)
        w[networks // 2 :] *= -1
        others = [*(drawn(width, width) for _ in range(depth - 1)), drawn(width, 1)]
        direct = [drawn(width, 1) for _ in range(depth)]
        kept, share = self.rho, (1 - self.rho**2) ** 0.5
        frozen = [kept * matrix + share * other for matrix, other in zip([*hidden, w], others, strict=True)]
        found: dict[str, list[Tensor]] = {}
        for step in range(self.steps + 1):
            fields, features = [first @ x / dim**0.5], [x.expand(networks, -1, -1)]
            for matrix in hidden:
                features.append(torch.tanh(fields[-1]))
                fields.append(matrix @ features[-1] / width**0.5)
            features.append(torch.tanh(fields[-1]))
            f = (w.mT @ features[-1] / (gamma0 * width))[:, 0]
            slopes = [1 - phi.square() for phi in features[1:]]
            if step in record:
                g = slopes[-1] * w
                gradients = [g]
                for matrix, slope in zip(reversed(hidden), reversed(slopes[:-1]), strict=True):
                    gradients.insert(0, slope * (matrix.mT @ gradients[0] / width**0.5))
                values = {"outputs": f, "ntk": features[-1].mT @ features[-1] / width}
                for layer, g in enumerate(gradients):
                    below = features[layer].mT @ features[layer] / (width if layer else dim)
                    values[f"backward.{layer}"] = g.mT @ g / width
                    values[f"forward.{layer + 1}"] = features[layer + 1].mT @ features[layer + 1] / width
                    values["ntk"] = values["ntk"] + values[f"backward.{layer}"] * below
                for name, value in values.items():
                    found.setdefault(name, []).append(value)
            if step == self.steps:
                break
            delta = -2 / f.shape[1] * (f - self.targets[:, 0])
            if self.rule == "hebb":
                pseudo = [delta[:, None] * phi for phi in features[1:]]
            elif self.rule == "direct_feedback_alignment":
                pseudo = [slope * z for slope, z in zip(slopes, direct, strict=True)]
            else:
                back = frozen if self.rule == "feedback_alignment" else [*hidden, w]
                pseudo = [slopes[-1] * back[-1]]
                for matrix, slope in zip(reversed(back[:-1]), reversed(slopes[:-1]), strict=True):
                    pseudo.insert(0, slope * (matrix.mT @ pseudo[0] / width**0.5))
            pushed = [self.lr * gamma0 * delta[:, None] * g for g in pseudo]
            w = w + self.lr * gamma0 * features[-1] @ delta[:, :, None]
            first = first + pushed[0] @ features[0].mT / dim**0.5
            hidden = [
                matrix + push @ phi.mT / width**0.5
                for matrix, push, phi in zip(hidden, pushed[1:], features[1:], strict=False)
            ]
        return {name: torch.stack(values, 1) for name, values in found.items()}

    def limit(self, networks: dict[int, int], generator: torch.Generator, record: Sequence[int]) -> Limit:
        """Means of pairs of networks of several widths, extrapolated; ``networks`` is width -> number of them."""
        return limit_of(lambda width, count: self.train(width, count, generator, record), networks, 2**20)
