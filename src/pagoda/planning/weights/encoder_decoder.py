"""The weights of models with an encoder: T5 and Whisper."""

from __future__ import annotations

from pagoda.planning.text_config import Sizes
from pagoda.planning.weights.count import WeightCount

WHISPER_KERNEL = 3  # of both its convolutions


def t5(config: Sizes) -> WeightCount:
    """Biases of distances in the first layer of either half; no other bias. Second matrices keep their precision."""
    width, inner = config["d_model"], config["num_heads"] * config["d_kv"]
    layers = config["num_layers"]
    decoder_layers = config.get("num_decoder_layers") or layers
    gated = "gated" in str(config.get("feed_forward_proj", "relu"))
    attention, feed = 4 * width * inner, (3 if gated else 2) * width * config["d_ff"]
    distances = config["relative_attention_num_buckets"] * config["num_heads"]
    cross_keys_and_values = decoder_layers * 2 * width * inner
    words = config["vocab_size"] * width
    is_tied = config.get("tie_word_embeddings", True)
    return WeightCount(
        table=0 if is_tied else words,
        head=words,
        layers=decoder_layers * (2 * attention + feed + 3 * width) + distances + width - cross_keys_and_values,
        encoder=layers * (attention + feed + 2 * width) + distances + width + cross_keys_and_values,
        plain=(layers + decoder_layers) * width * config["d_ff"],
    )


def whisper(config: Sizes) -> WeightCount:
    """Two convolutions over sound before the encoder's layers; keys have no bias; the head is the table of tokens."""
    width, bins = config["d_model"], config["num_mel_bins"]
    attention, norm = 4 * width * width + 3 * width, 2 * width
    decoder_layers = config["decoder_layers"]
    encoder_layer = attention + _feed(width, config["encoder_ffn_dim"]) + 2 * norm
    decoder_layer = 2 * attention + _feed(width, config["decoder_ffn_dim"]) + 3 * norm
    cross_keys_and_values = decoder_layers * (2 * width * width + width)
    convolutions = WHISPER_KERNEL * width * (bins + width) + 2 * width
    return WeightCount(
        table=config["max_target_positions"] * width,
        head=config["vocab_size"] * width,
        layers=decoder_layers * decoder_layer + norm - cross_keys_and_values,
        encoder=convolutions
        + config["max_source_positions"] * width
        + config["encoder_layers"] * encoder_layer
        + norm
        + cross_keys_and_values,
        plain=convolutions + config["max_source_positions"] * width,
        fine=(2 * config["encoder_layers"] + 4 * decoder_layers) * width * width,
    )


def _feed(width: int, inner: int) -> int:
    return int(2 * width * inner + width + inner)
