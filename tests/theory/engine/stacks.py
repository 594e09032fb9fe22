"""Ensembles of finite networks of any wiring in unit form, slow and obvious: the oracle of dropout, norms, scales and numbers.

Every matrix has entries N(0, 1) and is divided by the root of its fan-in, every vector starts at one number, and

    f = exp(t) w . <last>_tokens / (gamma0 N).

All learn at the rate lr gamma0^2 N, but single numbers: at lr gamma0^2 those that features are computed with, and at lr the t
that outputs are multiplied by. As they are start + u / sqrt(N) and start + u / (gamma0 sqrt(N)), so is u at the rate of all.
What is recorded is the network in evaluation mode. Independent of the package.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tests.reference.ensembles import Limit
from tests.reference.pairs import descend, gram, limit_of

Apply = Callable[[str, Tensor], Tensor]
"""A named matrix on rows ``(network, sample, token, fan-in)``."""


@dataclass(frozen=True)
class Wiring:
    """A network.

    Attributes:
        matrices: in forward order, the first reads the data.
        forward: (apply, data, vectors ``(network, 1, 1, N)`` and numbers ``(network, 1, 1, 1)``, drop) -> the features that
            the readout averages; ``drop`` takes features and p, and does nothing in evaluation mode.
        vectors: where each starts.
        numbers: where each starts.
        log_scale: where t starts; None for t = 0, which does not learn.
        taps: of a matrix that reads several tokens at once, how many.
    """

    matrices: tuple[str, ...]
    forward: Callable[[Apply, Tensor, Mapping[str, Tensor], Callable[[Tensor, float], Tensor]], Tensor]
    vectors: Mapping[str, float] = field(default_factory=dict)
    taps: Mapping[str, int] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    log_scale: float | None = None


def train(
    wiring: Wiring,
    inputs: Tensor,
    targets: Tensor,
    width: int,
    networks: int,
    *,
    lr: float,
    gamma0: float,
    record: tuple[int, ...],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Observables of many networks before each recorded step, with a leading network axis; the second half has -w.

    Args:
        wiring: the network.
        inputs: ``(sample, token, feature)``.
        targets: ``(sample,)``.
        width: N.
        networks: how many, in pairs of opposite readout and equal masks.
        lr: eta.
        gamma0: feature-learning strength.
        record: increasing steps; the last one is where training ends.
        generator: of weights and masks.
    """
    half, (samples, tokens, features) = networks // 2, inputs.shape
    first, rate = wiring.matrices[0], gamma0**2 * width
    sizes = {name: wiring.taps.get(name, 1) * (features if name == first else width) for name in wiring.matrices}
    theta = {n: torch.randn(half, width, size, generator=generator, dtype=inputs.dtype) for n, size in sizes.items()}
    theta["readout"] = torch.randn(half, 1, width, generator=generator, dtype=inputs.dtype)
    theta = {name: torch.cat([p, -p if name == "readout" else p]).requires_grad_() for name, p in theta.items()}
    vectors = {
        name: torch.full((networks, 1, 1, width), start, dtype=inputs.dtype).requires_grad_()
        for name, start in wiring.vectors.items()
    }
    has_scale = wiring.log_scale is not None
    units = {name: inputs.new_zeros(networks, 1, 1, 1).requires_grad_() for name in wiring.numbers}
    log_scale = inputs.new_zeros(networks, 1).requires_grad_(has_scale)
    others = [*vectors.values(), *units.values(), *([log_scale] if has_scale else [])]
    found: dict[str, list[Tensor]] = {}

    def factor() -> Tensor:
        return torch.exp((wiring.log_scale or 0.0) + log_scale / (gamma0 * math.sqrt(width)))

    def dropped(rows: Tensor, p: float) -> Tensor:
        kept = torch.rand(half, *rows.shape[1:], generator=generator, dtype=rows.dtype) >= p
        return rows * torch.cat([kept, kept]) / (1 - p)

    def run(drop: Callable[[Tensor, float], Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor], dict[str, Tensor]]:
        read: dict[str, Tensor] = {}
        written: dict[str, Tensor] = {}

        def apply(name: str, rows: Tensor) -> Tensor:
            read[name] = rows
            written[name] = torch.einsum("nof,nptf->npto", theta[name], rows) / math.sqrt(rows.shape[-1])
            return written[name]

        numbers = {name: start + units[name] / math.sqrt(width) for name, start in wiring.numbers.items()}
        last = wiring.forward(apply, inputs.expand(networks, -1, -1, -1), {**vectors, **numbers}, drop).mean(2)
        f = factor() * torch.einsum("nof,npf->np", theta["readout"], last) / (gamma0 * width)
        return f, last, read, written

    for step in range(record[-1] + 1):
        if step in record:
            f, last, read, written = run(lambda rows, _: rows)
            slopes = torch.autograd.grad(f.sum(), list(written.values()), retain_graph=True)
            now = {"outputs": f.unsqueeze(-1), "losses": (f - targets).square().mean(1)}
            for index, (name, slope) in enumerate(zip(wiring.matrices, slopes, strict=True)):
                x = read[name]
                jacobian = torch.einsum("npto,nptf->npof", slope, x) / math.sqrt(x.shape[-1])
                now[f"forward.{index}"] = gram(x) / (tokens * x.shape[-1])
                now[f"backward.{index}"] = gram(gamma0 * width * tokens * slope) / (tokens * width)
                now[f"ntk.{index}"] = rate * gram(jacobian)
            end = len(wiring.matrices)
            now[f"forward.{end}"] = gram(last) / width
            now[f"backward.{end}"] = factor().square().unsqueeze(2).expand(-1, samples, samples)
            now[f"ntk.{end}"] = now[f"forward.{end}"] * now[f"backward.{end}"]
            now["ntk"] = torch.stack([values for name, values in now.items() if name.startswith("ntk.")]).sum(0)
            for other in others:
                rows = [torch.autograd.grad(f[:, mu].sum(), other, retain_graph=True)[0] for mu in range(samples)]
                now["ntk"] = now["ntk"] + rate * gram(torch.stack(rows, dim=1))
            for name, values in now.items():
                found.setdefault(name, []).append(values.detach())
        f = run(dropped)[0]
        descend([*theta.values(), *others], (f - targets).square().mean(1), lr * rate)
    return {name: torch.stack(values, dim=1) for name, values in found.items()}


def limit(wiring: Wiring, inputs: Tensor, targets: Tensor, networks: Mapping[int, int], **settings: object) -> Limit:
    """Infinite width, from ensembles of several widths."""

    def some(width: int, count: int) -> dict[str, Tensor]:
        return train(wiring, inputs, targets, width, count, **settings)  # type: ignore[arg-type]

    return limit_of(some, networks, 2**21 // (2 * len(wiring.matrices)))
