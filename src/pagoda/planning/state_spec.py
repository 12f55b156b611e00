"""What a recurrent layer keeps, read from the dictionary in a checkpoint's config.json.

Knows the four kinds of recurrence and the names families use for their sizes. `planning/spec.py` asks it; what a model
really keeps is discovered from the model, and a test holds the two equal.
"""

from collections.abc import Callable

from pagoda.layouts.state import StateKind, StateLayout, StateTensor
from pagoda.planning.text_config import Sizes, first


def state_layout(sizes: Sizes) -> StateLayout | None:
    """The state of a recurrent layer of the family that `sizes` describes, or None if the family is not known."""
    known = _RECURRENCES.get(sizes.get("model_type", ""))
    return known(sizes) if known else None


def _selective_scan(sizes: Sizes) -> StateLayout:
    """Mamba (arXiv 2312.00752): every channel has a state of its own."""
    inner = inner_width(sizes)
    size, heads = first(sizes, "state_size", "mamba_d_state"), sizes.get("n_mamba_heads")
    # Zamba splits the channels into heads.
    recurrent = (heads, inner // heads, size) if heads else (inner, size)
    return _layout((inner, kernel_width(sizes)), recurrent)


def _state_space_dual(sizes: Sizes) -> StateLayout:
    """Mamba-2 (arXiv 2405.21060): a state of [width, state size] for each head; B and C are convolved too."""
    heads = first(sizes, "mamba_num_heads", "mamba_n_heads", "n_mamba_heads", "num_heads")
    groups = first(sizes, "mamba_n_groups", "mamba_ngroups", "n_groups")
    size = first(sizes, "ssm_state_size", "mamba_d_state", "state_size")
    inner = heads * sizes["mamba_head_dim"] if sizes.get("mamba_head_dim") else inner_width(sizes)
    return _layout((inner + 2 * groups * size, kernel_width(sizes)), (heads, inner // heads, size))


def _gated_delta(sizes: Sizes) -> StateLayout:
    """Gated delta networks (arXiv 2412.06464): a state of [key width, value width] for each value head."""
    keys = sizes["linear_num_key_heads"] * sizes["linear_key_head_dim"]
    values = sizes["linear_num_value_heads"] * sizes["linear_value_head_dim"]
    recurrent = (sizes["linear_num_value_heads"], sizes["linear_key_head_dim"], sizes["linear_value_head_dim"])
    return _layout((2 * keys + values, kernel_width(sizes)), recurrent)


def _kimi_delta(sizes: Sizes) -> StateLayout:
    """Kimi delta attention (arXiv 2510.26692): as many heads, of the same width, for keys and values."""
    heads, width = sizes["linear_num_heads"], sizes["linear_head_dim"]
    return _layout((3 * heads * width, kernel_width(sizes)), (heads, width, width))


def _short_convolution(sizes: Sizes) -> StateLayout:
    """LFM2: nothing but the last inputs of a short convolution."""
    return _layout((sizes["hidden_size"], sizes["conv_L_cache"]), None)


def _layout(convolution: tuple[int, ...], recurrent: tuple[int, ...] | None) -> StateLayout:
    tensors = [StateTensor(StateKind.CONVOLUTION, 0, convolution, full_precision=False)]
    if recurrent:
        tensors.append(StateTensor(StateKind.RECURRENT, 0, recurrent, full_precision=True))
    return StateLayout(tuple(tensors))


def inner_width(sizes: Sizes) -> int:
    stated = sizes.get("mamba_d_ssm") or (sizes.get("intermediate_size") if "expand" in sizes else None)
    return int(stated or first(sizes, "mamba_expand", "expand") * sizes["hidden_size"])


def kernel_width(sizes: Sizes) -> int:
    return first(sizes, "mamba_d_conv", "conv_kernel", "linear_conv_kernel_dim")


_RECURRENCES: dict[str, Callable[[Sizes], StateLayout]] = {
    **dict.fromkeys(("falcon_mamba", "jamba", "mamba", "zamba"), _selective_scan),
    **dict.fromkeys(("bamba", "falcon_h1", "granitemoehybrid", "mamba2", "nemotron_h", "zamba2"), _state_space_dual),
    **dict.fromkeys(("olmo_hybrid", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next"), _gated_delta),
    **dict.fromkeys(("bailing_hybrid", "kimi_linear"), _kimi_delta),
    **dict.fromkeys(("lfm2", "lfm2_moe", "lfm3"), _short_convolution),
}
