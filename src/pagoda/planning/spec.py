"""The cache a checkpoint needs, read from the dictionary in its config.json: no model, no tensors, no other library.

Knows the names families use for their heads, widths, windows and shared caches. Does not know what a model really does;
`models/discovery.py` does, and a test holds the two equal. What the dictionary cannot tell is refused, never guessed.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pagoda.checkpoint.plausible import MAX_LAYERS
from pagoda.errors import UnsupportedModelError
from pagoda.layouts.attention import AttentionLayout
from pagoda.layouts.base import Layout
from pagoda.layouts.cross import CrossLayout
from pagoda.layouts.latent import LATENT_FAMILIES, LatentLayout
from pagoda.layouts.spec import CacheSpec, Reach, group_layers
from pagoda.layouts.state import StateLayout
from pagoda.planning.state_spec import state_layout
from pagoda.planning.text_config import first, text_config

LAYER_KINDS = {
    "full_attention": Reach.FULL,
    "sliding_attention": Reach.SLIDING,
    "chunked_attention": Reach.CHUNKED,
}
# Layers that keep recurrent state; hybrid ones attend as well.
PURE_STATE_KINDS = ("linear_attention", "conv")
STATE_KINDS = (*PURE_STATE_KINDS, "hybrid")
KINDS_WITHOUT_CACHE = ("mlp", "moe")
KINDS_WITHOUT_TOKENS = (*PURE_STATE_KINDS, *KINDS_WITHOUT_CACHE)
LEGACY_KINDS = {
    "mamba": "linear_attention",
    "attention": "full_attention",
    "global": "full_attention",
    "local": "sliding_attention",
}
PATTERN_KINDS = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}
# The kind of those layers that are not named, in families that name the layers which attend, or none.
STATE_KIND_OF = {
    **dict.fromkeys(("bamba", "granitemoehybrid", "jamba", "olmo_hybrid"), "linear_attention"),
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba"), "linear_attention"),
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), "linear_attention"),
    **dict.fromkeys(("lfm2", "lfm2_moe"), "conv"),
    "falcon_h1": "hybrid",
}
# Every n-th layer attends to all tokens and the others to a window, in families that may leave the pattern unsaid.
FULL_LAYER_EVERY = {"gemma2": 2, "gemma3_text": 6, "gpt_oss": 2, "cohere2": 4, "vaultgemma": 2}
# A window in the configuration of these families applies to all layers.
WINDOW_EVERYWHERE = {"mistral", "mixtral", "phi3", "phimoe", "starcoder2"}
# Every n-th layer has no rotary embedding and attends to all tokens; the others attend in chunks.
CHUNKED_FAMILY = "llama4_text"
KV_HEADS = ("num_key_value_heads", "kv_n_heads", "num_kv_heads")
UNKNOWABLE = {
    "diffllama": "it attends twice in every layer",
    "longcat_flash": "it attends twice in every layer",
    "jetmoe": "it repeats its KV heads for every expert",
    "mimo_v2_flash": "its layers with a window have a number of KV heads that is not stated",
    "moshi": "its cache has a window that its attention ignores",
    "hrm_text": "it runs through its layers several times",
}
# What says that layers differ from one another, in ways that nobody here has read; and what gives heads by other names.
DIFFERENCES = (
    *("attention_pattern", "attention_window_size", "attn_cfg", "attn_type_list", "block_configs", "block_types"),
    *("cla_share_factor", "full_attn_layers", "global_attn_every_n_layers", "hybrid_layer_ids", "hybrid_layer_pattern"),
    *("layer_group_size", "layer_pattern", "layers_pattern", "linear_attn_config", "mb_per_layer", "mixer_types"),
    *("sliding_window_layers", "ssm_cfg", "swa_layers", "use_cla"),
)
INTERVALS = ("attn_layer_indices", "attn_layer_period", "full_attention_interval", "full_attn_idxs")
OTHER_HEADS = ("multi_query_group_num", "num_attention_groups")
OF_ALL_LAYERS = (*KV_HEADS, "head_dim", "num_attention_heads", "num_query_heads", "sliding_window")


@dataclass(frozen=True)
class _Layer:
    """What the configuration says of one layer."""

    kind: str
    span: int | None
    layout: Layout


def spec_from_config(config: Mapping[str, Any]) -> CacheSpec:
    """The layer groups of the model that `config` (the contents of config.json) describes."""
    text = text_config(config)
    _refuse_unknowable(text)
    kinds = layer_kinds(text)
    attending = [(index, kind) for index, kind in enumerate(kinds) if kind not in KINDS_WITHOUT_TOKENS]
    layers = [_layer(text, kind, index) for index, kind in attending]
    calls = [(_reach(text, layer.kind), layer.span, layer.layout) for layer in layers]
    sources = _sources(text, [kind for _, kind in attending])
    if config.get("is_encoder_decoder"):
        calls = [call for own in calls for call in (own, _cross_call(own[2]))]
        sources = [None] * len(calls)
    return replace(group_layers(calls, sources), states=_states(text, kinds))


def _cross_call(own: Layout) -> tuple[Reach, int | None, Layout]:
    """What a decoder's layer keeps of the encoder's output: heads like its own."""
    key, value = own.planes
    return Reach.ENCODER, None, CrossLayout(key.num_heads, key.width, value.width)


def _refuse_unknowable(text: Mapping[str, Any]) -> None:
    family = text.get("model_type", "")
    reason = UNKNOWABLE.get(family)
    if text.get("kv_lora_rank") and family not in LATENT_FAMILIES:
        reason = "it keeps latents instead of keys and values (MLA)"
    reason = reason or _difference(text)
    if reason:
        raise UnsupportedModelError(f"The cache of {family} cannot be read from its config.json: {reason}.")


def _difference(text: Mapping[str, Any]) -> str | None:
    """What the configuration says of its layers that is not read here."""
    listed = next((name for name in OF_ALL_LAYERS if isinstance(text.get(name), list)), None)
    if listed:
        return f"{listed} is a list, so its layers differ in it"
    renamed = next((name for name in OTHER_HEADS if _says(text, name)), None)
    if renamed and not any(text.get(name) for name in KV_HEADS):
        return f"{renamed} says how heads are shared, and num_key_value_heads does not"
    if _stated_kinds(text):
        return None
    names = DIFFERENCES + (() if text.get("model_type", "") in STATE_KIND_OF else INTERVALS)
    differing = next((name for name in names if _says(text, name)), None)
    return f"{differing} says that its layers differ, and layer_types does not say how" if differing else None


def _says(text: Mapping[str, Any], name: str) -> bool:
    """Whether something is said under `name`. A list of types that are all ones is of layers that all attend."""
    value = text.get(name)
    if isinstance(value, list) and name == "attn_type_list" and value:
        return any(kind != 1 for kind in value)
    return value is not None and value is not False


def _stated_kinds(text: Mapping[str, Any]) -> Any:
    return text.get("layer_types") or text.get("layers_block_type")


def layer_kinds(text: Mapping[str, Any]) -> list[str]:
    """The kind of every layer, in order."""
    spelled = _spelled_kinds(text)
    if spelled:
        return spelled
    count = first(text, "num_hidden_layers", "n_layer", "num_layers", "n_layers")
    if not 0 < count <= MAX_LAYERS:
        raise UnsupportedModelError(f"config.json of {text.get('model_type')} has {count} layers, as no model has.")
    if text.get("model_type") == CHUNKED_FAMILY:
        return ["chunked_attention" if rotary else "full_attention" for rotary in _rotary_layers(text, count)]
    others = STATE_KIND_OF.get(text.get("model_type", ""))
    if others:
        attending = _attending_layers(text, count)
        return ["full_attention" if index in attending else others for index in range(count)]
    return ["sliding_attention" if _slides(text, index) else "full_attention" for index in range(count)]


def _spelled_kinds(text: Mapping[str, Any]) -> list[str] | None:
    """Those of a configuration that states each."""
    stated = _stated_kinds(text)
    if stated:
        return [LEGACY_KINDS.get(kind, kind) for kind in stated]
    if text.get("attention_layers"):
        return [LEGACY_KINDS[kind] for kind in text["attention_layers"]]
    if text.get("attention_types"):  # kinds, and how many times, one after the other
        return [LEGACY_KINDS[kind] for kinds, times in text["attention_types"] for kind in kinds * times]
    if text.get("hybrid_override_pattern"):  # a letter for each layer
        return [PATTERN_KINDS[letter] for letter in text["hybrid_override_pattern"]]
    return None


def _rotary_layers(text: Mapping[str, Any], count: int) -> list[Any]:
    """1 for each layer with rotary embedding; an empty list says as little as none."""
    stated = text.get("no_rope_layers")
    every = text["no_rope_layer_interval"]
    return stated[:count] if stated else [(index + 1) % every for index in range(count)]


def _attending_layers(text: Mapping[str, Any], count: int) -> Collection[int]:
    """The layers of a hybrid model that attend, where the configuration does not state their kinds one by one."""
    if text.get("attn_layer_period"):
        return range(text["attn_layer_offset"], count, text["attn_layer_period"])
    if text.get("full_attention_interval"):
        return range(text["full_attention_interval"] - 1, count, text["full_attention_interval"])
    return text.get("attn_layer_indices") or text.get("full_attn_idxs") or ()


def _slides(text: Mapping[str, Any], index: int) -> bool:
    """Whether layer `index` has a window, in configurations older than `layer_types`."""
    family = text.get("model_type", "")
    if not text.get("sliding_window") or not text.get("use_sliding_window", True):
        return False
    if "max_window_layers" in text:
        return bool(index >= text["max_window_layers"])
    every = text.get("sliding_window_pattern") or FULL_LAYER_EVERY.get(family)
    if every:
        return bool((index + 1) % every)
    if family in WINDOW_EVERYWHERE:
        return True
    raise UnsupportedModelError(
        f"{family} has a sliding window, but its config.json does not say which layers use it (layer_types)."
    )


def _reach(text: Mapping[str, Any], kind: str) -> Reach:
    if kind == "hybrid":  # which attends to all tokens
        return Reach.FULL
    if kind not in LAYER_KINDS:
        raise UnsupportedModelError(
            f"{text.get('model_type')} has layers of kind {kind}, which keep something other than keys and values of "
            "every token."
        )
    return LAYER_KINDS[kind]


def _states(text: Mapping[str, Any], kinds: list[str]) -> tuple[StateLayout, ...]:
    """What the recurrent layers keep."""
    count = sum(kind in STATE_KINDS for kind in kinds)
    layout = state_layout(text) if count else None
    if count and layout is None:
        raise UnsupportedModelError(f"{text.get('model_type')} has recurrent layers of a kind that is not known.")
    return (layout,) * count if layout else ()


def _layer(text: Mapping[str, Any], kind: str, index: int) -> _Layer:
    own = {int(key): entry for key, entry in (text.get("per_layer_config") or {}).items()}.get(index, {})
    sizes = dict(text) | own
    span = {
        "sliding_attention": sizes.get("sliding_window") or sizes.get("window_size"),
        "chunked_attention": sizes.get("attention_chunk_size"),
    }.get(kind)
    return _Layer(kind, span, attention_layout(sizes))


def attention_layout(sizes: Mapping[str, Any]) -> Layout:
    """What an attending layer of these sizes keeps of a token."""
    if sizes.get("kv_lora_rank"):
        return LatentLayout(sizes["kv_lora_rank"], sizes["qk_rope_head_dim"])
    heads = query_heads(sizes)
    grouped = next((sizes[name] for name in KV_HEADS if sizes.get(name)), heads)
    if sizes.get("multi_query") and not sizes.get("new_decoder_architecture"):
        grouped = 1
    width = (
        sizes.get("attention_head_dim")
        or sizes.get("head_dim")
        or first(sizes, "hidden_size", "n_embd", "d_model") // heads
    )
    return AttentionLayout(grouped, width, sizes.get("v_head_dim") or width)


def query_heads(sizes: Mapping[str, Any]) -> int:
    return first(sizes, "num_attention_heads", "n_head", "num_heads", "n_heads", "attention_heads")


def _sources(text: Mapping[str, Any], kinds: list[str]) -> list[int | None]:
    """For each layer the one whose cache it reads: the last of its kind before the layers that share."""
    first_shared = len(kinds) - (text.get("num_kv_shared_layers") or 0)
    last_of_kind = {kind: index for index, kind in enumerate(kinds[:first_shared])}
    return [None if index < first_shared else last_of_kind[kind] for index, kind in enumerate(kinds)]
