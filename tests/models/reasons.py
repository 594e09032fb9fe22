"""Why models are refused, or their features do not move alike at every width, where that is known."""

from __future__ import annotations

_PACKED = (
    "queries, keys and values are one weight, and the size of heads grows: the 1/sqrt(d) that is missing has no place"
)
_MADE = "the matrix is made from other parameters, whose sizes do not say its size"
_POSITIONS = (
    "the library draws the biases of positions with 1/sqrt(N), and tables of rows learn in proportion to their size"
)
_DERIVATIVE = "a derivative in the forward pass uses every weight a second time, the other way round"
_CONSTANT = "a weight multiplies a parameter, so that there are no features to see it by"
_EMBEDDED = "the model multiplies its embeddings by sqrt(N)"
_CODE = (
    "gates are codes: they start at zero like 1/sqrt(N), and as long as experts are random their gradients are averages of "
    "independent numbers, which vanish likewise; they learn late"
)
_SCATTER = "at widths as small as these, sizes of features scatter by more than the comparison of two instances allows"
_SHARED = (
    "one weight makes queries, which grow, and the keys and values that all heads share, which do not: as a code they need "
    "smaller entries, for which one rate and one size for the weight leave no room"
)

REASONS: dict[str, str] = {
    "gpt (zoo)": _PACKED,
    "vit (zoo)": _PACKED,
    "sequence first (zoo)": _PACKED,
    "merged lora (zoo)": _MADE,
    "readout (zoo)": "a module of its own divides by sqrt(N) what its weight, whose size is O(1/N), divides already",
    "forces (zoo)": _DERIVATIVE,
    "masked (zoo)": "both inputs of nn.Bilinear are widths",
    "weight norm (zoo)": _MADE,
    "queries (zoo)": "the size of heads grows, and queries are parameters",
    "fourier (zoo)": "complex weights",
    "PINN of a SIREN": _DERIVATIVE,
    "linear attention": "a sum over features that nothing divides: outputs grow with the width",
    "weight standardisation": _MADE,
    "spectral norm": _MADE,
    "orthogonal parametrization": _MADE,
    "nn.Transformer, heads that grow": _PACKED,
    "VisionTransformer, heads that grow": _PACKED,
    "MaxVit": "scores are divided by the root of all features while heads keep their size: attention fades with the width",
    "test_vit3": _CONSTANT,
    "GemmaForCausalLM": _EMBEDDED,
    "Gemma2ForCausalLM": _EMBEDDED,
    "RwkvForCausalLM": "its forward pass divides its weights",
    "DebertaV2ForSequenceClassification": _CONSTANT,
    "T5ForConditionalGeneration": _POSITIONS,
    "Wav2Vec2ForSequenceClassification": _MADE,
    "HubertForSequenceClassification": _MADE,
    "RegNet": _SCATTER,
    "swinv2_tiny_window8_256": _SCATTER,
    "starnet_s1": _SCATTER,
    "MlpMixer": "the mixing of tokens ends in a code of one number for each token, which starts at zero like 1/sqrt(N)",
    "AlbertForSequenceClassification": "embeddings of fixed size: at the start their gradients are averages of independent "
    "numbers, which vanish like 1/sqrt(N)",
    "ElectraForSequenceClassification": "small widths",
    "vit_tiny_patch16_224": "small widths",
    "ViTForImageClassification, heads that grow": "small widths",
    "CLIPModel, image embedding": "outputs are brought to length one, and those of a mean-field network start at zero like "
    "1/sqrt(N): what learns through them has gradients that are larger by the inverse",
    "MixtralForCausalLM": _CODE,
    "Qwen2MoeForCausalLM": _CODE,
    "experts (zoo)": _CODE,
    "GPTBigCodeForCausalLM": _SHARED,
    "lora (zoo)": "a rank that is read by zeros starts with entries 1/sqrt(N), so that layers before it that are trained, too, "
    "move more, the wider the model",
    "T5ForConditionalGeneration, untied": _POSITIONS,
}
"""By the name of the model."""
