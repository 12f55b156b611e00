"""The weights of layers that keep latents or recurrent states."""

from __future__ import annotations

from pagoda.kernels.coded_sizes import BLOCK_ROWS
from pagoda.planning.spec import KINDS_WITHOUT_TOKENS, query_heads
from pagoda.planning.state_spec import inner_width, kernel_width
from pagoda.planning.text_config import Sizes, first
from pagoda.planning.weights.decoder import Decoder, hidden_width


def latent_attention(sizes: Sizes, decoder: Decoder) -> int:  # noqa: ARG001
    """Multi-head latent attention (arXiv 2405.04434): queries may be made from a latent of their own."""
    width, heads = hidden_width(sizes), query_heads(sizes)
    latent, rotary = sizes["kv_lora_rank"], sizes["qk_rope_head_dim"]
    plain, value = sizes["qk_nope_head_dim"], sizes["v_head_dim"]
    query_width, rank = heads * (plain + rotary), sizes.get("q_lora_rank")
    queries = width * rank + rank + rank * query_width if rank else width * query_width
    keys_and_values = width * (latent + rotary) + latent + latent * heads * (plain + value)
    return int(queries + keys_and_values + heads * value * width)


def coded_expansion(sizes: Sizes) -> int:
    """What makes keys and values of latents; it becomes codes where the rows of a head are whole blocks."""
    widths = sizes["qk_nope_head_dim"], sizes["v_head_dim"]
    return 0 if any(width % BLOCK_ROWS for width in widths) else _expansion(sizes)


def plain_expansion(sizes: Sizes, kind: str) -> int:  # noqa: ARG001
    """The same where it does not."""
    return _expansion(sizes) - coded_expansion(sizes)


def _expansion(sizes: Sizes) -> int:
    return int(sizes["kv_lora_rank"] * query_heads(sizes) * (sizes["qk_nope_head_dim"] + sizes["v_head_dim"]))


def selective_scan(sizes: Sizes) -> int:
    """Mamba (arXiv 2312.00752)."""
    width, inner = hidden_width(sizes), inner_width(sizes)
    size, rank = first(sizes, "state_size", "mamba_d_state"), first(sizes, "time_step_rank", "mamba_dt_rank")
    convolution = inner * (kernel_width(sizes) + sizes.get("use_conv_bias", sizes.get("mamba_conv_bias", True)))
    projections = 3 * width * inner + (2 * inner + width) * bool(sizes.get("use_bias") or sizes.get("mamba_proj_bias"))
    scan = inner * (rank + 2 * size) + (rank + 1) * inner + inner * size + inner
    return int(convolution + projections + scan)


def scan_parameters(sizes: Sizes, kind: str) -> int:
    """Convolution, steps and decay of a selective scan."""
    if kind not in KINDS_WITHOUT_TOKENS:
        return 0
    inner, rank = inner_width(sizes), first(sizes, "time_step_rank", "mamba_dt_rank")
    return int(inner * (kernel_width(sizes) + rank + first(sizes, "state_size", "mamba_d_state") + 3))


def selective_scan_with_norms(sizes: Sizes) -> int:
    """Jamba's: the step and both projections of the state are normalised."""
    return selective_scan(sizes) + first(sizes, "mamba_dt_rank") + 2 * first(sizes, "mamba_d_state")


def gated_delta(sizes: Sizes) -> int:
    """Gated delta networks (arXiv 2412.06464), as Qwen3-Next has them."""
    width, heads = hidden_width(sizes), sizes["linear_num_value_heads"]
    keys = sizes["linear_num_key_heads"] * sizes["linear_key_head_dim"]
    values = heads * sizes["linear_value_head_dim"]
    projections = width * (2 * keys + 3 * values + 2 * heads)
    return int(projections + (2 * keys + values) * kernel_width(sizes) + 2 * heads + sizes["linear_value_head_dim"])


def delta_convolution(sizes: Sizes, kind: str) -> int:
    """Of a gated delta network."""
    keys = sizes["linear_num_key_heads"] * sizes["linear_key_head_dim"]
    values = sizes["linear_num_value_heads"] * sizes["linear_value_head_dim"]
    return int((2 * keys + values) * kernel_width(sizes)) if kind in KINDS_WITHOUT_TOKENS else 0


def gated_queries(sizes: Sizes) -> int:
    """Qwen3-Next: beside its queries an attending layer makes a gate as wide, and both kinds of heads have a norm."""
    head_width = sizes["head_dim"]
    return int(hidden_width(sizes) * query_heads(sizes) * head_width + 2 * head_width)
