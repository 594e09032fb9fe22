"""Ensembles of finite transformers in unit form, slow and obvious: the oracle of attention in infinite width.

    e = W0 x / sqrt(D)                                               (token by token)
    q, k, v = Wq n, Wk n, Wv n  with  n = norm(e), all divided by sqrt(N), and split into H heads of d = N/H neurons
    a = softmax(scale q.k / d) v for each head,   e2 = e + Wo a / sqrt(N)       (or H = N/d heads of a fixed size d)
    e3 = e2 + Wd tanh(Wu norm(e2) / sqrt(N)) / sqrt(N),   f = w . <norm(e3)> / (gamma0 N)

with a mean over tokens and with norm = LayerNorm without gain and shift, or nothing; if ``causal``, a token's softmax runs over
itself and those before. Independent of the package.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from tests.reference.ensembles import Limit
from tests.reference.pairs import descend, gram, limit_of
from tests.transformer import HEADS

MATRICES = ("embed", "q", "k", "v", "out", "up", "down")


def train(
    inputs: Tensor,
    targets: Tensor,
    width: int,
    networks: int,
    *,
    norm: bool,
    scale: float,
    lr: float,
    steps: int,
    gamma0: float,
    generator: torch.Generator,
    record: tuple[int, ...],
    size: int | None = None,
    causal: bool = False,
) -> dict[str, Tensor]:
    """Observables of many networks before each recorded step, with a leading network axis; the second half has -w."""
    half, (samples, tokens, features) = networks // 2, inputs.shape
    draw = {name: (width, features if name == "embed" else width) for name in MATRICES} | {"readout": (1, width)}
    theta = {name: torch.randn(half, *shape, generator=generator, dtype=inputs.dtype) for name, shape in draw.items()}
    theta = {name: torch.cat([p, -p if name == "readout" else p]).requires_grad_() for name, p in theta.items()}
    rate = gamma0**2 * width
    layout = (HEADS, -1) if size is None else (-1, size)
    hidden = torch.ones(tokens, tokens).triu(1).bool() if causal else torch.zeros(tokens, tokens).bool()
    found: dict[str, list[Tensor]] = {}

    def normed(rows: Tensor) -> Tensor:
        return layer_norm(rows, (width,)) if norm else rows

    for step in range(steps + 1):
        read: dict[str, Tensor] = {}  # what each matrix reads and writes: (network, sample, token, neuron)
        written: dict[str, Tensor] = {}

        def apply(name: str, rows: Tensor, read: dict[str, Tensor] = read, out: dict[str, Tensor] = written) -> Tensor:
            read[name] = rows
            out[name] = torch.einsum("nof,nptf->npto", theta[name], rows) / math.sqrt(rows.shape[-1])
            return out[name]

        stream = apply("embed", inputs.expand(networks, -1, -1, -1))
        known = normed(stream)
        q, k, v = (apply(name, known).unflatten(-1, layout) for name in "qkv")
        scores = scale * torch.einsum("npthd,npshd->nphts", q, k) / q.shape[-1]
        mixed = torch.einsum("nphts,npshd->npthd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v).flatten(-2)
        stream = stream + apply("out", mixed)
        stream = stream + apply("down", torch.tanh(apply("up", normed(stream))))
        last = normed(stream).mean(2)
        f = torch.einsum("nof,npf->np", theta["readout"], last) / (gamma0 * width)
        losses = (f - targets).square().mean(1)
        if step in record:
            slopes = torch.autograd.grad(f.sum(), list(written.values()), retain_graph=True)
            now = {"outputs": f.unsqueeze(-1), "losses": losses}
            for index, (name, slope) in enumerate(zip(MATRICES, slopes, strict=True)):
                x = read[name]
                jacobian = torch.einsum("npto,nptf->npof", slope, x) / math.sqrt(x.shape[-1])
                now[f"forward.{index}"] = gram(x) / (tokens * x.shape[-1])
                now[f"backward.{index}"] = gram(gamma0 * width * tokens * slope) / (tokens * width)
                now[f"ntk.{index}"] = rate * gram(jacobian)
            now[f"forward.{len(MATRICES)}"] = gram(last) / width
            now[f"backward.{len(MATRICES)}"] = f.new_ones(networks, samples, samples)
            now[f"ntk.{len(MATRICES)}"] = gram(last) / width
            now["ntk"] = torch.stack([values for name, values in now.items() if name.startswith("ntk.")]).sum(0)
            for name, values in now.items():
                found.setdefault(name, []).append(values.detach())
        descend(theta.values(), losses, lr * rate)
    return {name: torch.stack(values, dim=1) for name, values in found.items()}


def limit(inputs: Tensor, targets: Tensor, networks: Mapping[int, int], **settings: object) -> Limit:
    """Infinite width, from ensembles of several widths."""

    def some(width: int, count: int) -> dict[str, Tensor]:
        return train(inputs, targets, width, count, **settings)  # type: ignore[arg-type]

    return limit_of(some, networks, 2**21 // 14)
