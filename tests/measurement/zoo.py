"""Models of the shapes that libraries have, small and in float64: ``describe`` refuses nearly all of them."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

T, D = 4, 8
"""Tokens and width."""


@dataclass(frozen=True)
class Entry:
    name: str
    build: Callable[[int], nn.Module]
    inputs: Callable[[torch.Generator, int], Any]
    outputs: Any = None

    def make(self, generator: torch.Generator, *, samples: int = 4, width: int = D) -> tuple[nn.Module, Any]:
        """The model with random parameters in evaluation mode, and inputs."""
        with torch.random.fork_rng():
            torch.manual_seed(3)
            model = self.build(width).double().eval()
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and "mask" not in name:
                with torch.no_grad():
                    draw = torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * 0.4
                    tensor.copy_(draw.abs() + 0.5 if "running_var" in name else draw)
        return model, self.inputs(generator, samples)


def vectors(*shape: int) -> Callable[[torch.Generator, int], Tensor]:
    return lambda generator, samples: torch.randn(samples, *shape, generator=generator, dtype=torch.float64)


def tokens(length: int = T) -> Callable[[torch.Generator, int], Tensor]:
    return lambda generator, samples: torch.randint(1, 7, (samples, length), generator=generator)


class Conv1D(nn.Module):
    """A linear layer that keeps its weight as ``(in, out)``, as GPT-2 does."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(into, out)), nn.Parameter(torch.zeros(out))
        self.out = out

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], self.out)


class Gpt(nn.Module):
    """Packed attention, tied decoder, learned positions of shape (T, D), outputs in a mapping."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(7, width), nn.Embedding(T, width)
        self.ln = nn.LayerNorm(width)
        self.attn, self.proj = Conv1D(width, 3 * width), Conv1D(width, width)
        self.fc, self.out = Conv1D(width, 2 * width), Conv1D(2 * width, width)
        self.lm_head = nn.Linear(width, 7, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> OrderedDict[str, Any]:
        x = self.wte(input_ids) + self.wpe(torch.arange(input_ids.shape[1]))
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.attn(self.ln(x)).split(x.shape[-1], 2))
        mask = None if attention_mask is None else attention_mask[:, None, None, :].bool()
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))
        x = x + self.out(F.gelu(self.fc(x)))
        return OrderedDict(loss=None, logits=self.lm_head(x), hidden_states=(x,))


class Vit(nn.Module):
    """A class token, positions of shape (1, T, D), layer scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 2, stride=2)
        self.cls, self.pos = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(torch.zeros(1, 5, width))
        self.norm, self.attn = nn.LayerNorm(width), nn.MultiheadAttention(width, 2, batch_first=True)
        self.gamma = nn.Parameter(torch.ones(width))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.pos
        h = self.norm(x)
        x = x + self.gamma * self.attn(h, h, h, need_weights=False)[0]
        return self.head(x[:, 0])


class SequenceFirst(nn.Module):
    """Positions of shape (T, 1, D) and (T,), read out at one token; as many tokens as samples."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(3, width)
        self.where, self.gate = nn.Parameter(torch.zeros(T, 1, width)), nn.Parameter(torch.ones(T))
        self.layers = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0), 1, enable_nested_tensor=False
        )
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = (self.first(x.transpose(0, 1)) + self.where) * self.gate[:, None, None]
        return self.head(self.layers(x)[0])


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], width: int) -> None:
        super().__init__()
        self.cell = kind(3, width, num_layers=2, bidirectional=kind is nn.GRU)
        self.head = nn.Linear(2 * width if kind is nn.GRU else width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x.transpose(0, 1))[0][-1])


class Experts(nn.Module):
    """Every token goes to one expert, whose rows are added back by index."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.router = nn.Linear(3, width), nn.Linear(width, 3)
        self.up, self.down = nn.Parameter(torch.zeros(3, width, 12)), nn.Parameter(torch.zeros(3, 12, width))
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        flat = x.flatten(0, 1)
        probability, expert = self.router(flat).softmax(-1).max(-1)
        out = torch.zeros_like(flat)
        for e in range(3):
            (rows,) = torch.where(expert == e)
            h = torch.tanh(flat[rows] @ self.up[e]) @ self.down[e]
            out.index_add_(0, rows, h * probability[rows, None])
        return self.head((x + out.view_as(x)).mean(1))


class Packed(nn.Module):
    """Rows of all samples that are no padding stand packed in one tensor."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.mix, self.head = nn.Embedding(7, width), nn.Linear(width, width), nn.Linear(width, 1)

    def forward(self, ids: Tensor) -> Tensor:
        kept = ids != 1
        rows = torch.tanh(self.mix(self.first(ids[kept])))
        x = rows.new_zeros(*ids.shape, rows.shape[-1])
        x[kept] = rows
        return self.head(x.sum(1))


def packed_tokens(generator: torch.Generator, samples: int) -> Tensor:
    ids = torch.randint(2, 7, (samples, T), generator=generator)
    ids[0, 1:], ids[1, 2:] = 1, 1
    return ids


class TokenMajor(nn.Module):
    """Rows in the order token, sample."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.mix, self.head = nn.Linear(3, width), nn.Linear(width, width), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        samples = len(x)
        x = x.transpose(0, 1).reshape(-1, 3)
        x = torch.tanh(self.mix(torch.tanh(self.first(x))))
        return self.head(x.unflatten(0, (T, samples)).sum(0))


class Functional(nn.Module):
    """Parameters of its own: products of every kind, slices, a gain, a slope, a temperature."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Parameter(torch.zeros(3, width)), nn.Parameter(torch.zeros(width, width))
        self.packed = nn.Parameter(torch.zeros(2 * width, width))
        self.v, self.scale, self.slope = (nn.Parameter(torch.ones(size)) for size in (width, 1, 1))
        self.temperature = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        half = self.packed.shape[1]
        x = torch.einsum("sti,io->sto", x, self.w1)
        x = F.prelu(x, self.slope) * self.scale
        x = torch.tanh(x @ self.w2.T + x @ self.packed[:half] / self.temperature)
        x = x + torch.tanh(self.packed[half:] @ x.transpose(1, 2)).transpose(1, 2)
        return torch.sigmoid(x.mean(1)) @ self.v


class Lora(nn.Module):
    """A frozen weight beside a product of two narrow ones, merged or not."""

    def __init__(self, width: int, *, merged: bool) -> None:
        super().__init__()
        self.first, self.base, self.head = nn.Linear(3, width), nn.Linear(width, width), nn.Linear(width, 2)
        self.down, self.up = nn.Parameter(torch.zeros(2, width)), nn.Parameter(torch.zeros(width, 2))
        self.merged = merged
        self.base.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        if self.merged:
            x = F.linear(x, self.base.weight + self.up @ self.down, self.base.bias)
        else:
            x = self.base(x) + (x @ self.down.T) @ self.up.T
        return self.head(torch.tanh(x))


class ResNet(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.grouped = nn.Conv2d(width, width, 3, padding="same", groups=2, padding_mode="circular")
        self.group = nn.GroupNorm(2, width)
        self.up = nn.ConvTranspose2d(width, width, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)), inplace=True)
        x = x + F.relu(self.group(self.grouped(x)), inplace=True)
        return self.head(torch.tanh(self.up(x)).mean((2, 3)))


class Readout(nn.Linear):
    """A linear layer that works on its input before it multiplies."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x / math.sqrt(self.in_features) + x.square())


class Forces(nn.Module):
    """The derivative of an energy is the output."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (force,) = torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)
        return force


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x * w**2

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return g * w**2, (g * x * 2 * w).sum(0)


class Custom(nn.Module):
    """An operation that nobody can look into."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.gain, self.head = nn.Linear(3, width), nn.Parameter(torch.ones(width)), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(Square.apply(self.first(x), self.gain)))


class Bag(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(7, width), nn.Linear(width, 1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.bag(ids)))


class Masked(nn.Module):
    """A learned token in place of some, and a mean over those that are no padding; keyword arguments, a tuple returned."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.blank = nn.Linear(3, width), nn.Parameter(torch.zeros(width))
        self.mix, self.head = nn.Bilinear(width, width, width), nn.Linear(width, 2)

    def forward(self, *, values: Tensor, mask: Tensor, note: str = "") -> tuple[Tensor, str]:
        x = torch.where(mask[..., None], self.first(values), self.blank)
        x = self.mix(x, torch.tanh(x))
        return self.head(x.mean(1)), note


def masked(generator: torch.Generator, samples: int) -> dict[str, Any]:
    mask = torch.rand(samples, T, generator=generator) > 0.4
    return {"values": torch.randn(samples, T, 3, generator=generator, dtype=torch.float64), "mask": mask, "note": "x"}


class Queries(nn.Module):
    """Attention of learned seeds to the elements of a set."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.seeds = nn.Linear(3, width), nn.Parameter(torch.randn(1, 2, width))
        self.pool, self.head = nn.MultiheadAttention(width, 2, batch_first=True), nn.Linear(2 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        return self.head(self.pool(self.seeds.expand(len(x), -1, -1), h, h)[0].flatten(1))


class Fourier(nn.Module):
    """A Fourier neural operator, its complex weights kept as two real ones."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lift, self.real, self.imag = (
            nn.Linear(1, width),
            *(nn.Parameter(torch.randn(width, width, 3) / width) for _ in range(2)),
        )
        self.mix, self.head = nn.Conv1d(width, width, 1), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.lift(x).transpose(1, 2)
        waves = torch.fft.rfft(h)[..., :3]
        made = torch.einsum("sim,iom->som", waves, torch.complex(self.real, self.imag))
        h = F.gelu(torch.fft.irfft(made, n=h.shape[-1]) + self.mix(h))
        return self.head(h.mean(-1))


def weight_norm(width: int) -> nn.Module:
    model = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2))
    nn.utils.parametrizations.weight_norm(model[2])
    return model


def ids_with_mask(generator: torch.Generator, samples: int) -> dict[str, Tensor]:
    mask = torch.ones(samples, T, dtype=torch.int64)
    mask[0, 2:] = 0
    return {"input_ids": tokens()(generator, samples), "attention_mask": mask}


ZOO = [
    Entry("gpt", Gpt, ids_with_mask, lambda out: out["logits"][:, -1, :3]),
    Entry("vit", Vit, vectors(1, 4, 4)),
    Entry("sequence first", SequenceFirst, vectors(T, 3)),
    Entry("lstm", lambda width: Recurrent(nn.LSTM, width), vectors(T, 3)),
    Entry("gru", lambda width: Recurrent(nn.GRU, width), vectors(T, 3)),
    Entry("experts", Experts, vectors(T, 3)),
    Entry("packed", Packed, packed_tokens),
    Entry("token major", TokenMajor, vectors(T, 3)),
    Entry("functional", Functional, vectors(T, 3)),
    Entry("lora", lambda width: Lora(width, merged=False), vectors(3)),
    Entry("merged lora", lambda width: Lora(width, merged=True), vectors(3)),
    Entry("resnet", ResNet, vectors(1, 4, 4)),
    Entry("readout", lambda width: nn.Sequential(nn.Linear(3, width), nn.Tanh(), Readout(width, 1)), vectors(3)),
    Entry("forces", Forces, vectors(3)),
    Entry("custom", Custom, vectors(3)),
    Entry("bag", Bag, tokens()),
    Entry("masked", Masked, masked),
    Entry("weight norm", weight_norm, vectors(3)),
    Entry("queries", Queries, vectors(5, 3)),
    Entry("fourier", Fourier, vectors(8, 1)),
]
