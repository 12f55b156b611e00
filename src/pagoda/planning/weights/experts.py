"""Feed-forward parts with routed experts (arXiv 2101.03961), as families have them."""

from __future__ import annotations

from pagoda.planning.text_config import Sizes, first
from pagoda.planning.weights.count import Feed
from pagoda.planning.weights.decoder import Decoder, dense, feed_forward, feed_width, hidden_width


def everywhere(sizes: Sizes, decoder: Decoder, index: int) -> Feed:  # noqa: ARG001
    """Mixtral: a router and its experts in every layer."""
    count = first(sizes, "num_local_experts", "num_experts")
    return Feed(hidden_width(sizes) * count, count * feed_forward(sizes, decoder, feed_width(sizes)))


def biased(sizes: Sizes, decoder: Decoder, index: int) -> Feed:  # noqa: ARG001
    """GPT-OSS: router and experts have biases."""
    count, width, inner = sizes["num_local_experts"], hidden_width(sizes), feed_width(sizes)
    return Feed((width + 1) * count, count * (3 * width * inner + 2 * inner + width))


def periodic(sizes: Sizes, decoder: Decoder, index: int) -> Feed:
    """Qwen: experts in every n-th layer but for some, and perhaps one that all tokens pass through, with a gate."""
    count = sizes.get("num_experts") or sizes.get("num_local_experts") or 0
    is_left_out = index in (sizes.get("mlp_only_layers") or ()) or (index + 1) % sizes.get("decoder_sparse_step", 1)
    if is_left_out or not count:
        return dense(sizes, decoder, index)
    width, shared = hidden_width(sizes), sizes.get("shared_expert_intermediate_size")
    always = feed_forward(sizes, decoder, shared) + width if shared else 0
    return Feed(always + width * count, count * feed_forward(sizes, decoder, sizes["moe_intermediate_size"]))


def behind_dense(sizes: Sizes, decoder: Decoder, index: int) -> Feed:
    """DeepSeek: dense layers first, then experts beside some that all tokens pass through."""
    if index < (sizes.get("first_k_dense_replace") or 0) or index % (sizes.get("moe_layer_freq") or 1):
        return dense(sizes, decoder, index)
    count, inner = sizes["n_routed_experts"], sizes["moe_intermediate_size"]
    shared = feed_forward(sizes, decoder, inner * (sizes.get("n_shared_experts") or 0))
    return Feed(hidden_width(sizes) * count + shared, count * feed_forward(sizes, decoder, inner))


def by_offset(sizes: Sizes, decoder: Decoder, index: int) -> Feed:
    """Jamba: experts in every n-th layer from one on."""
    if index % sizes["expert_layer_period"] != sizes["expert_layer_offset"]:
        return dense(sizes, decoder, index)
    return everywhere(sizes, decoder, index)
