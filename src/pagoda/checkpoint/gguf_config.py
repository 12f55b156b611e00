"""What transformers leaves out of the configuration that it makes of a GGUF file, and would be silently wrong without.

Knows keys and tensors of GGUF that change what is computed: sizes of heads and experts, and rotations that are
stretched, by keys or by a tensor of factors. Refuses what no configuration says.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import pi
from typing import Any

from pagoda.checkpoint.gguf_files import GgufModel
from pagoda.checkpoint.gguf_header import GgufTensor
from pagoda.errors import CorruptCheckpointError, UnsupportedModelError

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
LLAMA3_FACTORS, LONG_FACTORS, SHORT_FACTORS = (
    "rope_freqs.weight",
    "rope_factors_long.weight",
    "rope_factors_short.weight",
)
# Tensors that become entries of the configuration.
READ_TENSORS = {LLAMA3_FACTORS, LONG_FACTORS, SHORT_FACTORS}
# By architecture, entries of the configuration that transformers' own table does not fill from these keys.
WIDTHS = {"attention.key_length": "head_dim"}
EXPERTS = {
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}
LEFT_OUT = {
    "gpt2": {"context_length": "n_positions"},
    "llama": WIDTHS,
    "qwen2": WIDTHS,
    "qwen2moe": EXPERTS,
    "qwen3": WIDTHS,
    "qwen3moe": EXPERTS,
    "stablelm": {"rope.freq_base": "rope_theta"},
    "starcoder2": {"rope.freq_base": "rope_theta"},
}
# Those that are not said are none, rather than those of the family's first model.
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Architectures that may rotate a part of each head, whose share transformers guesses.
PARTLY_ROTATED = ("nemotron", "phi3", "stablelm")
# Their largest models scale queries by the width of the model and not of a head, by number of layers.
SCALED_BY_WIDTH = {"gemma2": 46, "gemma3": 62}
# Of llama 3.1 and later, in whose files the factor alone differs.
LLAMA3_LENGTH, LOW_FACTOR, HIGH_FACTOR = 8192, 1.0, 4.0
LLAMA3 = {
    "rope_type": "llama3",
    "low_freq_factor": LOW_FACTOR,
    "high_freq_factor": HIGH_FACTOR,
    "original_max_position_embeddings": LLAMA3_LENGTH,
}
TOLERANCE = 1e-3
MAX_FACTORS = 1 << 12
FLOAT_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def completed(config: Mapping[str, Any], model: GgufModel) -> dict[str, Any]:
    """`config` with what the file says besides, so that it describes the file's network."""
    architecture, header = model.header.architecture, model.header
    left_out = {
        name: header.get(f"{architecture}.{key}")
        for key, name in LEFT_OUT.get(architecture, {}).items()
        if header.get(f"{architecture}.{key}") is not None
    }
    whole = {**dict.fromkeys(TOKENS), **config, **left_out, "dtype": _dtype(model)}
    if EMBEDDING in model.tensors:
        whole["vocab_size"] = model.tensors[EMBEDDING].shape[0]
    heads, width = whole.get("num_attention_heads"), whole.get("hidden_size")
    if SCALED_BY_WIDTH.get(architecture) == whole.get("num_hidden_layers") and heads and width:
        whole["query_pre_attn_scalar"] = width // heads
    rotated = header.get(f"{architecture}.rope.dimension_count")
    if architecture in PARTLY_ROTATED and rotated and heads and width:
        whole["partial_rotary_factor"] = rotated / (whole.get("head_dim") or width // heads)
    scaling = _scaling(whole, model)
    return {**whole, "rope_scaling": scaling} if scaling else whole


def _dtype(model: GgufModel) -> str:
    """The type of matrices that are all stored as plain numbers; numbers of fewer bits are decoded to bf16."""
    stored = {tensor.type_name for tensor in model.tensors.values() if len(tensor.shape) > 1}
    return FLOAT_DTYPES.get(next(iter(stored)), "bfloat16") if len(stored) == 1 else "bfloat16"


def _scaling(config: Mapping[str, Any], model: GgufModel) -> dict[str, Any] | None:
    """How rotations are stretched, as transformers says it; None if they are not."""
    prefix = f"{model.header.architecture}.rope.scaling."
    stated = {key.removeprefix(prefix): model.header.get(key) for key in model.header.fields if key.startswith(prefix)}
    original = stated.get("original_context_length") or config.get("original_max_position_embeddings")
    kind, factor = stated.get("type", "none"), stated.get("factor") or 1.0
    if LLAMA3_FACTORS in model.tensors:
        return _llama3(config, _factors(model.tensors[LLAMA3_FACTORS]), model)
    if LONG_FACTORS in model.tensors and SHORT_FACTORS in model.tensors:
        lists = {
            "long_factor": _factors(model.tensors[LONG_FACTORS]),
            "short_factor": _factors(model.tensors[SHORT_FACTORS]),
        }
        attention = {"attention_factor": stated["attn_factor"]} if "attn_factor" in stated else {}
        return {"rope_type": "longrope", "original_max_position_embeddings": original, **lists, **attention}
    if config.get("rope_scaling"):  # transformers has read it
        return dict(config["rope_scaling"])
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn" and original:
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    raise UnsupportedModelError(
        f"{model.header.file} stretches its rotations by {kind!r:.50}, which is not read from GGUF files; put the "
        "config.json of the model that it was made from beside it."
    )


def _llama3(config: Mapping[str, Any], factors: list[float], model: GgufModel) -> dict[str, Any] | None:
    """The scaling of which these are the factors by which frequencies are divided."""
    if all(factor == 1.0 for factor in factors):
        return None
    scaling = {**LLAMA3, "factor": max(factors)}
    base = config.get("rope_theta", 10_000.0)
    expected = [_llama3_factor(2 * pi * base ** (index / len(factors)), max(factors)) for index in range(len(factors))]
    if any(abs(told - wanted) > TOLERANCE * wanted for told, wanted in zip(factors, expected, strict=True)):
        raise UnsupportedModelError(
            f"{model.header.file} divides its rotations by factors that are not those of Llama 3; put the config.json "
            "of the model that it was made from beside it."
        )
    return scaling


def _llama3_factor(wavelength: float, factor: float) -> float:
    """Waves as long as the original length are stretched by `factor`, a quarter as long by nothing."""
    share = min(max((LLAMA3_LENGTH / wavelength - LOW_FACTOR) / (HIGH_FACTOR - LOW_FACTOR), 0.0), 1.0)
    return 1 / ((1 - share) / factor + share)


def _factors(tensor: GgufTensor) -> list[float]:
    import numpy as np

    if tensor.type_name != "F32" or len(tensor.shape) != 1 or tensor.shape[0] > MAX_FACTORS:
        raise CorruptCheckpointError(f"{tensor.file} has {tensor.name} in {tensor.type_name} {list(tensor.shape)}.")
    factors = np.fromfile(tensor.file, "<f4", tensor.shape[0], offset=tensor.start)
    if not (np.isfinite(factors).all() and (factors > 0).all()):
        raise CorruptCheckpointError(f"{tensor.file} has {tensor.name} with numbers that are no factors.")
    return [float(factor) for factor in factors]
