"""Why models are refused, or their features do not move alike at every width, where that is known."""

from __future__ import annotations

_MADE = "the matrix is made from other parameters, whose sizes do not say its size"
_POSITIONS = (
    "the library draws the biases of positions with 1/sqrt(N), and tables of rows learn in proportion to their size"
)
_CODE = (
    "gates are codes: they start at zero like 1/sqrt(N), and as long as experts are random their gradients are averages of "
    "independent numbers, which vanish likewise; they learn late"
)
_SHARED = (
    "one weight makes queries, which grow, and the keys and values that all heads share, which do not: as a code they need "
    "smaller entries, for which one rate and one size for the weight leave no room"
)

_BIASES_OF_POSITIONS = (
    "a network of fixed inner size makes the biases of positions of all heads: at the start its gradients are averages of "
    "independent numbers, which vanish like 1/sqrt(N)"
)

REASONS: dict[str, str] = {
    "merged lora (zoo)": _MADE,
    "readout (zoo)": "x / sqrt(N) is added to x squared: no weight could make up for the one and not for the other",
    "masked (zoo)": "both inputs of nn.Bilinear are widths",
    "weight norm (zoo)": _MADE,
    "fourier (zoo)": "complex weights",
    "weight standardisation": _MADE,
    "spectral norm": _MADE,
    "orthogonal parametrization": _MADE,
    "RwkvForCausalLM": "its forward pass divides its weights",
    "T5ForConditionalGeneration": _POSITIONS,
    "Wav2Vec2ForSequenceClassification": _MADE,
    "HubertForSequenceClassification": _MADE,
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
    "SwinTransformer V2": _BIASES_OF_POSITIONS,
    "swinv2_tiny_window8_256": _BIASES_OF_POSITIONS,
    "MlpMixer, gMLP": "the gate of tokens starts at zero, and its gradients are averages of independent numbers over features",
    "MaxVit": "squeeze-and-excitation grows faster at these widths; whether it does at larger ones was not tried",
    "coat_lite_tiny": "not understood: with SGD alone, at widths as small as these",
    "RemBertForSequenceClassification": "embeddings of fixed size, as in ALBERT",
}
"""By the name of the model."""
