"""What callers get back, in vLLM's names. Data only."""

from __future__ import annotations

from dataclasses import dataclass

from pagoda.analysis.time import RequestTime, verdict
from pagoda.cache.leases import LeaseResult
from pagoda.cache.report import NOT_LOOKED_UP, CacheReport
from pagoda.engine.request import FinishReason, RequestMetrics, TokenLogprobs


@dataclass(frozen=True)
class CompletionOutput:
    """One sample of a request. `text` is empty without a tokenizer.

    `num_omitted_tokens` of the sequence were not kept to its end (`kv_compression`).
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    stop_reason: int | str | None  # the stop token or stop string that ended it
    logprobs: list[TokenLogprobs] | None
    cumulative_logprob: float | None
    num_omitted_tokens: int = 0


@dataclass(frozen=True)
class RequestOutput:
    """A finished request. `num_cached_tokens` of its prompt were not computed again.

    `prompt_logprobs` has None for the first token, which nothing predicts; it is None unless they were asked for.
    `leases` says of each breakpoint whether its prefix stays held, `cache_report` why no more was cached, and `time`
    where its time went.

    The `encoder_` fields are of what the encoder read, for encoder-decoder models; tokens only if that was text.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    num_cached_tokens: int
    outputs: list[CompletionOutput]
    metrics: RequestMetrics
    encoder_prompt: str | None = None
    encoder_prompt_token_ids: list[int] | None = None
    num_encoder_tokens: int = 0
    num_cached_encoder_tokens: int = 0
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    leases: tuple[LeaseResult, ...] = ()
    cache_report: CacheReport = NOT_LOOKED_UP
    time: RequestTime | None = None

    @property
    def verdict(self) -> tuple[str, ...]:
        """Where its time went, in words: a sentence for each cause."""
        return () if self.time is None else verdict(self.time)

    @property
    def text(self) -> str:
        """The text of the first sample."""
        return self.outputs[0].text


@dataclass(frozen=True)
class StreamChunk:
    """News of one sample: `text` and `token_ids` since its last chunk.

    Text may lag behind tokens: it is held back while it could still become part of a stop string or of a character.
    `output` is set on the last chunk of the request, `logprobs` if they were asked for.
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None
    output: RequestOutput | None
    logprobs: list[TokenLogprobs] | None = None
    stop_reason: int | str | None = None
    is_first: bool = False  # of its sample
