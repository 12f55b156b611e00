"""Which family builds its layers how: the one place that knows them by name. A family that is not here is unknown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pagoda.checkpoint.failures import model_errors
from pagoda.planning.text_config import Sizes, named_fields, text_config
from pagoda.planning.weights import experts, mixers
from pagoda.planning.weights.count import Feed, WeightCount
from pagoda.planning.weights.decoder import Decoder, norms_of_heads, norms_over_heads
from pagoda.planning.weights.encoder_decoder import t5, whisper

LLAMA = Decoder()
GEMMA = Decoder(norms=4, is_tied=True)
# Layer norms with a bias, and two matrices without a gate.
CLASSIC = Decoder(matrices=2, has_norm_bias=True, has_feed_bias=True)
QWEN3 = Decoder(extras=norms_of_heads)
LATENT = Decoder(
    attention=mixers.latent_attention,
    feed=experts.behind_dense,
    plain=mixers.plain_expansion,
    expansion=mixers.coded_expansion,
)


def falcon(sizes: Sizes) -> WeightCount:
    """Norms depend on how attention and feed-forward part stand to one another. Its linear layers are its own."""
    has_two = sizes.get("num_ln_in_parallel_attn") == 2 or sizes.get("new_decoder_architecture")
    norms = 2 if has_two or not sizes.get("parallel_attn", True) else 1
    return Decoder(matrices=2, norms=norms, has_norm_bias=True, is_tied=True, is_plain=True).count(sizes)


def _no_feed(sizes: Sizes, decoder: Decoder, index: int) -> Feed:  # noqa: ARG001
    """Layers of Mamba are a recurrence and nothing else."""
    return Feed(0)


DECODERS: dict[str, Decoder] = {
    **dict.fromkeys(("granite", "llama", "ministral", "mistral"), LLAMA),
    "phi3": replace(LLAMA, has_fused_qkv=True),
    "arcee": replace(LLAMA, matrices=2),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3"), LATENT),
    "gemma": Decoder(is_tied=True),
    "gemma2": GEMMA,
    "gemma3_text": replace(GEMMA, extras=norms_of_heads),
    "gpt2": replace(
        CLASSIC, has_qkv_bias=True, has_output_bias=True, is_tied=True, positions="n_positions", is_plain=True
    ),
    "gpt_neox": replace(CLASSIC, has_qkv_bias=True, has_output_bias=True, has_fused_qkv=True),
    "gpt_oss": Decoder(
        has_qkv_bias=True, has_output_bias=True, feed=experts.biased, extras=lambda sizes: sizes["num_attention_heads"]
    ),
    "gptj": replace(CLASSIC, norms=1, has_head_bias=True),
    "jamba": Decoder(recurrence=mixers.selective_scan_with_norms, feed=experts.by_offset, plain=mixers.scan_parameters),
    "mamba": Decoder(
        recurrence=mixers.selective_scan, feed=_no_feed, norms=1, is_tied=True, plain=mixers.scan_parameters
    ),
    "mixtral": Decoder(feed=experts.everywhere),
    **dict.fromkeys(("olmo2", "olmo3"), Decoder(extras=norms_over_heads)),
    "olmoe": Decoder(feed=experts.everywhere, extras=norms_over_heads),
    "phi": replace(CLASSIC, norms=1, has_qkv_bias=True, has_output_bias=True, has_head_bias=True),
    "qwen2": Decoder(has_qkv_bias=True),
    "qwen2_moe": Decoder(has_qkv_bias=True, feed=experts.periodic),
    "qwen3": QWEN3,
    "qwen3_moe": replace(QWEN3, feed=experts.periodic),
    "qwen3_next": Decoder(
        feed=experts.periodic,
        recurrence=mixers.gated_delta,
        extras=mixers.gated_queries,
        plain=mixers.delta_convolution,
    ),
    "smollm3": Decoder(is_tied=True),
    "starcoder2": replace(CLASSIC, has_qkv_bias=True, has_output_bias=True, is_tied=True),
}
OTHERS: dict[str, Callable[[Sizes], WeightCount]] = {"falcon": falcon, "t5": t5, "whisper": whisper}


def count_weights(config: Sizes) -> WeightCount | None:
    """The weights of the model that `config` (the contents of config.json) describes.

    Of a configuration with several parts those of the one that generates text. None of a family that is not known.
    """
    text = text_config(config)
    family = text.get("model_type", "")
    with model_errors(f"The configuration of {family!r:.100}"), named_fields(text):
        if family in OTHERS:
            return OTHERS[family](config if config.get("is_encoder_decoder") else text)
        return DECODERS[family].count(text) if family in DECODERS else None
