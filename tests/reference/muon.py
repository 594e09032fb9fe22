"""Oracle: many finite networks trained side by side by Muon of their hidden matrices and SGD of the rest, by brute force.

Dense chains of tanh without biases, in the mean-field parameterization with all multipliers written into the forward pass:

    h^1 = W^0 x / sqrt(D),  h^{l+1} = W^l phi(h^l) / sqrt(N_l),  f = w phi(h^L) / (gamma0 N_L),

whose unit-form weights move by eta gamma0^2 N_L dL/dW with SGD. Muon's matrix is W^l / sqrt(N_l), a step of which has singular
values eta gamma0 sqrt(N_{l+1} / N_l).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from tests.reference.ensembles import Limit
from tests.reference.pairs import limit_of

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


@dataclass(frozen=True)
class Muon:
    """How a chain is trained.

    Attributes:
        inputs: ``(sample, D)``.
        targets: ``(sample, 1)``.
        ratios: N_l / N_L of the hidden layers, their number is L.
        gamma0: richness.
        lr: Muon's eta.
        sgd_lr: eta of the rest.
        steps: T.
        momentum: beta.
        nesterov: whether it looks ahead.
        decay: lambda of the hidden matrices.
        exact: whether the polar factor is taken.
        rounds: whether the iteration rounds to bfloat16.
    """

    inputs: Tensor
    targets: Tensor
    ratios: tuple[float, ...] = (1.0, 1.0)
    gamma0: float = 1.0
    lr: float = 0.1
    sgd_lr: float = 0.1
    steps: int = 8
    momentum: float = 0.9
    nesterov: bool = True
    decay: float = 0.0
    exact: bool = False
    rounds: bool = True

    def orthogonal(self, update: Tensor) -> Tensor:
        """The update with singular values near 1, or of 1: ``(network, out, in)``."""
        if self.exact:
            left, values, right = torch.linalg.svd(update, full_matrices=False)
            return (left * (values > 1e-4 * values[:, :1])[:, None]) @ right

        def rounded(x: Tensor) -> Tensor:
            return x.bfloat16().to(x) if self.rounds else x

        a, b, c = COEFFICIENTS
        x = rounded(update)
        x = rounded(x / rounded(torch.linalg.matrix_norm(x, keepdim=True)))
        for _ in range(5):
            gram = rounded(x @ x.mT)
            x = rounded(a * x + rounded(b * gram + c * gram @ gram) @ x)
        return x

    def train(self, width: int, networks: int, generator: torch.Generator, record: Sequence[int]) -> dict[str, Tensor]:
        """Outputs ``(network, time, sample)``, and Phi^l, G^l and the NTK ``(network, time, sample, sample)``.

        The networks of the second half are those of the first with the opposite readout.
        """
        dim, gamma0 = self.inputs.shape[1], self.gamma0
        widths = [round(width * ratio) for ratio in self.ratios]
        sizes = [dim, *widths, 1]
        draws = [
            torch.randn(networks // 2, fan_out, fan_in, generator=generator, dtype=self.inputs.dtype)
            for fan_in, fan_out in pairwise(sizes)
        ]
        draws = [torch.cat([draw, -draw if size == 1 else draw]) for draw, size in zip(draws, sizes[1:], strict=True)]
        scales = [dim**-0.5, *(size**-0.5 for size in widths[:-1]), 1 / (gamma0 * width)]
        weights = [(scale * draw).requires_grad_() for scale, draw in zip(scales, draws, strict=True)]
        buffers = [torch.zeros_like(weight) for weight in weights]
        found: dict[str, list[Tensor]] = {}
        for step in range(self.steps + 1):
            x, fields = self.inputs.T.expand(networks, -1, -1), []
            for weight in weights[:-1]:
                fields.append(weight @ x)
                x = torch.tanh(fields[-1])
            outputs = weights[-1] @ x
            if step in record:
                gradients = torch.autograd.grad(outputs.sum(), fields, retain_graph=True)
                values = {"outputs": outputs[:, 0], "ntk": x.mT @ x / width}
                features = [self.inputs.T.expand(networks, -1, -1), *map(torch.tanh, fields)]
                for layer, (h, g) in enumerate(zip(fields, gradients, strict=True), start=1):
                    phi, unit = torch.tanh(h), gamma0 * widths[layer - 1] * g
                    values[f"forward.{layer}"] = phi.mT @ phi / widths[layer - 1]
                    values[f"backward.{layer - 1}"] = unit.mT @ unit / widths[layer - 1]
                    before = dim if layer == 1 else widths[layer - 2]
                    seen = features[layer - 1]
                    values["ntk"] += (
                        width / widths[layer - 1] * values[f"backward.{layer - 1}"] * (seen.mT @ seen) / before
                    )
                for name, value in values.items():
                    found.setdefault(name, []).append(value.detach())
            if step == self.steps:
                break
            loss = (outputs[:, 0] - self.targets[:, 0]).square().mean(1).sum()
            slopes = torch.autograd.grad(loss, weights)
            with torch.no_grad():
                for index, (weight, slope, buffer) in enumerate(zip(weights, slopes, buffers, strict=True)):
                    if index in (0, len(weights) - 1):
                        weight -= self.sgd_lr * scales[index] ** 2 * gamma0**2 * width * slope
                        continue
                    buffer.lerp_(slope, 1 - self.momentum)
                    ahead = slope.lerp(buffer, self.momentum) if self.nesterov else buffer
                    weight *= 1 - self.lr * self.decay
                    norm = gamma0 * math.sqrt(widths[index] / widths[index - 1])
                    weight -= self.lr * norm * self.orthogonal(ahead)
        return {name: torch.stack(values, 1) for name, values in found.items()}

    def limit(self, networks: dict[int, int], generator: torch.Generator, record: Sequence[int]) -> Limit:
        """Means of pairs of networks of several widths, extrapolated; ``networks`` is width -> number of them."""
        return limit_of(lambda width, count: self.train(width, count, generator, record), networks, 2**20)
