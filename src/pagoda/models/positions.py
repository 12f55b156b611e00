"""Which position numbers a model takes, and how many.

Knows two traits of position encodings that would break pages silently: RoBERTa-like tables start after the padding
index, and some rotary encodings change every frequency once a batch contains a long enough sequence.
"""

from typing import Any

import torch

from pagoda.models.decoder_config import decoder_config


def position_offset(network: torch.nn.Module) -> int:
    """The number of a sequence's first token. RoBERTa-like tables begin after the row of the padding token."""
    for module in network.modules():
        if callable(getattr(module, "create_position_ids_from_input_ids", None)):
            return int(module.padding_idx) + 1  # type: ignore[arg-type]
    return 0


def max_positions(config: Any, offset: int) -> int | None:
    """How many tokens a sequence may have, or None if the model sets no limit."""
    text = decoder_config(config)
    limits = [limit for rope in _rope_settings(text) if (limit := _stable_length(text, rope)) is not None]
    table = getattr(text, "max_target_positions", None) or getattr(text, "max_position_embeddings", None)
    if table:
        limits.append(int(table) - offset)
    return min(limits, default=None)


def _rope_settings(text_config: Any) -> list[dict[str, Any]]:
    """The rotary settings of the model, one for all layers or one per kind of layer."""
    settings = getattr(text_config, "rope_parameters", None) or {}
    nested = [value for value in settings.values() if isinstance(value, dict)]
    return nested or [settings]


def _stable_length(text_config: Any, rope: dict[str, Any]) -> int | None:
    """Up to which length the frequencies stay fixed.

    `dynamic` and `longrope` change them for every token of a step as soon as one sequence is longer. Keys in the cache
    would then disagree with new ones, and with what a sequence gets when it runs alone.
    """
    if rope.get("rope_type") not in ("dynamic", "longrope"):
        return None
    return int(rope.get("original_max_position_embeddings") or text_config.max_position_embeddings)
