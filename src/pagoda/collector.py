"""Turns the events of one request into text, stream chunks and the final output.

Works on the engine's thread, so what a caller receives is complete and needs no lock. Knows a tokenizer and the events
of the engine's loop; does not know where its results are awaited.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from time import monotonic
from typing import Any

from pagoda.cache.report import NOT_LOOKED_UP
from pagoda.engine.ends import TokenEvent
from pagoda.engine.request import Request, Sequence
from pagoda.errors import RequestError
from pagoda.outputs import CompletionOutput, RequestOutput, StreamChunk
from pagoda.request_time import time_of
from pagoda.text import TextStream


class Collector:
    """Turns the events of one request into text, chunks and the final output, on the engine's thread.

    Text has the special tokens that are `shown`, though it may have no others.
    """

    def __init__(
        self,
        request: Request,
        tokenizer: Any,
        on_chunk: Callable[[StreamChunk | RequestError], None] | None = None,
        on_end: Callable[[RequestOutput | RequestError], None] | None = None,
        shown: Collection[int] = (),
    ) -> None:
        self._request = request
        self._tokenizer = tokenizer
        self._on_chunk = on_chunk
        self._on_end = on_end
        self._shown = shown
        self._streams: dict[int, TextStream] = {}
        self._has_ended = False
        if tokenizer is not None:
            request.watch = self._watch

    def __call__(self, event: TokenEvent, is_last: bool) -> None:
        """The loop's listener. What raises here ends the request; the caller hears of one end, whatever follows."""
        if self._has_ended:
            return
        try:
            self._take(event, is_last)
        except BaseException as error:
            self._fail(error)
            raise
        self._has_ended = is_last

    def _take(self, event: TokenEvent, is_last: bool) -> None:
        sample = event.sequence
        stream = self._streams.get(sample.index)
        text = self._text_of(stream, is_final=sample.finish_reason is not None) if stream is not None else ""
        error = self._request.error
        if is_last and error is not None:
            self._fail(error)
            return
        output = self._output() if is_last else None
        if self._on_chunk is not None:
            tokens = [] if event.token_id is None else [event.token_id]
            wants_logprobs = tokens and self._request.params.logprobs is not None
            self._on_chunk(
                StreamChunk(
                    index=sample.index,
                    text=text,
                    token_ids=tokens,
                    finish_reason=sample.finish_reason,
                    output=output,
                    logprobs=sample.logprobs[-1:] if wants_logprobs else None,
                    stop_reason=sample.stop_reason,
                    is_first=sample.num_output_tokens == 1,
                )
            )
        if self._on_end is not None and output is not None:
            self._on_end(output)

    def _fail(self, error: BaseException) -> None:
        if not isinstance(error, RequestError):
            error, cause = RequestError(str(error) or repr(error)), error
            error.__cause__ = cause
        for tell in (self._on_chunk, self._on_end):
            if tell is not None:
                tell(error)
        self._has_ended = True

    def _text_of(self, stream: TextStream, is_final: bool) -> str:
        """What is new of a sample, if somebody reads it as it grows."""
        before = monotonic()
        if is_final:
            stream.finish()
        text = stream.take() if self._on_chunk is not None else ""
        self._request.metrics.phases.detokenise += monotonic() - before
        return text

    def _watch(self, sample: Sequence, token: int) -> str | None:
        """The stop string that `token` completes."""
        before = monotonic()
        stopped = self._extend(sample, token)
        self._request.metrics.phases.detokenise += monotonic() - before
        return stopped

    def _extend(self, sample: Sequence, token: int) -> str | None:
        params = self._request.params
        if sample.index not in self._streams:
            self._streams[sample.index] = TextStream(
                self._tokenizer,
                self._request.prompt,
                params.stop_strings,
                params.include_stop_str_in_output,
                params.skip_special_tokens,
                self._shown,
            )
        return self._streams[sample.index].push(token, may_stop=sample.num_output_tokens >= params.min_tokens)

    def _output(self) -> RequestOutput:
        request, encoder_input = self._request, self._request.encoder_input
        return RequestOutput(
            request_id=request.request_id,
            prompt=request.text,
            prompt_token_ids=request.prompt,
            num_cached_tokens=request.num_cached_tokens or 0,
            outputs=[self._completion(sample) for sample in request.sequences],
            metrics=request.metrics,
            encoder_prompt=encoder_input.text if encoder_input else None,
            encoder_prompt_token_ids=encoder_input.token_ids if encoder_input else None,
            num_encoder_tokens=request.namespace.num_encoder_tokens,
            num_cached_encoder_tokens=request.num_cached_encoder_tokens,
            prompt_logprobs=[None, *request.prompt_logprobs] if request.scores_prompt else None,
            leases=tuple(request.lease_results),
            time=time_of(request),
            cache_report=request.cache_report or NOT_LOOKED_UP,
        )

    def _completion(self, sample: Sequence) -> CompletionOutput:
        assert sample.finish_reason is not None
        wants_logprobs = self._request.params.logprobs is not None
        return CompletionOutput(
            index=sample.index,
            text=self._streams[sample.index].text if sample.index in self._streams else "",
            token_ids=sample.output_tokens,
            finish_reason=sample.finish_reason,
            stop_reason=sample.stop_reason,
            logprobs=sample.logprobs if wants_logprobs else None,
            cumulative_logprob=sample.cumulative_logprob if wants_logprobs else None,
            num_omitted_tokens=0 if sample.compression is None else sample.compression.num_omitted_tokens,
        )
