"""From what a caller gives as a prompt to token ids and to what an encoder reads.

Takes the forms that vLLM takes. Knows a tokenizer and a feature extractor, either of which may be missing, and what the
model starts to generate from. Whether the engine can serve the result is the engine's to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np

from pagoda.errors import (
    EmptyPromptError,
    EncoderInputError,
    EncoderInputTooLongError,
    PromptTooLongError,
    RequestError,
    TokenizerRequiredError,
)
from pagoda.tokenizing import encode

if TYPE_CHECKING:
    from pagoda.models.encoder import Encoder, EncoderInput
    from pagoda.models.model import Model

# A prompt is text, token ids, or vLLM's dictionary of either. For an encoder-decoder model that is what the encoder
# reads, unless a dictionary names an `encoder_prompt` and a `decoder_prompt`, or sound beside what is a decoder prompt.
Prompt = str | Sequence[int] | Mapping[str, Any]

# Text that has more of them for each token of the context may be too long.
USUAL_CHARACTERS_PER_TOKEN = 8
PIECE_CHARACTERS = 1 << 16
# No more of the tokens of a piece are due to its ends, which may lie inside words.
CUT_TOKENS = 256

SOUND = ("multi_modal_data", "input_features")


@dataclass(frozen=True)
class ReadPrompt:
    """The tokens that a sequence starts with, and what the encoder of the model reads, if it has one."""

    text: str | None  # as it was given
    token_ids: list[int]
    encoder_input: EncoderInput | None = None


class PromptReader:
    """Reads prompts for `model`. Raises a RequestError for one that it cannot read."""

    def __init__(self, model: Model, tokenizer: Any, feature_extractor: Any, max_tokens: int) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._feature_extractor = feature_extractor
        self._max_tokens = max_tokens

    def read(self, prompt: Prompt) -> ReadPrompt:
        encoder = self._model.encoder
        if encoder is None:
            if isinstance(prompt, Mapping) and ("encoder_prompt" in prompt or any(name in prompt for name in SOUND)):
                raise EncoderInputError("This model has no encoder; give prompt or prompt_token_ids alone.")
            return ReadPrompt(*self._tokens(prompt))
        read, start = _parts(prompt)
        text, token_ids = self._decoder_tokens(start)
        return ReadPrompt(text, token_ids, self._encoder_input(encoder, read))

    def _tokens(self, prompt: Prompt, is_target: bool = False) -> tuple[str | None, list[int]]:
        """The text, if text was given, and the token ids of a prompt; `is_target` is what a decoder goes on from.

        Models that translate may have other words there, and no text that goes on ends with a special token.
        """
        if isinstance(prompt, Mapping):
            if "prompt_token_ids" not in prompt and "prompt" not in prompt:
                raise RequestError("A prompt that is a dictionary needs prompt (text) or prompt_token_ids.")
            prompt = prompt["prompt_token_ids"] if "prompt_token_ids" in prompt else prompt["prompt"]
        if not isinstance(prompt, str):
            return None, _token_ids(prompt)
        if not prompt:
            raise EmptyPromptError("The prompt is empty; give at least one character.")
        self.check_text(prompt)
        tokenizer = self.need_tokenizer()
        options = {"text_target": prompt, "add_special_tokens": False} if is_target else {"text": prompt}
        return prompt, list(encode(tokenizer, **options).input_ids)

    def need_tokenizer(self) -> Any:
        if self._tokenizer is None:
            raise TokenizerRequiredError(
                "This model was loaded without a tokenizer; give token ids, or tokenizer=PATH."
            )
        return self._tokenizer

    def check_text(self, text: str) -> None:
        """Raise RequestError for what no tokenizer takes, and for text that is much too long.

        The latter so that nobody waits while a book is read only to be refused.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                f"The text has half of a surrogate pair at character {error.start}; send whole characters."
            ) from error
        if self._model.encoder is None and len(text) > self._max_tokens * USUAL_CHARACTERS_PER_TOKEN:
            self._check_pieces(text)

    def _check_pieces(self, text: str) -> None:
        """Read the text piece by piece, until there are too many tokens.

        How many characters a token has is unbounded: tokenizers drop spaces, and take whole words for unknown.
        """
        num_tokens = 0
        for start in range(0, len(text), PIECE_CHARACTERS):
            piece = text[start : start + PIECE_CHARACTERS]
            num_read = len(encode(self.need_tokenizer(), piece, add_special_tokens=False).input_ids)
            num_tokens += max(num_read - CUT_TOKENS, 0)
            if num_tokens > self._max_tokens:
                raise PromptTooLongError(
                    f"The prompt has {len(text)} characters, of which the first {start + len(piece)} are more than "
                    f"{self._max_tokens} tokens already; shorten it.",
                    num_tokens=num_tokens,
                    max_tokens=self._max_tokens,
                )

    def _decoder_tokens(self, prompt: Prompt | None) -> tuple[str | None, list[int]]:
        """What the decoder goes on from; as in transformers, it begins with the token that the model starts from."""
        start = list(self._model.generation.start)
        if prompt is None:
            if not start:
                raise RequestError("This model does not say which token its decoder starts from; give decoder_prompt.")
            return None, start
        text, token_ids = self._tokens(prompt, is_target=True)
        if token_ids in ([], start[:1]):
            return text, start
        return text, token_ids if token_ids[:1] == start[:1] else start[:1] + token_ids

    def _encoder_input(self, encoder: Encoder, prompt: Prompt) -> EncoderInput:
        if isinstance(prompt, Mapping) and all(name in prompt for name in SOUND):
            raise EncoderInputError(f"There are {' and '.join(SOUND)}, of which the encoder reads one; give that.")
        if isinstance(prompt, Mapping) and "input_features" in prompt:
            return encoder.input_of_features(prompt["input_features"])
        if isinstance(prompt, Mapping) and "multi_modal_data" in prompt:
            if encoder.reads_text:
                raise EncoderInputError("The encoder of this model reads text; give it a prompt without sound.")
            return encoder.input_of_features(self._features(prompt["multi_modal_data"]))
        if not encoder.reads_text:
            raise EncoderInputError(
                "The encoder of this model reads sound; give multi_modal_data with audio (samples, rate), or "
                "input_features."
            )
        text, token_ids = self._tokens(prompt)
        return encoder.input_of_tokens(token_ids, text)

    def _features(self, data: Mapping[str, Any]) -> Any:
        """What the encoder reads of sound: samples, or samples and their rate."""
        extractor = self._feature_extractor
        if extractor is None:
            raise EncoderInputError(
                "This checkpoint has no preprocessor_config.json, which tells how sound becomes features; give "
                "input_features."
            )
        if not isinstance(data, Mapping) or "audio" not in data:
            raise EncoderInputError(f"multi_modal_data is {_shown(data)}; this model reads its audio.")
        audio = data["audio"]
        samples, rate = audio if isinstance(audio, tuple) and len(audio) == 2 else (audio, extractor.sampling_rate)
        samples = _samples(samples)
        if rate != extractor.sampling_rate:
            raise EncoderInputError(
                f"The audio has {rate} samples per second; this model reads {extractor.sampling_rate}: resample it."
            )
        if not 0 < len(samples) <= extractor.n_samples:
            raise EncoderInputTooLongError(
                f"The audio lasts {len(samples) / rate:.1f} s; this model reads up to "
                f"{extractor.n_samples / rate:.0f} s at a time, and not nothing: cut it."
            )
        return extractor(samples, sampling_rate=rate, return_tensors="np").input_features[0]


def _token_ids(prompt: Any) -> list[int]:
    wrong = RequestError(f"The prompt is {_shown(prompt)}; give text, or a list of token ids.")
    if isinstance(prompt, (bytes, bytearray)):
        raise wrong
    try:
        return [index(token) for token in prompt]
    except TypeError as error:
        raise wrong from error


def _samples(sound: Any) -> np.ndarray:
    """One channel of sound, fp32."""
    try:
        samples = np.asarray(sound)
    except (TypeError, ValueError, RuntimeError) as error:
        raise EncoderInputError(f"The audio is {_shown(sound)}; give its samples as numbers.") from error
    if samples.ndim != 1 or samples.dtype.kind not in "fiu":
        raise EncoderInputError(
            f"The audio is {list(samples.shape)} of {samples.dtype}; give the samples of one channel as real numbers."
        )
    return samples.astype(np.float32)


def _shown(value: Any) -> str:
    return f"a {type(value).__name__}" if value is not None else "None"


def _parts(prompt: Prompt) -> tuple[Prompt, Prompt | None]:
    """What the encoder reads, and what the decoder goes on from."""
    if not isinstance(prompt, Mapping):
        return prompt, None
    if "encoder_prompt" in prompt:
        read = prompt["encoder_prompt"]
        if isinstance(read, Mapping) and "decoder_prompt" in read:
            raise EncoderInputError("The decoder_prompt is inside of the encoder_prompt; give it beside.")
        return read, prompt.get("decoder_prompt")
    if "decoder_prompt" in prompt:
        raise EncoderInputError("There is a decoder_prompt and no encoder_prompt; give both.")
    has_sound = any(name in prompt for name in SOUND)
    has_start = "prompt" in prompt or "prompt_token_ids" in prompt
    return prompt, prompt if has_sound and has_start else None
