"""Runs a call as requests of an engine, and shows each of them as a job."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from pagoda.analysis.time import RequestTime
from pagoda.cache.leases import Breakpoint, LeaseResult
from pagoda.cache.report import CacheReport
from pagoda.collector import Collector
from pagoda.engine.request import FinishReason, Request, RequestMetrics, TokenLogprobs
from pagoda.llm import LLM
from pagoda.request_time import time_of
from pagoda.sampling_params import SamplingParams
from pagoda.server.ground.messages import Call, News


class LocalCall:
    """A call as requests of the engine."""

    def __init__(self, call: Call, requests: Sequence[Request], llm: LLM) -> None:
        self._call = call
        self._requests = requests
        self._llm = llm
        self.jobs = [LocalJob(request) for request in requests]

    def start(self, tell: Callable[[int, News], None]) -> None:
        collectors = [self._collector(index, partial(tell, index)) for index in range(len(self._requests))]
        self._llm.loop.submit(self._requests, collectors)

    def cancel(self) -> None:
        for request in self._requests:
            self._llm.loop.cancel(request.request_id)

    def _collector(self, index: int, tell: Callable[[News], None]) -> Collector:
        request, shown = self._requests[index], self._call.works[index].shown
        if self._call.streams:
            return Collector(request, self._llm.tokenizer, on_chunk=tell, shown=shown)
        return Collector(request, self._llm.tokenizer, on_end=tell, shown=shown)


class LocalJob:
    """A request of the engine, as the server sees it."""

    def __init__(self, request: Request) -> None:
        self._request = request

    @property
    def job_id(self) -> str:
        return self._request.request_id

    @property
    def prompt(self) -> list[int]:
        return self._request.prompt

    @property
    def text(self) -> str | None:
        return self._request.text

    @property
    def params(self) -> SamplingParams:
        return self._request.params

    @property
    def metrics(self) -> RequestMetrics:
        return self._request.metrics

    @property
    def time(self) -> RequestTime:
        return time_of(self._request)

    @property
    def num_encoder_tokens(self) -> int:
        return self._request.namespace.num_encoder_tokens

    @property
    def num_cached_tokens(self) -> int | None:
        return self._request.num_cached_tokens

    @property
    def num_cached_encoder_tokens(self) -> int:
        return self._request.num_cached_encoder_tokens

    @property
    def cache_report(self) -> CacheReport | None:
        return self._request.cache_report

    @property
    def num_output_tokens(self) -> int:
        return sum(sample.num_output_tokens for sample in self._request.sequences)

    @property
    def first_output_tokens(self) -> list[int]:
        samples = self._request.sequences
        return samples[0].output_tokens if samples else []

    @property
    def finish_reasons(self) -> list[FinishReason | None]:
        return [sample.finish_reason for sample in self._request.sequences]

    @property
    def prompt_logprobs(self) -> list[TokenLogprobs] | None:
        return self._request.prompt_logprobs if self._request.scores_prompt else None

    @property
    def breakpoints(self) -> tuple[Breakpoint, ...]:
        return self._request.breakpoints

    @property
    def lease_results(self) -> list[LeaseResult]:
        return self._request.lease_results

    @property
    def error(self) -> Exception | None:
        return self._request.error
