"""Oracle: many finite networks trained side by side by Adam or AdamW of all weights, by brute force.

Dense chains of tanh without biases, in the mean-field parameterization with all multipliers written into the weights:

    h^1 = W^0 x,  h^{l+1} = W^l phi(h^l),  f = W^L phi(h^L),

with entries of size 1/sqrt(D), 1/sqrt(N_l) and 1/(gamma0 N_L). In a step the entries move by at most eta gamma0 / D,
eta gamma0 / N_l and eta / N_L, and eps is that of gradients of size 1/(gamma0 N_L), of size 1 at the readout; where it is 0, a
gradient of 0 makes no step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from tests.reference.ensembles import Estimate, Limit, fit


@dataclass(frozen=True)
class Adam:
    """How a chain is trained.

    Attributes:
        inputs: ``(sample, D)``.
        targets: ``(sample, 1)``.
        ratios: N_l / N_L of the hidden layers, their number is L.
        gamma0: richness.
        lr: eta.
        steps: T.
        betas: of the averages of gradients and of their squares.
        eps: beside the root of the squares, for gradients of size 1.
        decay: lambda, outside of the averages.
        amsgrad: whether the largest average of squares is taken.
    """

    inputs: Tensor
    targets: Tensor
    ratios: tuple[float, ...] = (1.0, 1.0)
    gamma0: float = 1.0
    lr: float = 0.1
    steps: int = 8
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    decay: float = 0.0
    amsgrad: bool = False

    def scales(self, width: int) -> list[tuple[float, float, float]]:
        """Size, rate per eta, and size of the gradient, of every weight."""
        fan_ins = [self.inputs.shape[1], *(round(width * ratio) for ratio in self.ratios[:-1])]
        hidden = [(n**-0.5, self.gamma0 / n, 1 / (self.gamma0 * width)) for n in fan_ins]
        return [*hidden, (1 / (self.gamma0 * width), 1 / width, 1.0)]

    def draw(self, width: int, networks: int, generator: torch.Generator) -> list[Tensor]:
        """Weights ``(network, out, in)``; the second half has the opposite readout."""
        sizes = [self.inputs.shape[1], *(round(width * ratio) for ratio in self.ratios), 1]
        drawn = [
            torch.randn(networks // 2, fan_out, fan_in, generator=generator, dtype=self.inputs.dtype)
            for fan_in, fan_out in pairwise(sizes)
        ]
        both = [torch.cat([each, -each if each is drawn[-1] else each]) for each in drawn]
        return [size * each for (size, _, _), each in zip(self.scales(width), both, strict=True)]

    def train(self, weights: list[Tensor], record: Sequence[int]) -> dict[str, Tensor]:
        """Outputs ``(network, time, sample)``, Phi^l and G^l ``(network, time, sample, sample)``."""
        width, gamma0 = weights[-1].shape[2], self.gamma0
        weights = [weight.clone().requires_grad_() for weight in weights]
        first, second, largest = ([torch.zeros_like(weight) for weight in weights] for _ in range(3))
        found: dict[str, list[Tensor]] = {}
        for step in range(self.steps + 1):
            x, fields = self.inputs.T.expand(len(weights[0]), -1, -1), []
            for weight in weights[:-1]:
                fields.append(weight @ x)
                x = torch.tanh(fields[-1])
            outputs = weights[-1] @ x
            if step in record:
                values = {"outputs": outputs[:, 0]}
                gradients = torch.autograd.grad(outputs.sum(), fields, retain_graph=True)
                for layer, (h, g) in enumerate(zip(fields, gradients, strict=True), start=1):
                    phi, unit = torch.tanh(h), gamma0 * h.shape[1] * g
                    values[f"forward.{layer}"] = phi.mT @ phi / h.shape[1]
                    values[f"backward.{layer - 1}"] = unit.mT @ unit / h.shape[1]
                for name, value in values.items():
                    found.setdefault(name, []).append(value.detach())
            if step == self.steps:
                break
            slopes = torch.autograd.grad((outputs[:, 0] - self.targets[:, 0]).square().mean(1).sum(), weights)
            self._step(weights, slopes, (first, second, largest), width, step)
        return {name: torch.stack(values, 1) for name, values in found.items()}

    @torch.no_grad()
    def _step(
        self,
        weights: list[Tensor],
        slopes: Sequence[Tensor],
        moments: tuple[list[Tensor], ...],
        width: int,
        step: int,
    ) -> None:
        (beta1, beta2), scales = self.betas, self.scales(width)
        for weight, slope, m, v, most, (_, rate, size) in zip(weights, slopes, *moments, scales, strict=True):
            m.mul_(beta1).add_((1 - beta1) * slope)
            v.mul_(beta2).add_((1 - beta2) * slope**2)
            most.copy_(torch.maximum(most, v) if self.amsgrad else v)
            root = (most / (1 - beta2 ** (step + 1))).sqrt() + max(self.eps * size, 1e-19)
            weight *= 1 - self.lr * self.decay
            weight -= self.lr * rate * m / (1 - beta1 ** (step + 1)) / root

    def limit(self, networks: dict[int, int], generator: torch.Generator, record: Sequence[int]) -> Limit:
        """Means of pairs of networks of several widths, extrapolated; ``networks`` is width -> number of them."""
        estimates = []
        for width, count in networks.items():
            chunks, most = [], 2 * max(1, 2**20 // width**2)
            for start in range(0, count, most):
                weights = self.draw(width, min(most, count - start), generator)
                chunks.append(self.train(weights, record))
            pairs = {
                name: torch.cat([chunk[name].double().unflatten(0, (2, -1)).mean(0) for chunk in chunks])
                for name in chunks[0]
            }
            mean = {name: values.mean(0) for name, values in pairs.items()}
            stderr = {
                name: (values.std(0) / len(values) ** 0.5).clamp_min(1e-6 * float(mean[name].abs().max()))
                for name, values in pairs.items()
            }
            estimates.append(Estimate(width, count, mean, stderr))
        return fit(estimates)
