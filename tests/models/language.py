"""Models of transformers, from small configurations and random weights: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tests.models.entry import Model, Width, at_scale, images, tokens

_V = 40
_SIZES: dict[str, Any] = {
    "vocab_size": _V,
    "hidden_size": Width(32),
    "intermediate_size": Width(48),
    "num_hidden_layers": 2,
    "num_attention_heads": Width(4),
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GPT2: dict[str, Any] = {"n_embd": Width(32), "n_layer": 2, "n_positions": 32}
_CODEGEN = {"hidden_size": Width(64), "num_attention_heads": Width(8), "n_positions": 32, "rotary_dim": 4}
_KEYS = {"num_key_value_heads": Width(2), "head_dim": 8}


def _last(out: Any) -> Tensor:
    return out.logits[:, -1, :2]


def _logits(out: Any) -> Tensor:
    return out.logits


def _made(config: str, model: str, **settings: Any) -> Callable[[int], nn.Module]:
    def build(scale: int) -> nn.Module:
        import transformers

        made: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**at_scale(settings, scale)))
        return made

    return build


def _decoder(name: str, variant: str = "", head: str = "ForCausalLM", **settings: Any) -> Model:
    build = _made(f"{name}Config", f"{name}{head}", **{**_SIZES, "tie_word_embeddings": False, **settings})
    return Model("transformers", f"{name}{head}{variant}", build, tokens(), _last)


def _encoder(name: str, variant: str = "", head: str = "ForSequenceClassification", **settings: Any) -> Model:
    build = _made(f"{name}Config", f"{name}{head}", **{**_SIZES, "num_labels": 1, **settings})
    return Model("transformers", f"{name}{head}{variant}", build, tokens(), _logits)


def _untied(entry: Model) -> Model:
    """A model whose configuration ties its readout to its embedding, with a readout of its own."""

    def build(scale: int) -> nn.Module:
        model: Any = entry.build(scale)
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
        return model

    return replace(entry, name=f"{entry.name}, untied", build=build)


def _both(name: str, **settings: Any) -> Model:
    def draw(samples: int) -> dict[str, Tensor]:
        return {**tokens()(samples), "decoder_input_ids": torch.randint(3, _V, (samples, 4))}

    build = _made(f"{name}Config", f"{name}ForConditionalGeneration", **settings)
    return Model("transformers", f"{name}ForConditionalGeneration", build, draw, _last)


_BART: dict[str, Any] = {
    "vocab_size": _V,
    "d_model": Width(32),
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": Width(4),
    "decoder_attention_heads": Width(4),
    "encoder_ffn_dim": Width(48),
    "decoder_ffn_dim": Width(48),
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "tie_word_embeddings": False,
}
_T5: dict[str, Any] = {
    "vocab_size": _V,
    "d_model": Width(32),
    "d_kv": 8,
    "d_ff": Width(48),
    "num_layers": 1,
    "num_decoder_layers": 1,
    "num_heads": Width(4),
    "decoder_start_token_id": 0,
    "tie_word_embeddings": False,
}


def _pixels(size: int = 16) -> Callable[[int], dict[str, Tensor]]:
    return lambda samples: {"pixel_values": images(size)(samples)}


def _vision(name: str, variant: str = "", *, size: int = 16, **settings: Any) -> Model:
    build = _made(f"{name}Config", f"{name}ForImageClassification", **{"num_labels": 1, **settings})
    return Model("transformers", f"{name}ForImageClassification{variant}", build, _pixels(size), _logits)


_VIT: dict[str, Any] = {
    "hidden_size": Width(32),
    "intermediate_size": Width(48),
    "num_hidden_layers": 2,
    "num_attention_heads": Width(4),
    "image_size": 16,
    "patch_size": 4,
}
_WAVES: dict[str, Any] = {
    "hidden_size": Width(32),
    "intermediate_size": Width(48),
    "num_hidden_layers": 1,
    "num_attention_heads": Width(4),
    "conv_dim": (Width(8), Width(8)),
    "conv_stride": (3, 2),
    "conv_kernel": (5, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": Width(16),
    "num_labels": 1,
    "mask_time_prob": 0.0,
    "layerdrop": 0.0,
}


def _waves(samples: int) -> dict[str, Tensor]:
    return {"input_values": torch.randn(samples, 120, dtype=torch.float64)}


def _mel(samples: int) -> dict[str, Tensor]:
    ids = torch.randint(3, _V, (samples, 3))
    return {"input_features": torch.randn(samples, 8, 16, dtype=torch.float64), "decoder_input_ids": ids}


def _pairs(samples: int) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(3, _V, (samples, 6)), "pixel_values": images(16)(samples)}


MODELS = [
    _decoder("GPT2", head="LMHeadModel", **_GPT2),
    _decoder("GPT2", ", heads that grow", "LMHeadModel", **_GPT2, num_attention_heads=4),
    _decoder("GPT2", ", tied", "LMHeadModel", **_GPT2, tie_word_embeddings=True),
    _decoder("GPTNeo", num_layers=2, num_heads=Width(4), attention_types=[[["global", "local"], 1]], window_size=4),
    _decoder("GPTNeoX"),
    _decoder("GPTJ", n_embd=Width(32), n_layer=2, n_head=Width(4), n_positions=32, rotary_dim=4),
    _decoder("GPTBigCode", n_embd=Width(32), n_layer=2, n_head=Width(4), n_positions=32),
    _decoder("OPT", ffn_dim=Width(48), word_embed_proj_dim=Width(32)),
    _decoder("Bloom", n_layer=2, n_head=Width(4)),
    _decoder("Falcon"),
    _decoder("CodeGen", **_CODEGEN),
    _decoder("Llama", **_KEYS),
    _decoder("Llama", ", heads that grow", num_attention_heads=4, num_key_value_heads=2, head_dim=Width(8)),
    _decoder("Mistral", **_KEYS, sliding_window=4),
    _decoder("Mixtral", **_KEYS, num_local_experts=3, experts_implementation="eager"),
    _decoder("Qwen2", num_key_value_heads=Width(2)),
    _decoder("Qwen3", **_KEYS),
    _decoder(
        "Qwen2Moe",
        num_key_value_heads=Width(2),
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=Width(16),
        shared_expert_intermediate_size=Width(16),
        experts_implementation="eager",
    ),
    _decoder("Gemma", **_KEYS),
    _decoder("Gemma2", **_KEYS, sliding_window=4),
    _decoder("Phi"),
    _decoder("Phi3", num_key_value_heads=Width(2)),
    _decoder("StableLm", num_key_value_heads=Width(2)),
    _decoder("Olmo", num_key_value_heads=Width(2)),
    _decoder("Olmo2", num_key_value_heads=Width(2)),
    _decoder("Cohere", num_key_value_heads=Width(2)),
    _decoder("Granite", num_key_value_heads=Width(2)),
    _decoder("Starcoder2", num_key_value_heads=Width(2)),
    _decoder("Mamba", state_size=4, intermediate_size=Width(64)),
    _decoder("Rwkv", attention_hidden_size=Width(32), context_length=32),
    _encoder("Bert"),
    _encoder("Bert", ", heads that grow", num_attention_heads=4),
    _encoder("Roberta"),
    _encoder("Albert", embedding_size=16, num_hidden_groups=1),
    _encoder("DistilBert", dim=Width(32), n_layers=2, n_heads=Width(4), hidden_dim=Width(48)),
    _encoder("Electra", embedding_size=Width(16)),
    _encoder("MPNet"),
    _encoder("DebertaV2", relative_attention=True, pos_att_type=["p2c", "c2p"]),
    Model(
        "transformers",
        "XLNetForSequenceClassification",
        _made(
            "XLNetConfig",
            "XLNetForSequenceClassification",
            vocab_size=_V,
            d_model=Width(32),
            n_layer=2,
            n_head=Width(4),
            d_inner=Width(48),
            num_labels=1,
        ),
        tokens(),
        _logits,
    ),
    _encoder("ConvBert", embedding_size=Width(16)),
    _encoder("MobileBert", embedding_size=Width(16), intra_bottleneck_size=Width(16), true_hidden_size=Width(16)),
    _encoder("RemBert", input_embedding_size=16, output_embedding_size=16),
    _encoder("ModernBert", local_attention=4),
    _encoder("SqueezeBert", embedding_size=Width(32)),
    Model(
        "transformers",
        "FNetForSequenceClassification",
        _made("FNetConfig", "FNetForSequenceClassification", **{**_SIZES, "num_labels": 1}),
        tokens(masked=False),
        _logits,
    ),
    _both("T5", **_T5),
    _untied(_both("T5", **_T5)),
    _both("Bart", **_BART),
    _both("Pegasus", **_BART),
    _both("MBart", **_BART),
    _vision("ViT", **_VIT),
    _vision("ViT", ", heads that grow", **{**_VIT, "num_attention_heads": 4}),
    _vision("DeiT", **_VIT),
    _vision("Beit", **_VIT, use_relative_position_bias=True, layer_scale_init_value=0.1),
    _vision("Dinov2", **_VIT),
    _vision("ConvNext", hidden_sizes=[Width(8), Width(16)], depths=[1, 1], num_stages=2),
    _vision("ResNet", embedding_size=Width(8), hidden_sizes=[Width(8), Width(16)], depths=[1, 1]),
    _vision("Swin", embed_dim=Width(16), depths=[2], num_heads=[Width(2)], window_size=2, image_size=16, patch_size=4),
    _vision(
        "Segformer",
        size=32,
        hidden_sizes=[Width(8), Width(16)],
        depths=[1, 1],
        num_encoder_blocks=2,
        num_attention_heads=[Width(2), Width(2)],
        sr_ratios=[2, 1],
        strides=[4, 2],
        patch_sizes=[7, 3],
        mlp_ratios=[2, 2],
    ),
    _vision(
        "PoolFormer",
        size=32,
        hidden_sizes=[Width(8), Width(16)],
        depths=[1, 1],
        num_encoder_blocks=2,
        patch_sizes=[7, 3],
        strides=[4, 2],
        padding=[2, 1],
        mlp_ratio=2.0,
    ),
    Model(
        "transformers",
        "Wav2Vec2ForSequenceClassification",
        _made("Wav2Vec2Config", "Wav2Vec2ForSequenceClassification", **_WAVES),
        _waves,
        _logits,
    ),
    Model(
        "transformers",
        "HubertForSequenceClassification",
        _made("HubertConfig", "HubertForSequenceClassification", **_WAVES),
        _waves,
        _logits,
    ),
    Model(
        "transformers",
        "WhisperForConditionalGeneration",
        _made(
            "WhisperConfig",
            "WhisperForConditionalGeneration",
            **{
                **_BART,
                "num_mel_bins": 8,
                "max_source_positions": 8,
                "max_target_positions": 8,
                "suppress_tokens": [],
                "begin_suppress_tokens": [],
            },
        ),
        _mel,
        _last,
    ),
    Model(
        "transformers",
        "CLIPModel, image embedding",
        _made(
            "CLIPConfig",
            "CLIPModel",
            text_config={**_SIZES, "projection_dim": 8},
            vision_config={**_VIT, "projection_dim": 8},
            projection_dim=8,
        ),
        _pairs,
        lambda out: out.image_embeds[:, :2],
    ),
]
