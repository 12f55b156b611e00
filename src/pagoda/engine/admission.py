"""Whether a request can ever be served, and what to change if not; nothing has happened to it before it is asked."""

from __future__ import annotations

from pagoda.cache.compression.progress import MOST_POSITIONS
from pagoda.config import EngineConfig
from pagoda.engine.sampling import stop_token_ids
from pagoda.errors import (
    EmptyPromptError,
    EncoderInputError,
    EncoderInputTooLongError,
    InvalidSamplingError,
    PromptTooLongError,
    TokenOutOfRangeError,
)
from pagoda.models.encoder import EncoderInput
from pagoda.models.model import Model
from pagoda.planning.limits import TenantLimits
from pagoda.planning.memory import MemoryPlan
from pagoda.sampling_params import SamplingParams


class Admission:
    """What one engine can serve. Every check raises a RequestError."""

    def __init__(self, model: Model, config: EngineConfig, memory: MemoryPlan) -> None:
        self._model = model
        self._config = config
        self._memory = memory
        self._limits = TenantLimits(memory, config)

    def max_len(self, tenant: str) -> int:
        """Where sequences of `tenant` end."""
        return self._limits.max_len(tenant)

    def check_prompt(self, prompt: list[int], max_tokens: int | None, tenant: str, is_endless: bool = False) -> None:
        """One that `is_endless` may be longer than the context."""
        if not prompt:
            raise EmptyPromptError("The prompt has no token; give at least one (for text, at least one character).")
        vocabulary = self._model.vocab_size
        if min(prompt) < 0 or max(prompt) >= vocabulary:
            wrong = next(token for token in prompt if not 0 <= token < vocabulary)
            raise TokenOutOfRangeError(f"Token id {wrong} is not in the vocabulary of {vocabulary} tokens.")
        self._check_length(len(prompt), max_tokens, MOST_POSITIONS if is_endless else self.max_len(tenant))

    def check_params(self, params: SamplingParams) -> None:
        vocabulary = self._model.vocab_size
        if any(not 0 <= token < vocabulary for token in (*params.logit_bias, *params.stop_token_ids)):
            raise InvalidSamplingError("logit_bias or stop_token_ids names a token that is not in the vocabulary.")
        if params.min_tokens and len(stop_token_ids(params, self._model.eos_token_ids)) >= vocabulary:
            raise InvalidSamplingError("min_tokens and stop_token_ids rule out every token; allow more.")
        if params.n > self._config.max_num_seqs:
            raise InvalidSamplingError(f"n is {params.n}, more than max_num_seqs ({self._config.max_num_seqs}).")
        for name, count in (("logprobs", params.logprobs), ("prompt_logprobs", params.prompt_logprobs)):
            if (count or 0) > vocabulary:
                raise InvalidSamplingError(f"{name} is {count}, more than the vocabulary has tokens.")

    def check_encoder_input(self, encoder_input: EncoderInput | None, tenant: str) -> None:
        longest = self._limits.max_encoder_len(tenant)
        if longest is None and encoder_input is not None:
            raise EncoderInputError("This model has no encoder; give its prompt as such, without encoder_prompt.")
        if longest is not None and encoder_input is None:
            raise EncoderInputError("This is an encoder-decoder model; give it an encoder_prompt.")
        if longest is not None and encoder_input is not None and encoder_input.num_tokens > longest:
            raise EncoderInputTooLongError(
                f"The encoder prompt has {encoder_input.num_tokens} tokens and there are pages for {longest}; shorten "
                "it or raise kv_cache_memory_bytes."
            )

    def _check_length(self, num_tokens: int, max_tokens: int | None, longest: int) -> None:
        if num_tokens + (max_tokens != 0) <= longest:
            return
        limit = (self._memory.limited_by, self._memory.remedy)
        if longest == MOST_POSITIONS:
            limit = ("what positions are computed for", "")
        elif longest < self._memory.max_model_len:
            limit = ("what other tenants have not reserved", ", raise kv_cache_memory_bytes or lower their page_quota")
        raise PromptTooLongError(
            f"The prompt has {num_tokens} tokens and must leave room for one more within {longest} ({limit[0]}); "
            f"shorten it{limit[1]}.",
            num_tokens=num_tokens,
            max_tokens=longest,
        )
