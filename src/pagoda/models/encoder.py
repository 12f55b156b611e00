"""The encoder of an encoder-decoder model: what it may read, and what it makes of that.

Knows one input at a time, since every one is read apart: what becomes of an input does not depend on those beside it.
Does not know the decoder (`packed_decoder.py`) nor how text and sound become inputs (`prompts.py`).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING

from pagoda.errors import (
    EmptyPromptError,
    EncoderInputError,
    EncoderInputTooLongError,
    TokenOutOfRangeError,
    UnsupportedModelError,
)
from pagoda.machine import available_memory_nbytes
from pagoda.planning.encoder import ENCODER_NAMES, SOUND_FAMILIES, longest_input
from pagoda.planning.facts import EncoderFacts, MachineFacts

DIGEST_NBYTES = 32
FRAMES_PER_TOKEN = 2  # by a convolution of stride two
# Families in which a token depends on more than its own request.
_UNREPEATABLE = {
    "bigbird_pegasus": "once its encoder has read a short input, it attends in another way for good",
    **dict.fromkeys(
        ("nllb-moe", "switch_transformers"), "its experts take so many tokens of a step and no more, whosever they are"
    ),
}


@dataclass(frozen=True, eq=False)
class EncoderInput:
    """Token ids, int64 [tokens], or features of sound, fp32 [channels, frames]; `num_tokens` are made of them."""

    values: torch.Tensor
    num_tokens: int
    text: str | None = None  # as it was given

    @property
    def token_ids(self) -> list[int] | None:
        return self.values.tolist() if self.values.dtype is torch.int64 else None

    @cached_property
    def digest(self) -> bytes:
        """Stands for the values: of equal inputs it is equal, and of others it is not."""
        values = self.values.contiguous()
        kind = f"{values.dtype} {list(values.shape)} ".encode()
        return blake2b(kind + values.numpy().tobytes(), digest_size=DIGEST_NBYTES).digest()


class Encoder:
    """Reads the inputs of `network`. It attends in transformers' own way: nothing of what it computes is cached."""

    def __init__(self, network: Any) -> None:
        self._network = network
        self._module = network.get_encoder()
        self.reads_text = network.config.model_type not in SOUND_FAMILIES
        _attend_plainly(self._module)

    @cached_property
    def max_tokens(self) -> int | None:
        """The longest output that the position encoding supports, or memory for it; None if neither sets a limit."""
        config = self._module.config
        sizes = {name: getattr(config, name, None) for name in ENCODER_NAMES}
        return longest_input(sizes, MachineFacts(available_memory_nbytes()))

    @property
    def facts(self) -> EncoderFacts:
        return EncoderFacts(self.reads_text, self.max_tokens)

    @property
    def feature_shape(self) -> tuple[int, int]:
        """Channels and frames of what an encoder of sound reads."""
        config = self._module.config
        return config.num_mel_bins, config.max_source_positions * FRAMES_PER_TOKEN

    def input_of_tokens(self, token_ids: list[int], text: str | None = None) -> EncoderInput:
        """Raises a RequestError if the encoder cannot read them."""
        if not self.reads_text:
            raise EncoderInputError("The encoder of this model reads sound; give it audio or input_features.")
        if not token_ids:
            raise EmptyPromptError("The encoder prompt has no token; give at least one.")
        vocab_size = self._module.get_input_embeddings().num_embeddings
        wrong = next((token for token in token_ids if not 0 <= token < vocab_size), None)
        if wrong is not None:
            raise TokenOutOfRangeError(f"Token id {wrong} is not in the encoder's vocabulary of {vocab_size} tokens.")
        if self.max_tokens is not None and len(token_ids) > self.max_tokens:
            raise EncoderInputTooLongError(
                f"The encoder prompt has {len(token_ids)} tokens and the encoder of this model reads at most "
                f"{self.max_tokens}; shorten it."
            )
        return EncoderInput(torch.tensor(token_ids), len(token_ids), text)

    def input_of_features(self, features: Any) -> EncoderInput:
        """Raises a RequestError if the encoder cannot read them."""
        if self.reads_text:
            raise EncoderInputError("The encoder of this model reads text; give it a prompt or prompt_token_ids.")
        try:
            values = torch.as_tensor(features, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise EncoderInputError(f"input_features is no array of numbers: {error}") from error
        if tuple(values.shape) != self.feature_shape:
            raise EncoderInputError(
                f"input_features is {list(values.shape)}; the encoder of this model reads {list(self.feature_shape)} "
                "(channels, frames): pad or cut the sound to its length."
            )
        if not values.isfinite().all():
            raise EncoderInputError("input_features has NaN or infinite values.")
        return EncoderInput(values.clone(), values.shape[1] // FRAMES_PER_TOKEN)  # what is given may change later

    @torch.inference_mode()
    def encode(self, input: EncoderInput) -> torch.Tensor:
        """What the decoder attends to: [tokens, width] in the type of the weights."""
        values = (input.values if self.reads_text else input.values.to(self._network.dtype)).to(self._network.device)
        hidden: torch.Tensor = self._module(**{self._module.main_input_name: values[None]}).last_hidden_state[0]
        assert len(hidden) == input.num_tokens, "an encoder made another number of tokens than it said"
        return hidden


def check_encoder(config: Any) -> None:
    """Refuse what reads inputs that Pagoda cannot give, and what would not read an input in the same way twice."""
    if type(config) in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING and config.model_type not in SOUND_FAMILIES:
        raise UnsupportedModelError(
            f"The encoder of {config.model_type} reads sound in a way of its own; Pagoda gives encoders text, or sound "
            "as Whisper reads it."
        )
    reason = _UNREPEATABLE.get(config.model_type)
    if reason:
        raise UnsupportedModelError(f"{config.model_type} gives another result beside other requests: {reason}.")


def _attend_plainly(encoder: Any) -> None:
    """Let an encoder attend by torch's own function, though its decoder, which may share its settings, does not."""
    name = "sdpa" if encoder._supports_sdpa else "eager"
    plain: dict[int, Any] = {}
    for module in encoder.modules():
        config = getattr(module, "config", None)
        if config is not None:
            if id(config) not in plain:
                plain[id(config)] = copy.copy(config)
                plain[id(config)]._attn_implementation_internal = name
            module.config = plain[id(config)]
