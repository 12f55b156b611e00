"""What the encoder of an encoder-decoder model reads, by its config.json."""

from __future__ import annotations

from math import isqrt

from pagoda.planning.facts import EncoderFacts, MachineFacts
from pagoda.planning.text_config import Sizes

# Families whose encoders read features of sound, always of one length.
SOUND_FAMILIES = ("whisper",)
# What transformers takes for the biases of two tokens: distances and buckets for all heads, and for each head the bias,
# its copies and the scores.
INDEX_NBYTES_PER_PAIR = 48
BIAS_NBYTES_PER_PAIR = 16
BIAS_SHARE = 0.25  # of the memory that is available
# What decides how much an encoder reads.
ENCODER_NAMES = (
    "max_source_positions",
    "max_position_embeddings",
    "relative_attention_num_buckets",
    "num_heads",
)


def encoder_facts(config: Sizes, machine: MachineFacts) -> EncoderFacts | None:
    """None of a model without an encoder."""
    if not config.get("is_encoder_decoder"):
        return None
    own = config["encoder"] if isinstance(config.get("encoder"), dict) else config
    return EncoderFacts(config.get("model_type") not in SOUND_FAMILIES, longest_input(own, machine))


def longest_input(encoder: Sizes, machine: MachineFacts) -> int | None:
    """The longest output that the position encoding supports, or memory for it; None if neither sets a limit."""
    limit = encoder.get("max_source_positions") or encoder.get("max_position_embeddings")
    if limit is None and encoder.get("relative_attention_num_buckets"):
        limit = _affordable_tokens(encoder["num_heads"], machine.available_nbytes)
    return None if limit is None else int(limit)


def _affordable_tokens(num_heads: int, available_nbytes: int | None) -> int | None:
    """How many tokens an encoder can read with T5's biases, of which transformers makes one for every two of them."""
    nbytes_per_pair = INDEX_NBYTES_PER_PAIR + num_heads * BIAS_NBYTES_PER_PAIR
    return None if available_nbytes is None else isqrt(int(available_nbytes * BIAS_SHARE) // nbytes_per_pair)
