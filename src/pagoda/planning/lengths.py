"""How many positions a model has, by its tables and by rotary embeddings that hold up to some length.

Takes sizes under the plain names in `LENGTH_NAMES`: `models/positions.py` has them of a configuration of transformers,
`plain_lengths` of a config.json.
"""

from __future__ import annotations

from typing import Any

from pagoda.planning.text_config import Sizes

LENGTH_NAMES = ("max_target_positions", "max_position_embeddings", "rope_parameters")
# Rotary embeddings that change every frequency once a batch has a sequence that is long enough.
CHANGING_KINDS = ("dynamic", "longrope")
# What families call the size of their table that others call max_position_embeddings.
OWN_NAMES = {
    **dict.fromkeys(("codegen", "ctrl", "gpt2", "gpt_bigcode", "gptj", "openai-gpt"), "n_positions"),
    **dict.fromkeys(("bailing_hybrid", "kimi_linear"), "model_max_length"),
    "dbrx": "max_seq_len",
}
# Families whose tables begin after the row of the padding token, as RoBERTa's do.
PADDED_FAMILIES = {
    *("camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
}


def longest(sizes: Sizes, offset: int) -> int | None:
    """How many tokens a sequence has at most unless more are asked for, or None if the model sets no limit.

    `offset` rows of a table are for no token.
    """
    limits = [limit for rope in rope_settings(sizes) if (limit := stable_length(sizes, rope)) is not None]
    return min([*limits, *_table_sizes(sizes, offset)], default=None)


def longest_asked_for(sizes: Sizes, offset: int) -> int | None:
    """How many tokens may be asked for, with frequencies that are fixed for that; None if there is no limit."""
    factors = [float(rope["factor"]) for rope in rope_settings(sizes) if rope.get("rope_type") == "dynamic"]
    stretched = [int(size * max([1.0, *factors])) for size in _table_sizes(sizes, offset)]
    return min(stretched, default=None)


def rope_settings(sizes: Sizes) -> list[dict[str, Any]]:
    """The rotary settings of the model, one for all layers or one per kind of layer."""
    settings = sizes.get("rope_parameters") or {}
    nested = [value for value in settings.values() if isinstance(value, dict)]
    return nested or [settings]


def stable_length(sizes: Sizes, rope: dict[str, Any]) -> int | None:
    """Up to which length the frequencies stay what they are for the shortest sequence.

    `dynamic` and `longrope` change them for every token of a step as soon as one sequence is longer. Keys in the cache
    would then disagree with new ones, and with what a sequence gets when it runs alone.
    """
    if rope.get("rope_type") not in CHANGING_KINDS:
        return None
    return int(rope.get("original_max_position_embeddings") or sizes["max_position_embeddings"])


def plain_lengths(text: Sizes) -> dict[str, Any]:
    """What a config.json says of lengths, under plain names."""
    own_name = OWN_NAMES.get(text.get("model_type", ""), "max_position_embeddings")
    rope = text.get("rope_scaling") or text.get("rope_parameters") or {}
    return {
        "max_target_positions": text.get("max_target_positions"),
        "max_position_embeddings": text.get(own_name),
        "rope_parameters": _completed(rope, text.get("original_max_position_embeddings")),
    }


def table_offset(text: Sizes) -> int:
    """The number of a sequence's first token."""
    return int(text["pad_token_id"]) + 1 if text.get("model_type") in PADDED_FAMILIES else 0


def _completed(rope: dict[str, Any], original_length: int | None) -> dict[str, Any]:
    """Rotary settings as transformers completes them."""
    if any(isinstance(value, dict) for value in rope.values()):
        return {name: _completed(value, None) for name, value in rope.items() if isinstance(value, dict)}
    kind = rope.get("rope_type") or rope.get("type")
    stated = {"original_max_position_embeddings": original_length} if original_length and kind == "longrope" else {}
    return rope | {"rope_type": kind} | stated


def _table_sizes(sizes: Sizes, offset: int) -> list[int]:
    table = sizes.get("max_target_positions") or sizes.get("max_position_embeddings")
    return [int(table) - offset] if table else []
