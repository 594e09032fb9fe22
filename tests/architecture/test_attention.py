"""Attention is understood where it has an infinite-width limit, and refused with a reason and a remedy where it has none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.transformer import FEATURES, HEADS, TOKENS, Transformer
from torch_dmft.architecture import DotProduct, Role, describe
from torch_dmft.core.errors import UnsupportedModelError

WIDTH, HEAD = 16, 8


class Attends(nn.Module):
    """Stem, any way to attend with the projections q, k and v of ``sizes``, mean over tokens, readout."""

    def __init__(self, attend: Callable[[nn.Module, Tensor], Tensor], *sizes: int) -> None:
        super().__init__()
        self.stem = nn.Linear(FEATURES, WIDTH)
        self.q, self.k, self.v = (nn.Linear(WIDTH, size) for size in sizes or (WIDTH,) * 3)
        self.out, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
        self.attend = attend

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.out(self.attend(self, self.stem(x))).mean(1))


class Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv = nn.Linear(FEATURES, WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(self.stem(x)).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1 / q.shape[-1])
        return self.head(mixed.transpose(1, 2).flatten(2).mean(1))


def heads(model: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    return tuple(layer(x).view(len(x), TOKENS, HEADS, -1).transpose(1, 2) for layer in (model.q, model.k, model.v))


def merge(x: Tensor) -> Tensor:
    return x.transpose(1, 2).reshape(len(x), TOKENS, -1)


def by_hand(model: nn.Module, x: Tensor) -> Tensor:
    q, k, v = heads(model, x)
    causal = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
    scores = (q @ k.transpose(-2, -1) / q.size(-1)).masked_fill(~causal, -torch.inf)
    return merge(scores.softmax(-1) @ v)


def factor_ahead(model: nn.Module, x: Tensor) -> Tensor:
    q, k, v = heads(model, x)
    return merge((((q * HEAD**-0.5) @ (k / HEAD**0.5).mT) + torch.eye(TOKENS)).softmax(-1) @ v)


def by_einsum(model: nn.Module, x: Tensor) -> Tensor:
    q, k, v = (layer(x).unflatten(-1, (HEADS, -1)) for layer in (model.q, model.k, model.v))
    weights = torch.softmax(torch.einsum("bqhd,bkhd->bhqk", q, k) * torch.tensor(1 / HEAD), dim=-1)
    return torch.einsum("...hqk,...khd->...qhd", weights, v).flatten(2)


def masked(model: nn.Module, x: Tensor) -> Tensor:
    q, k, v = heads(model, x)
    mask = torch.zeros(TOKENS, TOKENS)
    return merge(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1 / HEAD))


def folded(model: nn.Module, x: Tensor) -> Tensor:
    q, k, v = (part.reshape(-1, TOKENS, HEAD) for part in heads(model, x))
    return merge(torch.bmm((torch.bmm(q, k.mT) / HEAD).softmax(-1), v).view(len(x), HEADS, TOKENS, HEAD))


@pytest.mark.parametrize("attend", [by_hand, factor_ahead, by_einsum, masked])
def test_scores_over_d_are_dot_products_of_one_width(attend: Callable[[nn.Module, Tensor], Tensor]) -> None:
    found = describe(Attends(attend), torch.randn(3, TOKENS, FEATURES))
    (product,) = found.dot_products
    assert (product.path, product.size, product.factor) == ("", HEAD, pytest.approx(1 / HEAD))
    assert product.scale == pytest.approx(1)
    assert found.has_parts
    roles = {layer.path: layer.role for layer in found.layers}
    assert roles == {"stem": Role.INPUT, **dict.fromkeys("qkv", Role.HIDDEN), "out": Role.HIDDEN, "head": Role.READOUT}
    q, k, v, out = (layer for layer in found.layers if layer.role is Role.HIDDEN)
    assert q.out_axis == k.out_axis  # neurons that meet in scores are drawn together
    assert q.out_axis != v.out_axis
    assert v.out_axis == out.in_axis  # heads side by side are the width that was split


def test_a_whole_encoder() -> None:
    found = describe(Transformer(WIDTH, blocks=2), torch.randn(3, TOKENS, FEATURES))
    paths = [f"blocks.{block}.attention" for block in (0, 1)]
    assert found.dot_products == tuple(
        DotProduct(path, "scaled_dot_product_attention", HEAD, 1 / HEAD) for path in paths
    )
    assert {vector.axis for vector in found.vectors} == {found.layers[0].out_axis}
    assert found.row_independent
    assert not found.is_chain


@pytest.mark.parametrize("model", [Fused(), Attends(folded)], ids=["one projection for q, k and v", "heads as samples"])
def test_axes_that_were_cut_in_other_ways_are_derived(model: nn.Module) -> None:
    found = describe(model, torch.randn(3, TOKENS, FEATURES))
    assert [product.scale for product in found.dot_products] == [1.0]
    assert found.layers[-2].out_axis is not None


SIZE = 4


def growing(model: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    return tuple(layer(x).unflatten(-1, (-1, SIZE)).transpose(1, 2) for layer in (model.q, model.k, model.v))


def of_fixed_size(model: nn.Module, x: Tensor) -> Tensor:
    return merge(F.scaled_dot_product_attention(*growing(model, x), is_causal=True))


def of_fixed_size_by_hand(model: nn.Module, x: Tensor) -> Tensor:
    q, k, v = growing(model, x)
    return merge((q @ k.mT / SIZE**0.5).softmax(-1) @ v)


def of_fixed_size_by_view(model: nn.Module, x: Tensor) -> Tensor:
    q, k, v = (layer(x).view(len(x), TOKENS, -1, SIZE) for layer in (model.q, model.k, model.v))
    weights = torch.einsum("bqhd,bkhd->bhqk", 0.3 * q, k).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v).reshape(len(x), TOKENS, -1)


@pytest.mark.parametrize("attend", [of_fixed_size, of_fixed_size_by_hand, of_fixed_size_by_view])
def test_heads_of_a_fixed_size_grow_in_number(attend: Callable[[nn.Module, Tensor], Tensor]) -> None:
    """Scores are sums over a fixed number of neurons, whatever their factor; heads side by side are the width again."""
    found = describe(Attends(attend), torch.randn(3, TOKENS, FEATURES))
    assert not found.dot_products
    assert set(found.parts) == {WIDTH // SIZE}
    q, k, v, out = (layer for layer in found.layers if layer.role is Role.HIDDEN)
    assert {q.out_axis, k.out_axis, v.out_axis} == {out.in_axis}  # the neurons of one head
    assert out.in_axis != out.out_axis


def of_a_stored_number(model: nn.Module, x: Tensor) -> Tensor:
    samples, tokens, width = x.shape
    q, k, v = (
        layer(x).view(samples, tokens, HEADS, width // HEADS).transpose(1, 2) for layer in (model.q, model.k, model.v)
    )
    mixed = ((q @ k.mT) / q.shape[-1]).softmax(-1) @ v
    return mixed.transpose(1, 2).contiguous().view(samples, tokens, width)


def of_a_stored_size(model: nn.Module, x: Tensor) -> Tensor:
    _, tokens, width = x.shape
    q, k, v = (
        layer(x).reshape(-1, tokens, width // SIZE, SIZE).transpose(1, 2) for layer in (model.q, model.k, model.v)
    )
    return merge(((q @ k.mT) / SIZE**0.5).softmax(-1) @ v)


@pytest.mark.parametrize(("attend", "scores", "part"), [(of_a_stored_number, 1, 8), (of_a_stored_size, 0, 4)])
def test_a_copy_at_another_width_tells_which_axis_grows(attend, scores: int, part: int) -> None:
    """Both numbers are given to a reshape, and one of them is computed in forward."""
    found = describe(Attends(attend), torch.randn(3, TOKENS, FEATURES))
    assert len(found.dot_products) == scores
    assert set(found.parts) == {part}
    q, k, v, out = (layer for layer in found.layers if layer.role is Role.HIDDEN)
    assert q.out_axis == k.out_axis
    assert v.out_axis == out.in_axis
    assert (q.out_axis == v.out_axis) is (scores == 0)


def test_a_packed_projection_of_heads_of_a_fixed_size() -> None:
    class Packed(Attends):
        def __init__(self) -> None:
            super().__init__(lambda model, x: model.mix(model.qkv(x)))
            self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
            del self.q, self.k, self.v

        def mix(self, packed: Tensor) -> Tensor:
            q, k, v = packed.view(*packed.shape[:2], 3, -1, SIZE).permute(2, 0, 3, 1, 4)
            return merge(F.scaled_dot_product_attention(q, k, v))

    found = describe(Packed(), torch.randn(3, TOKENS, FEATURES))
    assert {layer.path: layer.role for layer in found.layers}["qkv"] is Role.HIDDEN
    assert not found.dot_products


def test_a_factor_of_the_width_is_no_factor_of_the_size() -> None:
    def attend(model: nn.Module, x: Tensor) -> Tensor:
        q, k, v = growing(model, x)
        return merge((q @ k.mT / model.q.out_features**0.5).softmax(-1) @ v)

    with pytest.raises(UnsupportedModelError, match=r"multiplied by 0\.25, but at another width 0\.125"):
        describe(Attends(attend), torch.randn(3, TOKENS, FEATURES))


def test_norms_of_queries_and_keys_act_on_the_width_of_a_head() -> None:
    class Normed(Attends):
        def __init__(self) -> None:
            super().__init__(lambda model, x: merge(model.mix(*heads(model, x))))
            self.norm_q, self.norm_k = nn.RMSNorm(HEAD), nn.LayerNorm(HEAD)

        def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k = self.norm_q(q), self.norm_k(k)
            return F.scaled_dot_product_attention(q, k, v, scale=1 / HEAD, is_causal=True)

    found = describe(Normed(), torch.randn(3, TOKENS, FEATURES))
    assert [vector.size for vector in found.vectors] == [HEAD] * 3
    assert len({vector.axis for vector in found.vectors} - {None}) == 1
    assert len(found.dot_products) == 1


def test_norms_of_heads_of_a_fixed_size_have_gains_that_are_no_width() -> None:
    """All heads share their few gains, whose rate is not that of one number per neuron."""

    class Normed(Attends):
        def __init__(self, *, affine: bool) -> None:
            super().__init__(lambda model, x: merge(model.mix(*growing(model, x))))
            self.norm = nn.LayerNorm(SIZE, elementwise_affine=affine)

        def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(self.norm(q), self.norm(k), v)

    assert not describe(Normed(affine=False), torch.randn(3, TOKENS, FEATURES)).vectors
    with pytest.raises(UnsupportedModelError, match=r"norm: its gain and shift act on features of .* one head, not on"):
        describe(Normed(affine=True), torch.randn(3, TOKENS, FEATURES))


def test_attention_over_data_features_needs_no_scale() -> None:
    class Pools(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(FEATURES, WIDTH), nn.Linear(WIDTH, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.scaled_dot_product_attention(x, x, self.stem(x)).mean(1))

    found = describe(Pools(), torch.randn(3, TOKENS, FEATURES))
    assert not found.dot_products
    assert [layer.role for layer in found.layers] == [Role.INPUT, Role.READOUT]


def scaled(scale: float | None, **options: object) -> Callable[[nn.Module, Tensor], Tensor]:
    def attend(model: nn.Module, x: Tensor) -> Tensor:
        q, k, v = heads(model, x)
        return merge(F.scaled_dot_product_attention(q, k, v, scale=scale, **options))

    return attend


def written(power: float) -> Callable[[nn.Module, Tensor], Tensor]:
    def attend(model: nn.Module, x: Tensor) -> Tensor:
        q, k, v = heads(model, x)
        return merge(((q @ k.mT) / q.shape[-1] ** power).softmax(-1) @ v)

    return attend


def half_ahead(model: nn.Module, x: Tensor) -> Tensor:
    q, k, v = heads(model, x)
    return merge((HEAD**-0.5 * q @ k.mT).softmax(-1) @ v)


def mask_before_scale(model: nn.Module, x: Tensor) -> Tensor:
    q, k, v = heads(model, x)
    return merge(((q @ k.mT + torch.eye(TOKENS)) / HEAD).softmax(-1) @ v)


def explicit_sizes(model: nn.Module, x: Tensor) -> Tensor:
    q, k, v = (layer(x).view(-1, TOKENS, HEADS, HEAD).transpose(1, 2) for layer in (model.q, model.k, model.v))
    return merge(F.scaled_dot_product_attention(q, k, v, scale=1 / HEAD))


def sizes_of_both(model: nn.Module, x: Tensor) -> Tensor:
    q, k, v = (layer(x).unflatten(-1, (HEADS, HEAD)).transpose(1, 2) for layer in (model.q, model.k, model.v))
    return merge(F.scaled_dot_product_attention(q, k, v, scale=1 / HEAD))


def grouped_and_growing(model: nn.Module, x: Tensor) -> Tensor:
    q = model.q(x).unflatten(-1, (-1, 2, 4))
    k, v = (layer(x).unflatten(-1, (-1, 4)) for layer in (model.k, model.v))
    weights = torch.einsum("bighd,bjgd->bghij", q, k).softmax(-1)
    return torch.einsum("bghij,bjgd->bighd", weights, v).flatten(2)


def across_samples(model: nn.Module, x: Tensor) -> Tensor:
    q, k, v = (layer(x).transpose(0, 1) for layer in (model.q, model.k, model.v))
    return F.scaled_dot_product_attention(q, k, v, scale=1 / WIDTH).transpose(0, 1)


def outer(model: nn.Module, x: Tensor) -> Tensor:
    q, k, v = heads(model, x)
    return merge(q @ (k.mT @ v) / HEAD)


def grouped(model: nn.Module, x: Tensor) -> Tensor:
    q = model.q(x).unflatten(-1, (4, -1)).transpose(1, 2)
    k, v = (layer(x).unflatten(-1, (2, -1)).transpose(1, 2).repeat_interleave(2, 1) for layer in (model.k, model.v))
    return merge(F.scaled_dot_product_attention(q, k, v, scale=1 / q.shape[-1]))


def one_key_for_all_heads(model: nn.Module, x: Tensor) -> Tensor:
    q = model.q(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
    k, v = model.k(x)[:, None], model.v(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
    return merge(F.scaled_dot_product_attention(q, k, v, scale=1 / q.shape[-1]))


@pytest.mark.parametrize(
    ("attend", "sizes", "scores"),
    [
        (grouped_and_growing, (WIDTH, HEAD, HEAD), 0),
        (grouped, (WIDTH, HEAD, HEAD), 1),
        (one_key_for_all_heads, (WIDTH, HEAD, WIDTH), 1),
    ],
)
def test_queries_may_share_keys(attend, sizes: tuple[int, ...], scores: int) -> None:
    """Widths of different size scale together, and what is drawn for their neurons is independent."""
    found = describe(Attends(attend, *sizes), torch.randn(3, TOKENS, FEATURES))
    assert found.shares_parts
    assert len(found.dot_products) == scores
    q, k, _, _ = (layer for layer in found.layers if layer.role is Role.HIDDEN)
    assert q.out_axis != k.out_axis
    assert not describe(Attends(by_hand), torch.randn(3, TOKENS, FEATURES)).shares_parts


@pytest.mark.parametrize(
    ("attend", "sizes", "message"),
    [
        (scaled(None), (), r"over a width, here 8 neurons, is divided by its square root.*scale=1 / q\.shape\[-1\]"),
        (scaled(HEAD**-0.5), (), "square root"),
        (scaled(1.0), (), "is not divided by it"),
        (scaled(1 / HEAD, dropout_p=0.1), (), "`scaled_dot_product_attention` on features cannot be followed"),
        (written(0.5), (), "`matmul` over a width, here 8 neurons, is divided by its square root"),
        (written(0.0), (), "`matmul` over a width, here 8 neurons, is not divided"),
        (half_ahead, (), "square root"),
        (mask_before_scale, (), "is not divided by it"),
        (explicit_sizes, (), r"`view` splits a width.*view\(batch, tokens, heads, -1\)"),
        (
            sizes_of_both,
            (),
            r"`unflatten` splits a width.*unflatten\(-1, \(heads, -1\)\).*unflatten\(-1, \(-1, size\)\)",
        ),
        (across_samples, (), r"cannot be followed.*within a sample"),
        (outer, (), "`matmul` on features cannot be followed"),
    ],
)
def test_what_has_no_limit_or_no_rule_is_refused(attend, sizes: tuple[int, ...], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        describe(Attends(attend, *sizes), torch.randn(3, TOKENS, FEATURES))


@pytest.mark.parametrize("module", [nn.MultiheadAttention(WIDTH, HEADS), nn.TransformerEncoderLayer(WIDTH, HEADS)])
def test_torch_s_own_attention_is_refused_with_a_remedy(module: nn.Module) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.mix, self.head = nn.Linear(FEATURES, WIDTH), module, nn.Linear(WIDTH, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = self.stem(x)
            return self.head(self.mix(h, h, h)[0] if isinstance(module, nn.MultiheadAttention) else self.mix(h))

    with pytest.raises(UnsupportedModelError, match=r"divides scores by sqrt\(d\).*scale=1 / q\.shape\[-1\]"):
        describe(Model(), torch.randn(3, TOKENS, FEATURES))
