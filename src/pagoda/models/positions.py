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
from pagoda.planning.lengths import (
    CHANGING_KINDS,
    LENGTH_NAMES,
    longest,
    longest_asked_for,
    rope_settings,
    stable_length,
)


def position_offset(network: torch.nn.Module) -> int:
    """The number of a sequence's first token. RoBERTa-like tables begin after the row of the padding token."""
    for module in network.modules():
        if callable(getattr(module, "create_position_ids_from_input_ids", None)):
            return int(module.padding_idx) + 1  # type: ignore[arg-type]
    return 0


def max_positions(config: Any, offset: int) -> int | None:
    """How many tokens a sequence has at most unless more are asked for, or None if the model sets no limit."""
    return longest(_sizes(config), offset)


def most_positions(config: Any, offset: int) -> int | None:
    """How many tokens may be asked for, with frequencies that are fixed for that; None if there is no limit."""
    return longest_asked_for(_sizes(config), offset)


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
    sizes = _sizes(config)
    for rope in rope_settings(sizes):
        stable = stable_length(sizes, rope)
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
    before = getattr(module, f"{prefix}inv_freq")
    module.register_buffer(f"{prefix}inv_freq", frequencies.to(before.device), persistent=False)
    return "fixed"


def _sizes(config: Any) -> dict[str, Any]:
    text = decoder_config(config)
    return {name: getattr(text, name, None) for name in LENGTH_NAMES}
