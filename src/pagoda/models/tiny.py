"""A configuration of the same family, small enough to build and run in a fraction of a second.

Knows the names under which families keep their sizes. Keeps what decides which code runs: kinds of layers, shared
caches, whether KV heads are grouped, whether there are experts, rotary settings, biases, norms. Windows and everything
else that starts to matter at some length are made short enough to matter within `TOKENS` tokens. Knows no family by
name.
"""

from __future__ import annotations

from typing import Any

from pagoda.models.quiet import quiet

TOKENS = 40
HEADS = 4
HEAD_WIDTH = 16
ROTARY_WIDTH = 8
HIDDEN = HEADS * HEAD_WIDTH
MIN_LAYERS = 2
MAX_LAYERS = 6

# What sizes become. They must fit each other, so they are set whatever they were, unless the family has none (None, 0).
SIZES: dict[str, int] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embedding_size", "word_embed_proj_dim"), HIDDEN),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads", "n_heads", "attention_heads"), HEADS),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), HEADS),
    "d_kv": HEAD_WIDTH,
    **dict.fromkeys(("head_dim", "v_head_dim", "qk_nope_head_dim", "kv_channels"), HEAD_WIDTH),
    **dict.fromkeys(("mamba_n_heads", "n_mamba_heads", "mamba_num_heads", "linear_num_heads"), HEADS),
    **dict.fromkeys(("mamba_d_head", "mamba_headdim", "mamba_head_dim", "linear_head_dim"), HEAD_WIDTH),
    **dict.fromkeys(("expand", "mamba_expand"), 1),
    "mamba_d_ssm": HIDDEN,
    "linear_num_key_heads": HEADS // 2,
    "linear_num_value_heads": HEADS,
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), HEAD_WIDTH),
    "attention_hidden_size": 2 * HIDDEN,
    "attention_head_dim": 2 * HEAD_WIDTH,
    "qk_rope_head_dim": ROTARY_WIDTH,
    "rotary_dim": ROTARY_WIDTH,
    "qk_head_dim": HEAD_WIDTH + ROTARY_WIDTH,
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    "zero_expert_num": 2,
}
# What counts and lengths are at most.
LIMITS: dict[str, int] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "decoder_vocab_size"), 128),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "hidden_size_per_layer_input"), 32),
    **dict.fromkeys(("sliding_window", "window_size", "attention_chunk_size", "laurel_rank", "floor_scale"), 8),
    **dict.fromkeys(("state_size", "ssm_state_size", "mamba_d_state", "chunk_size", "mamba_chunk_size"), 16),
    **dict.fromkeys(("time_step_rank", "mamba_dt_rank"), 8),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "moe_top_k"), 2),
    **dict.fromkeys(("num_layers_per_stack", "n_groups", "mamba_n_groups", "mamba_ngroups"), 2),
    **dict.fromkeys(("n_group", "num_expert_group", "topk_group", "first_k_dense_replace", "n_shared_experts"), 1),
    "max_position_embeddings": 512,
    "max_source_positions": 24,
    "num_mel_bins": 8,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": TOKENS // 2,
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_decoder_layers"), MIN_LAYERS),
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
}
WIDTH_ENDINGS = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner", "d_ff")
# Nested configurations, beside those whose name ends with "_config".
PARTS = ("encoder", "decoder")
WIDTH = 96
# Lists of layers by number.
LAYER_NUMBERS = ("layer_ids", "layer_indices")
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
KV_HEADS = ("num_key_value_heads", "num_global_key_value_heads", "kv_n_heads", "num_kv_heads")


def shrink(config: Any) -> Any:
    """A small configuration of the class of `config` that takes the same paths through the code."""
    with quiet():
        return type(config).from_dict(_shrunk(config.to_dict()))


def _shrunk(values: dict[str, Any]) -> dict[str, Any]:
    """`values` with every size replaced, in nested configurations too."""
    small = {name: _small_value(name, value) for name, value in values.items()}
    small |= _fewer_layers(small)
    small |= _fewer_kv_heads(values)
    small |= _known_tokens(small)
    if "qk_rope_head_dim" in values and "head_dim" in values:  # latent attention calls its rotary part by this name
        small["head_dim"] = ROTARY_WIDTH
    return small


def _small_value(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        return _small_dict(name, value)
    if name.endswith(WIDTH_ENDINGS) and isinstance(value, list):
        return [min(entry, WIDTH) for entry in value]
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not value:
        return value
    if name.endswith(WIDTH_ENDINGS):
        return min(value, WIDTH)
    if name in SIZES:
        return SIZES[name]
    return min(value, LIMITS.get(name, value))


def _small_dict(name: str, value: dict[str, Any]) -> dict[str, Any]:
    if name == "per_layer_config":  # what single layers have other than the rest; keep it other
        return {
            key: {field: 2 * _small_value(field, size) for field, size in entry.items()} for key, entry in value.items()
        }
    if name == "rope_parameters":
        return _short_rope(value)
    return _shrunk(value) if name.endswith("_config") or name in PARTS else value


def _short_rope(rope: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings for narrow heads, with scalings that set in within `TOKENS` tokens.

    Those that switch all frequencies at the original length (see `positions.py`) must keep it out of reach.
    """
    small = {name: _short_rope(value) if isinstance(value, dict) else value for name, value in rope.items()}
    frequencies = int(HEAD_WIDTH * rope.get("partial_rotary_factor", 1)) // 2
    for name in ("short_factor", "long_factor"):
        if name in rope:
            small[name] = rope[name][:frequencies]
    if "original_max_position_embeddings" in rope and rope.get("rope_type") not in ("dynamic", "longrope"):
        small["original_max_position_embeddings"] = TOKENS // 2
    return small


def _fewer_layers(values: dict[str, Any]) -> dict[str, Any]:
    """Keep the first layer of every kind and at least `MIN_LAYERS`; entries of per-layer lists follow their layer."""
    count_name = next((name for name in LAYER_COUNTS if isinstance(values.get(name), int)), None)
    if count_name is None:
        return {}
    count = values[count_name]
    lists = {name: value for name, value in values.items() if isinstance(value, (list, tuple)) and len(value) == count}
    single = {int(key): entry for key, entry in (values.get("per_layer_config") or {}).items()}
    chosen = {name: value for name, value in values.items() if name.endswith(LAYER_NUMBERS) and value}
    kinds = [
        repr(([value[i] for value in lists.values()], [i in value for value in chosen.values()], single.get(i)))
        for i in range(count)
    ]
    shared = count - (values.get("num_kv_shared_layers") or 0)
    storing, reading = _distinct(kinds, 0, shared), _distinct(kinds, shared, count)
    # Hybrid layers share a block, which takes two.
    storing += [i for i in range(shared) if "hybrid" in kinds[i] and i not in storing][:1]
    others = [i for i in range(shared) if i not in storing][: max(0, MIN_LAYERS - len(storing))]
    kept = sorted(storing + reading + others)
    small: dict[str, Any] = {name: [value[i] for i in kept] for name, value in lists.items()}
    small |= {name: [kept.index(i) for i in value if i in kept] for name, value in chosen.items()}
    if "attention_types" in values:  # [kinds, how many times they repeat], which is said layer by layer as well
        small["attention_types"] = [[small["attention_layers"], 1]]
    if single:
        small["per_layer_config"] = {str(kept.index(i)): entry for i, entry in single.items() if i in kept}
    if reading:
        small["num_kv_shared_layers"] = len(reading)
    return small | {count_name: len(kept)}


def _distinct(kinds: list[str], start: int, stop: int) -> list[int]:
    """The first layer of each kind between `start` and `stop`."""
    return [i for i in range(start, stop) if kinds[i] not in kinds[start:i]][:MAX_LAYERS]


def _fewer_kv_heads(values: dict[str, Any]) -> dict[str, Any]:
    """MHA stays MHA, MQA stays MQA, and grouped heads stay grouped with more than one group."""
    heads = values.get("num_attention_heads") or values.get("n_head") or values.get("n_heads")
    counts = {name: values[name] for name in KV_HEADS if isinstance(values.get(name), int)}
    return {name: HEADS if count == heads else min(count, HEADS // 2) for name, count in counts.items()}


def _known_tokens(values: dict[str, Any]) -> dict[str, Any]:
    """Special tokens must exist in the small vocabulary."""
    tokens = {name: value for name, value in values.items() if name.endswith("_token_id") and value is not None}
    vocab_size = values.get("vocab_size", 0)
    return {name: 0 for name, value in tokens.items() if not isinstance(value, int) or value >= vocab_size}
