"""Ensembles of finite networks of tokens in unit form, slow and obvious: the oracle of embeddings in infinite width.

    e = E[x] + P, the rows of two tables with entries N(0, 1), one of tokens and one of positions
    mlp:  h = W tanh(e) / sqrt(N),  f = w . <tanh(h)> / (gamma0 N) with a mean over positions
    gpt:  q, k, v = Wq n, Wk n, Wv n with n = norm(e), all divided by sqrt(N), and split into H heads of d = N/H neurons
          a = causal softmax(scale q.k / d) v for each head,   e2 = e + Wo a / sqrt(N)
          e3 = e2 + Wd tanh(Wu norm(e2) / sqrt(N)) / sqrt(N),   f = w . <norm(e3)> / (gamma0 N)

with norm = LayerNorm without gain and shift. Independent of the package.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from tests.reference.ensembles import Limit
from tests.reference.pairs import descend, gram, limit_of

HEADS = 2
MATRICES = {"mlp": ("mix",), "gpt": ("q", "k", "v", "out", "up", "down")}
PARTS = {kind: ("tokens", "positions", *names) for kind, names in MATRICES.items()}


def train(
    inputs: Tensor,
    targets: Tensor,
    width: int,
    networks: int,
    *,
    kind: str,
    vocabulary: int,
    lr: float,
    steps: int,
    gamma0: float,
    generator: torch.Generator,
    record: tuple[int, ...],
    scale: float = 1.0,
    tied: bool = False,
) -> dict[str, Tensor]:
    """Observables of many networks before each recorded step, with a leading network axis; the second half has -w.

    Args:
        inputs: ``(sample, position)`` tokens.
        targets: ``(sample,)``.
        width: N.
        networks: how many, in pairs.
        kind: "mlp" or "gpt".
        vocabulary: number of tokens.
        lr: eta.
        steps: of gradient descent on the mean squared error.
        gamma0: richness.
        generator: source of the weights.
        record: the steps to record.
        scale: of scores.
        tied: whether w is the row of token 0, as E[0] the weights of the output of this token; halves are then independent.
    """
    half, (samples, length) = networks // (1 if tied else 2), inputs.shape
    draw = {"tokens": (vocabulary, width), "positions": (length, width)}
    draw |= {} if tied else {"readout": (1, width)}
    draw |= dict.fromkeys(MATRICES[kind], (width, width))
    theta = {name: torch.randn(half, *shape, generator=generator, dtype=targets.dtype) for name, shape in draw.items()}
    if not tied:
        theta = {name: torch.cat([p, -p if name == "readout" else p]) for name, p in theta.items()}
    theta = {name: p.requires_grad_() for name, p in theta.items()}
    rate = gamma0**2 * width
    order = [*PARTS[kind], *(() if tied else ("readout",))]
    found: dict[str, list[Tensor]] = {}
    one_hot = torch.nn.functional.one_hot(inputs, vocabulary).to(targets)
    place = torch.eye(length, dtype=targets.dtype).expand(samples, length, length)
    for step in range(steps + 1):
        read: dict[str, Tensor] = {}  # what each matrix reads and writes: (network, sample, position, neuron)
        written: dict[str, Tensor] = {}

        def apply(name: str, rows: Tensor, read: dict[str, Tensor] = read, out: dict[str, Tensor] = written) -> Tensor:
            read[name] = rows
            out[name] = torch.einsum("nof,nptf->npto", theta[name], rows) / math.sqrt(rows.shape[-1])
            return out[name]

        def look_up(
            name: str, rows: Tensor, read: dict[str, Tensor] = read, out: dict[str, Tensor] = written
        ) -> Tensor:
            read[name] = rows.expand(networks, *rows.shape)
            out[name] = torch.einsum("nvo,nptv->npto", theta[name], read[name])
            return out[name]

        def normed(rows: Tensor) -> Tensor:
            return layer_norm(rows, (width,))

        stream = look_up("tokens", one_hot) + look_up("positions", place)
        if kind == "mlp":
            last = torch.tanh(apply("mix", torch.tanh(stream))).mean(2)
        else:
            known = normed(stream)
            q, k, v = (apply(name, known).unflatten(-1, (HEADS, -1)) for name in "qkv")
            scores = scale * torch.einsum("npthd,npshd->nphts", q, k) / q.shape[-1]
            future = torch.ones(length, length, dtype=torch.bool).triu(1)
            weights = scores.masked_fill(future, -math.inf).softmax(-1)
            stream = stream + apply("out", torch.einsum("nphts,npshd->npthd", weights, v).flatten(-2))
            stream = stream + apply("down", torch.tanh(apply("up", normed(stream))))
            last = normed(stream).mean(2)
        w = theta["tokens"][:, :1] if tied else theta["readout"]
        f = torch.einsum("nof,npf->np", w, last) / (gamma0 * width)
        losses = (f - targets).square().mean(1)
        if step in record:
            slopes, jacobians = [], []
            for sample in range(samples):
                wanted = [*written.values(), *(theta[name] for name in order)]
                each = torch.autograd.grad(f[:, sample].sum(), wanted, retain_graph=True)
                slopes.append(each[: len(written)])
                jacobians.append([one.flatten(1) for one in each[len(written) :]])
            now = {"outputs": f.unsqueeze(-1), "losses": losses}
            for index, name in enumerate(written):
                features = 1 if name in ("tokens", "positions") else width
                g = torch.stack([each[index][:, sample] for sample, each in enumerate(slopes)], dim=1)
                now[f"forward.{index}"] = gram(read[name]) / (length * features)
                now[f"backward.{index}"] = gram(gamma0 * width * length * g) / (length * width)
            last_one = len(PARTS[kind])
            now[f"forward.{last_one}"] = gram(last) / width
            now[f"backward.{last_one}"] = f.new_ones(networks, samples, samples)
            for index in range(len(order)):
                now[f"ntk.{index}"] = rate * gram(torch.stack([each[index] for each in jacobians], dim=1))
            now["ntk"] = torch.stack([values for name, values in now.items() if name.startswith("ntk.")]).sum(0)
            for name, values in now.items():
                found.setdefault(name, []).append(values.detach())
        descend(theta.values(), losses, lr * rate)
    return {name: torch.stack(values, dim=1) for name, values in found.items()}


def limit(inputs: Tensor, targets: Tensor, networks: Mapping[int, int], **settings: object) -> Limit:
    """Infinite width, from ensembles of several widths."""

    def some(width: int, count: int) -> dict[str, Tensor]:
        return train(inputs, targets, width, count, **settings)  # type: ignore[arg-type]

    return limit_of(some, networks, 2**20 // 14)
