"""Which position numbers a model takes, and how many.

Knows two traits of position encodings that would break pages silently: RoBERTa-like tables start after the padding
index, and some rotary encodings change every frequency once a batch contains a long enough sequence. These are fixed
for the length that is asked for.
"""

from typing import Any

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from pagoda.errors import ConfigError
from pagoda.models.decoder_config import decoder_config

CHANGING_KINDS = ("dynamic", "longrope")


def position_offset(network: torch.nn.Module) -> int:
    """The number of a sequence's first token. RoBERTa-like tables begin after the row of the padding token."""
    for module in network.modules():
        if callable(getattr(module, "create_position_ids_from_input_ids", None)):
            return int(module.padding_idx) + 1  # type: ignore[arg-type]
    return 0


def max_positions(config: Any, offset: int) -> int | None:
    """How many tokens a sequence has at most unless more are asked for, or None if the model sets no limit."""
    text = decoder_config(config)
    limits = [limit for rope in _rope_settings(text) if (limit := _stable_length(text, rope)) is not None]
    return min([*limits, *_table_sizes(text, offset)], default=None)


def most_positions(config: Any, offset: int) -> int | None:
    """How many tokens may be asked for, with frequencies that are fixed for that; None if there is no limit."""
    text = decoder_config(config)
    factors = [float(rope["factor"]) for rope in _rope_settings(text) if rope.get("rope_type") == "dynamic"]
    stretched = [int(size * max([1.0, *factors])) for size in _table_sizes(text, offset)]
    return min(stretched, default=None)


class Rotation:
    """How a network rotates positions, where that depends on how long sequences are."""

    def __init__(self, network: torch.nn.Module) -> None:
        self._network = network
        self._length: int | None = None

    def fix(self, num_tokens: int | None) -> None:
        """Rotate every sequence as one of `num_tokens`, however long those of a step are; what vLLM does as well.

        The network gets buffers of its own: others may share those it had. Raises ConfigError if that was done for
        another length, with other frequencies.
        """
        length = None if num_tokens is None else _deciding_length(self._network.config, num_tokens)
        if length is None or length == self._length:
            return
        if self._length is not None:
            raise ConfigError(
                f"max_model_len is {num_tokens}, and another LLM uses this model, whose rotary embedding is scaled for "
                f"{self._length} tokens; load the model anew."
            )
        _fix_frequencies(self._network, length)
        self._length = length


def _deciding_length(config: Any, num_tokens: int) -> int | None:
    """Equal for two lengths whose frequencies are; None where nothing changes them."""
    text = decoder_config(config)
    for rope in _rope_settings(text):
        stable = _stable_length(text, rope)
        if stable is not None:
            longest = num_tokens if rope["rope_type"] == "dynamic" else stable + 1
            return longest if num_tokens > stable else stable
    return None


def _fix_frequencies(network: torch.nn.Module, num_tokens: int) -> None:
    module: Any
    for module in network.modules():
        kinds = getattr(module, "rope_type", None)
        if isinstance(kinds, dict):
            module.rope_type = {name: _fixed(module, kind, num_tokens, name) for name, kind in kinds.items()}
        elif kinds is not None:
            module.rope_type = _fixed(module, kinds, num_tokens, None)


def _fixed(module: Any, kind: str, num_tokens: int, layer_type: str | None) -> str:
    """Set the frequencies of a rotary module; what its kind is from now on."""
    if kind not in CHANGING_KINDS:
        return kind
    frequencies, _ = ROPE_INIT_FUNCTIONS[kind](module.config, "cpu", seq_len=num_tokens, layer_type=layer_type)
    prefix = "" if layer_type is None else f"{layer_type}_"
    module.register_buffer(f"{prefix}inv_freq", frequencies, persistent=False)
    return "fixed"


def _table_sizes(text_config: Any, offset: int) -> list[int]:
    table = getattr(text_config, "max_target_positions", None) or getattr(text_config, "max_position_embeddings", None)
    return [int(table) - offset] if table else []


def _rope_settings(text_config: Any) -> list[dict[str, Any]]:
    """The rotary settings of the model, one for all layers or one per kind of layer."""
    settings = getattr(text_config, "rope_parameters", None) or {}
    nested = [value for value in settings.values() if isinstance(value, dict)]
    return nested or [settings]


def _stable_length(text_config: Any, rope: dict[str, Any]) -> int | None:
    """Up to which length the frequencies stay what they are for the shortest sequence.

    `dynamic` and `longrope` change them for every token of a step as soon as one sequence is longer. Keys in the cache
    would then disagree with new ones, and with what a sequence gets when it runs alone.
    """
    if rope.get("rope_type") not in CHANGING_KINDS:
        return None
    return int(rope.get("original_max_position_embeddings") or text_config.max_position_embeddings)
