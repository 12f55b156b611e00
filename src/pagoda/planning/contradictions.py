"""Whether a config.json can be of any model at all: kinds and signs of its numbers, and those that exclude one another.

Knows the fields that a plan reads, and of all others what kinds of numbers there are by the words in their names, as
`checkpoint/plausible.py` has them. Without weights to hold them to, the limits are those of any network.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pagoda.checkpoint.plausible import LENGTHS, MAX_LAYERS, largest
from pagoda.checkpoint.weights import Outline
from pagoda.checks import is_number, is_whole, shown
from pagoda.errors import CorruptCheckpointError
from pagoda.layouts.latent import LATENT_FAMILIES
from pagoda.planning.spec import KV_HEADS
from pagoda.planning.text_config import Sizes, text_config

MAX_SIZE = 1 << 27
LARGEST = Outline(num_tensors=0, num_elements=0, largest_size=MAX_SIZE, largest_number=MAX_LAYERS)

OBJECTS = ("attn_config", "per_layer_config", "quantization_config", "rope_parameters", "rope_scaling", "text_config")
QUERY_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads", "attention_heads")
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
EXPERT_COUNTS = ("num_local_experts", "n_routed_experts", "num_experts")
WINDOWS = ("sliding_window", "window_size", "attention_chunk_size")
# Whole numbers, and positive.
POSITIVE = (
    *(*LAYER_COUNTS, *QUERY_HEADS, *KV_HEADS, "encoder_layers", "decoder_layers", "num_decoder_layers"),
    *("encoder_attention_heads", "decoder_attention_heads", "encoder_ffn_dim", "decoder_ffn_dim", "d_kv", "d_ff"),
    *("hidden_size", "n_embd", "d_model", "vocab_size", "head_dim", "attention_head_dim", "v_head_dim"),
    *("qk_nope_head_dim", "qk_rope_head_dim", "intermediate_size", "n_inner", "ffn_hidden_size"),
    *("max_position_embeddings", "n_positions", "max_seq_len", "model_max_length"),
    *("max_target_positions", "max_source_positions", "original_max_position_embeddings"),
    *("decoder_sparse_step", "expert_layer_period", "attn_layer_period", "full_attention_interval"),
    "no_rope_layer_interval",
)
# Whole numbers that are zero where there is none of them.
PERHAPS_NONE = (
    *(*WINDOWS, *EXPERT_COUNTS, "num_experts_per_tok", "n_shared_experts", "max_window_layers"),
    *("kv_lora_rank", "q_lora_rank", "moe_intermediate_size", "shared_expert_intermediate_size"),
    *("first_k_dense_replace", "num_kv_shared_layers", "attn_layer_offset", "expert_layer_offset"),
    "moe_layer_freq",
)
# Lists with an entry for each layer; the spec says what of one is a list.
PER_LAYER = ("layer_types", "layers_block_type", "attention_layers", "hybrid_override_pattern")


def check_sizes(config: dict[str, Any], file: str) -> None:
    """Refuse the contents of `file`, a config.json, naming the field that no model has so."""
    for problem in _problems(config):
        raise CorruptCheckpointError(f"{file} has {problem}.")


def _problems(config: dict[str, Any]) -> Iterator[str]:
    """What is wrong, one after the other; those that come later take for granted that nothing came before."""
    yield from _wrong_kinds(config)
    for part in (config.get("text_config"), config.get("decoder")):
        yield from _wrong_kinds(part) if isinstance(part, dict) else ()
    text = text_config(config)
    yield from _wrong_numbers(text)
    yield from _wrong_lists(text)
    yield from _wrong_heads(text)
    yield from _wrong_experts(text)


def _wrong_kinds(sizes: Sizes) -> Iterator[str]:
    for name in OBJECTS:
        if not isinstance(sizes.get(name), dict | None):
            yield f"{name} {shown(sizes[name])}, which is no object"
    if not isinstance(sizes.get("model_type"), str | None):
        yield f"model_type {shown(sizes['model_type'])}, which is no name"
    if not isinstance(sizes.get("tie_word_embeddings"), bool | None):
        yield f"tie_word_embeddings {shown(sizes['tie_word_embeddings'])}, which is neither true nor false"


def _wrong_numbers(sizes: Sizes) -> Iterator[str]:
    for name in (*POSITIVE, *PERHAPS_NONE):
        least = int(name in POSITIVE)
        for value in _entries(sizes.get(name)):
            if not is_whole(value) or value < least:
                yield f"{name} {shown(value)}; it is a whole number{' above zero' if least else ''}"
    for name, value in sizes.items():
        most = largest(name, LARGEST)
        if most is not None and any(is_number(each) and not each <= most for each in _entries(value)):
            yield f"{name} {shown(value)}, more than any model has"
        if LENGTHS.search(name) and is_number(value) and value < 0:
            yield f"{name} {shown(value)}, which is negative"


def _entries(value: Any) -> list[Any]:
    """Of a list, which some families have with a number for each layer."""
    return [] if value is None else value if isinstance(value, list) else [value]


def _wrong_lists(sizes: Sizes) -> Iterator[str]:
    """Lists of layers that are not as long as there are layers, and kinds of layers that lack what makes them so."""
    count = _stated(sizes, LAYER_COUNTS)
    for name in PER_LAYER:
        stated = sizes.get(name)
        kind = str if name == "hybrid_override_pattern" else list
        if stated is not None and not isinstance(stated, kind):
            yield f"{name} {shown(stated)}; it names the kind of each layer"
        if stated and count and len(stated) != count:
            yield f"{name} of {len(stated)} layers, and {count} layers"
    rotary = sizes.get("no_rope_layers")
    if not isinstance(rotary, list | None) or (rotary and count and len(rotary) < count):
        yield f"no_rope_layers {shown(rotary)}; it has an entry for each of {count} layers"
    pattern = sizes.get("sliding_window_pattern")
    if (
        not any(sizes.get(name) for name in PER_LAYER)
        and pattern is not None
        and not (is_whole(pattern) and pattern > 0)
    ):
        yield f"sliding_window_pattern {shown(pattern)}; it says that every so many layers attend to all tokens"


def _wrong_heads(sizes: Sizes) -> Iterator[str]:
    """Every head of keys and values is read by as many heads of queries; a latent is read by all."""
    queries = _stated(sizes, QUERY_HEADS)
    name = next((each for each in KV_HEADS if is_whole(sizes.get(each))), None)
    is_latent = sizes.get("kv_lora_rank") and sizes.get("model_type") in LATENT_FAMILIES
    if name and queries and queries % sizes[name] and not is_latent:
        yield f"{name} {sizes[name]}, which does not divide {queries} heads of queries"
    kinds = sizes.get("layer_types") or ()
    if "sliding_attention" in kinds and not (sizes.get("sliding_window") or sizes.get("window_size")):
        yield "layers of sliding_attention in layer_types, and no sliding_window"
    if "chunked_attention" in kinds and not sizes.get("attention_chunk_size"):
        yield "layers of chunked_attention in layer_types, and no attention_chunk_size"


def _wrong_experts(sizes: Sizes) -> Iterator[str]:
    count, chosen = _stated(sizes, EXPERT_COUNTS), sizes.get("num_experts_per_tok")
    if count and chosen is not None and not 1 <= chosen <= count:
        yield f"num_experts_per_tok {chosen} of {count} experts; it is from 1 to {count}"


def _stated(sizes: Sizes, names: tuple[str, ...]) -> int | None:
    return next((sizes[name] for name in names if is_whole(sizes.get(name)) and sizes[name]), None)
