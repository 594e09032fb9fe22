"""Residual streams are found in models as they come, with what every branch ends with; what has none is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_dmft.architecture import Part, Stream
from torch_dmft.core.errors import UnsupportedModelError
from torch_dmft.uses.outputs import Runs
from torch_dmft.uses.streams import streams_of

TOKENS = torch.arange(12, device="cpu").reshape(2, 6)
SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 50}
IDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


def streams(model: nn.Module, inputs: Any) -> tuple[Stream, ...]:
    run = Runs(model.eval(), lambda out: (out if isinstance(out, Tensor) else out[0]).flatten(1))
    return streams_of(model, run, inputs)


def kinds(stream: Stream, part: Part) -> set[str]:
    return {re.sub(r"\d+", "*", name) for name, own in stream.parts.items() if own is part}


def gpt2() -> tuple[nn.Module, Any]:
    import transformers

    config = transformers.GPT2Config(n_embd=32, n_layer=3, n_head=4, vocab_size=50, n_positions=16, **IDS)
    return transformers.GPT2LMHeadModel(config), {"input_ids": TOKENS}


def hugging(name: str, **settings: Any) -> Callable[[], tuple[nn.Module, Any]]:
    def build() -> tuple[nn.Module, Any]:
        import transformers

        config = getattr(transformers, f"{name.split('For')[0]}Config")(**SMALL, **settings)
        return getattr(transformers, name)(config), {"input_ids": TOKENS}

    return build


def t5() -> tuple[nn.Module, Any]:
    import transformers

    config = transformers.T5Config(
        d_model=32, d_kv=8, d_ff=64, num_layers=3, num_decoder_layers=2, num_heads=4, vocab_size=50
    )
    return transformers.T5ForConditionalGeneration(config), {"input_ids": TOKENS, "decoder_input_ids": TOKENS}


def image(model: str, size: int = 64, **settings: Any) -> Callable[[], tuple[nn.Module, Any]]:
    def build() -> tuple[nn.Module, Any]:
        import torchvision

        return getattr(torchvision.models, model)(**settings), torch.zeros(2, 3, size, size, device="cpu")

    return build


FOUND = {
    "GPT-2": (gpt2, [6], {"transformer.h.*.attn.c_proj.weight", "transformer.h.*.mlp.c_proj.weight"}),
    "Llama": (
        hugging("LlamaForCausalLM", num_key_value_heads=2),
        [6],
        {"model.layers.*.self_attn.o_proj.weight", "model.layers.*.mlp.down_proj.weight"},
    ),
    "GPT-NeoX, attention and MLP in one branch": (
        hugging("GPTNeoXForCausalLM"),
        [3],
        {"gpt_neox.layers.*.attention.dense.weight", "gpt_neox.layers.*.mlp.dense_*h_to_h.weight"},
    ),
    "Mixtral": (
        hugging("MixtralForCausalLM", num_key_value_heads=2, num_local_experts=4),
        [6],
        {"model.layers.*.self_attn.o_proj.weight", "model.layers.*.mlp.experts.down_proj"},
    ),
    "BERT": (
        hugging("BertForSequenceClassification"),
        [6],
        {"bert.encoder.layer.*.attention.output.dense.weight", "bert.encoder.layer.*.output.dense.weight"},
    ),
    "T5, two streams": (t5, [6, 6], {"encoder.block.*.layer.*.SelfAttention.o.weight"}),
    "ViT": (
        image(
            "VisionTransformer", 16, image_size=16, patch_size=4, num_layers=3, num_heads=4, hidden_dim=32, mlp_dim=64
        ),
        [6],
        {"encoder.layers.encoder_layer_*.self_attention.out_proj.weight"},
    ),
    "ResNet, norms and projected skips": (image("resnet18"), [8], {"layer*.*.bn*.weight", "layer*.*.bn*.bias"}),
    "ConvNeXt, layer scales": (image("convnext_tiny"), [18], {"features.*.*.layer_scale"}),
    "EfficientNet": (image("efficientnet_b0"), [9], {"features.*.*.block.*.*.weight"}),
}


@pytest.mark.parametrize(("build", "branches", "ends"), FOUND.values(), ids=FOUND)
def test_branches_and_what_they_end_with(build, branches, ends) -> None:
    model, inputs = build()
    found = streams(model, inputs)
    assert sorted(stream.branches for stream in found) == branches
    assert ends <= kinds(found[0], Part.END)
    ended = [name for stream in found for name, part in stream.parts.items() if part is Part.END]
    assert len([name for name in ended if not name.endswith("bias")]) >= sum(branches)


def test_norms_on_the_stream_are_between_branches_but_for_the_last() -> None:
    (found,) = streams(*hugging("BertForSequenceClassification")())
    names = {name for name, part in found.parts.items() if part is Part.BETWEEN and name.endswith("weight")}
    norms = [f"bert.encoder.layer.{k}.{where}output.LayerNorm.weight" for k in range(3) for where in ("attention.", "")]
    assert names == set(norms[:-1])


def test_a_table_that_branches_share() -> None:
    encoder, decoder = streams(*t5())
    assert encoder.shared == {"encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": 3}
    assert decoder.shared == {"decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": 2}
    assert kinds(decoder, Part.END) >= {"decoder.block.*.layer.*.EncDecAttention.o.weight"}
    assert kinds(decoder, Part.INSIDE) >= {"decoder.block.*.layer.*.EncDecAttention.k.weight"}


def test_projected_skips_are_outside_of_branches() -> None:
    (found,) = streams(*image("resnet18")())
    assert not any("downsample" in name for name in found.parts)


class Body(nn.Module):
    """Three branches of some form."""

    def __init__(self, inside: Callable[..., Tensor], count: int = 3, **parameters: Callable[[], Any]) -> None:
        super().__init__()
        self.stem, self.head, self.inside = nn.Linear(5, 16), nn.Linear(16, 2), inside
        self.blocks = nn.ModuleList(nn.Module() for _ in range(count))
        for block in self.blocks:
            for name, build in parameters.items():
                setattr(block, name, build())

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = self.inside(block, h)
        return self.head(h)


def square() -> nn.Linear:
    return nn.Linear(16, 16)


def ones() -> nn.Parameter:
    return nn.Parameter(torch.ones(16, device="cpu"))


WRITTEN: dict[str, tuple[Callable[..., Tensor], dict[str, Callable[[], Any]], set[str]]] = {
    "a weight": (lambda m, h: h + m.w(torch.tanh(h)), {"w": square}, {"w.weight", "w.bias"}),
    "in place": (lambda m, h: h.clone().add_(m.w(torch.tanh(h))), {"w": square}, {"w.weight", "w.bias"}),
    "ReLU behind it": (lambda m, h: h + F.relu(m.w(h)), {"w": square}, {"w.weight", "w.bias"}),
    "a bias by hand": (lambda m, h: h + (h @ m.w.weight.T + m.b), {"w": square, "b": ones}, {"w.weight", "b"}),
    "a layer scale": (lambda m, h: h + m.s * torch.tanh(m.w(h)), {"w": square, "s": ones}, {"s"}),
    "an RMS norm by hand": (
        lambda m, h: h + m.s * ((y := m.w(h)) * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6)),
        {"w": square, "s": ones},
        {"s"},
    ),
    "a gate": (
        lambda m, h: h + torch.sigmoid(m.g(h)) * m.w(torch.tanh(h)),
        {"w": square, "g": square},
        {"w.weight", "w.bias"},
    ),
    "two branches in two sums": (
        lambda m, h: h + m.w(torch.tanh(h)) + m.g(torch.relu(h)),
        {"w": square, "g": square},
        {"w.weight", "w.bias", "g.weight", "g.bias"},
    ),
    "an activation by hand": (
        lambda m, h: h + m.w((y := m.g(h)) * (1 + torch.tanh(y + 0.04 * y**3))),
        {"w": square, "g": square},
        {"w.weight", "w.bias"},
    ),
}


@pytest.mark.parametrize(("inside", "parameters", "ends"), WRITTEN.values(), ids=WRITTEN)
def test_branches_written_by_hand(inside, parameters, ends, generator) -> None:
    model = Body(inside, **parameters)
    (found,) = streams(model, torch.randn(4, 5, generator=generator))
    assert kinds(found, Part.END) == {f"blocks.*.{name}" for name in ends}
    assert found.branches == (6 if "two branches" in next(k for k, v in WRITTEN.items() if v[0] is inside) else 3)


def nested(m: nn.Module, h: Tensor) -> Tensor:
    inner = h + m.w(torch.tanh(h))
    return h + m.g(torch.tanh(inner))


def packed(m: nn.Module, h: Tensor) -> Tensor:
    left, right = m.w(h).chunk(2, -1)
    return h + torch.cat([left, right * torch.sigmoid(left.mean())], -1)


REFUSED: dict[str, tuple[Callable[..., Tensor], dict[str, Callable[[], Any]], str]] = {
    "no sums": (lambda m, h: torch.tanh(m.w(h)), {"w": square}, r"\(model\): no residual branch was found"),
    "tanh at the end": (
        lambda m, h: h + torch.tanh(m.w(h)),
        {"w": square},
        r"ends with the function Tanh, .* end the branch with a weight",
    ),
    "a norm without a gain at the end": (
        lambda m, h: h + F.layer_norm(m.w(h), (16,)),
        {"w": square},
        r"ends with the function NativeLayerNorm",
    ),
    "the stream itself": (lambda m, h: h + (m.w(h) - h), {"w": square}, r"features of the stream itself"),
    "branches in branches": (nested, {"w": square, "g": square}, r"holds residual branches of its own"),
    "the last weight twice": (
        lambda m, h: h + m.w(torch.tanh(m.w(h))),
        {"w": square},
        r"blocks.0.w.*is used elsewhere|used in several places",
    ),
    "a part of the last weight elsewhere": (packed, {"w": square}, r"what ends a residual branch is used elsewhere"),
}


@pytest.mark.parametrize(("inside", "parameters", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_scaled_is_refused(inside, parameters, message, generator) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        streams(Body(inside, **parameters), torch.randn(4, 5, generator=generator))


def test_one_weight_for_all_branches_is_refused(generator) -> None:
    model = Body(lambda m, h: h + m.w(torch.tanh(h)), w=square)
    for block in model.blocks:
        block.w = model.blocks[0].w
    with pytest.raises(UnsupportedModelError, match=r"ends a branch and is used in several places"):
        streams(model, torch.randn(4, 5, generator=generator))


def test_a_frozen_end_is_refused(generator) -> None:
    model = Body(lambda m, h: h + m.w(torch.tanh(h)), w=square)
    model.blocks[1].w.weight.requires_grad_(False)
    with pytest.raises(UnsupportedModelError, match=r"blocks.1.w.weight: it ends a residual branch and is frozen"):
        streams(model, torch.randn(4, 5, generator=generator))


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
def test_steps_in_time_are_no_branches(cell) -> None:
    with pytest.raises(UnsupportedModelError):
        streams(cell(5, 16, batch_first=True), torch.zeros(2, 4, 5, device="cpu"))
