"""A backend that is no LLM: it answers every prompt with the prompt's own tokens, from the last to the first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from time import monotonic
from typing import Any

from transformers import AutoTokenizer

from pagoda.analysis.time import RequestTime
from pagoda.cache.holdings.allocator import PageCounts
from pagoda.cache.inspector import CacheStats
from pagoda.cache.leases import Breakpoint, LeaseInfo, LeaseResult
from pagoda.cache.prefix.names import Identity
from pagoda.cache.prefix.outline import Outline
from pagoda.cache.report import CacheReport
from pagoda.chat.options import ChatOptions
from pagoda.engine.constraint import Constraint
from pagoda.engine.request import FinishReason, RequestMetrics, TokenLogprobs
from pagoda.errors import EngineClosedError, PromptTooLongError, StructuredOutputError, UnsupportedModelError
from pagoda.outputs import CompletionOutput, RequestOutput, StreamChunk
from pagoda.prompts import Prompt, ReadPrompt
from pagoda.sampling_params import SamplingParams, StructuredOutputs
from pagoda.server.backend.base import Embedder
from pagoda.server.backend.facts import Lookups, PageFacts, PageKind, ServedModel
from pagoda.server.ground.messages import Call, News, Scope, Work

MAX_MODEL_LEN = 64
PAGES = PageCounts(total=8, free=8, open=0, in_use=0, idle=0)


class ToyTexts:
    """The tokenizer of a real model, and a template of one line."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def need_tokenizer(self) -> Any:
        return self.tokenizer

    def read(self, prompt: Prompt) -> ReadPrompt:
        if isinstance(prompt, str):
            return ReadPrompt(prompt, self.tokenizer(prompt, add_special_tokens=False).input_ids)
        return ReadPrompt(None, [int(each) for each in prompt])

    def check_text(self, text: str) -> None:
        pass

    def template(self, options: ChatOptions) -> str:
        return options.chat_template or "{{ messages }}"

    def render(self, messages: Sequence[Mapping[str, Any]], options: ChatOptions) -> str:
        return "\n".join(f"{each['role']} says {each['content']}" for each in messages)


class ToyForms:
    """Knows none."""

    def find(self, wanted: StructuredOutputs, tenant: str) -> Constraint | None:
        return None

    def compile(self, wanted: StructuredOutputs, tenant: str, is_wanted: Callable[[], bool]) -> Constraint | None:
        raise StructuredOutputError("A toy has no forms.")


@dataclass
class ToyJob:
    """One prompt, and how much of its answer has been told."""

    job_id: str
    work: Work
    metrics: RequestMetrics
    num_cached_tokens: int | None = None
    output: list[int] = field(default_factory=list)
    finish_reasons: list[FinishReason | None] = field(default_factory=lambda: [None])
    error: Exception | None = None
    num_encoder_tokens: int = 0
    num_cached_encoder_tokens: int = 0
    prompt_logprobs: list[TokenLogprobs] | None = None
    cache_report: CacheReport | None = None

    @property
    def prompt(self) -> list[int]:
        return self.work.prompt.token_ids

    @property
    def text(self) -> str | None:
        return self.work.prompt.text

    @property
    def params(self) -> SamplingParams:
        return self.work.params

    @property
    def time(self) -> RequestTime:
        wall, ending = asdict(self.metrics.wall()), self.finish_reasons[0]
        work = asdict(self.metrics.phases)
        return RequestTime(len(self.prompt), 0, self.num_output_tokens, wall, work, ending=ending and str(ending))

    @property
    def num_output_tokens(self) -> int:
        return len(self.output)

    @property
    def breakpoints(self) -> tuple[Breakpoint, ...]:
        return self.work.breakpoints

    @property
    def lease_results(self) -> list[LeaseResult]:
        return [LeaseResult(granted=False, num_tokens=0, resume_tokens=0) for _ in self.breakpoints]


class ToyCall:
    """Tells one token after the other, those of one job after those of another."""

    def __init__(self, backend: ToyBackend, call: Call) -> None:
        self._backend = backend
        self._streams = call.streams
        self._is_cancelled = False
        self.jobs = [
            ToyJob(f"{call.call_id}-{index}", work, RequestMetrics(arrival=monotonic()))
            for index, work in enumerate(call.works)
        ]

    def start(self, tell: Callable[[int, News], None]) -> None:
        if not self._backend.is_alive:
            raise EngineClosedError("The toy is closed.")
        for index, job in enumerate(self.jobs):
            self._backend.thread.submit(self._answer, job, partial(tell, index))

    def cancel(self) -> None:
        self._is_cancelled = True

    def _answer(self, job: ToyJob, tell: Callable[[News], None]) -> None:
        now = monotonic()
        job.num_cached_tokens, job.metrics.first_scheduled, job.metrics.first_token = 0, now, now
        wanted = self._backend.answer_to(job.prompt, job.params.max_tokens)
        is_whole = len(wanted) == len(job.prompt)
        while not self._is_cancelled and len(job.output) < len(wanted):
            job.output.append(wanted[len(job.output)])
            self._tell_chunk(job, tell, None)
        job.metrics.last_token = monotonic()
        reason = FinishReason.STOP if is_whole else FinishReason.LENGTH
        job.finish_reasons = [FinishReason.ABORT if self._is_cancelled else reason]
        if self._streams:
            self._tell_chunk(job, tell, self._output(job))
        else:
            tell(self._output(job))
        self._backend.end_step()

    def _tell_chunk(self, job: ToyJob, tell: Callable[[News], None], output: RequestOutput | None) -> None:
        if self._streams:
            tokens = [] if output is not None else job.output[-1:]
            text, is_first = self._backend.text_of(tokens), len(job.output) == 1
            tell(StreamChunk(0, text, tokens, job.finish_reasons[0], output, is_first=is_first))
            self._backend.end_step()

    def _output(self, job: ToyJob) -> RequestOutput:
        reason = job.finish_reasons[0]
        assert reason is not None
        sample = CompletionOutput(0, self._backend.text_of(job.output), list(job.output), reason, None, None, None)
        return RequestOutput(job.job_id, job.text, job.prompt, 0, [sample], job.metrics)


class ToyInspector:
    """Of a cache in which nothing ever is."""

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        self._thread = thread

    def stats(self) -> Future[CacheStats]:
        return self._thread.submit(_stats)

    def stats_and_leases(self) -> Future[tuple[CacheStats, list[LeaseInfo]]]:
        return self._thread.submit(lambda: (_stats(), []))

    def outline(self, most: int, most_tokens: int, tenant: str | None) -> Future[list[Outline]]:
        return self._thread.submit(list)

    def lookups(self) -> Future[Lookups]:
        return self._thread.submit(lambda: Lookups((), 0, 0))

    def page_states(self, stride: int) -> Future[list[bytes]]:
        return self._thread.submit(lambda: [bytes(PAGES.total)])


class ToyBackend:
    """On one thread."""

    def __init__(self, tokenizer_folder: str) -> None:
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
        self.thread = ThreadPoolExecutor(1)
        self.model = ServedModel(
            max_model_len=MAX_MODEL_LEN,
            vocab_size=len(tokenizer),
            eos_token_ids=frozenset({tokenizer.eos_token_id}),
            default_params=SamplingParams(max_tokens=None),
        )
        kind = PageKind(name="toy", format_name="none", page_nbytes=0, page_tokens=16)
        self.pages = PageFacts((kind,), ("none",), (PAGES.total,), kind.page_tokens, 0)
        self.texts = ToyTexts(tokenizer)
        self.forms = ToyForms()
        self.inspector = ToyInspector(self.thread)
        self.is_alive = True
        self._observers: list[Callable[[], None]] = []

    def ping(self) -> Future[None]:
        return self.thread.submit(lambda: None)

    def prepare(self, call: Call) -> ToyCall:
        for work in call.works:
            if (num_tokens := len(work.prompt.token_ids)) > MAX_MODEL_LEN:
                raise PromptTooLongError("Too long for a toy.", num_tokens=num_tokens, max_tokens=MAX_MODEL_LEN)
        return ToyCall(self, call)

    def observe(self, observer: Callable[[], None]) -> Callable[[], None]:
        self._observers.append(observer)
        return lambda: self._observers.remove(observer)

    def embedder(self) -> Embedder:
        raise UnsupportedModelError("A toy has no vectors.")

    def end_lease(self, scope: Scope, token_ids: list[int]) -> Future[bool]:
        return self.thread.submit(lambda: False)

    def forget_tiers(self) -> None: ...

    def reset(self) -> Future[int]:
        return self.thread.submit(lambda: 0)

    def page_identity(self) -> Future[Identity]:
        return self.thread.submit(lambda: Identity(model="toy", page_tokens=self.pages.page_tokens))

    def answer_to(self, prompt: list[int], max_tokens: int | None) -> list[int]:
        return prompt[::-1][:max_tokens]

    def text_of(self, token_ids: list[int]) -> str:
        return str(self.texts.tokenizer.decode(token_ids))

    def end_step(self) -> None:
        for observer in list(self._observers):
            observer()


def _stats() -> CacheStats:
    return CacheStats(
        groups=(PAGES,), tokens_stored=0, token_slots_allocated=0, hit_tokens=0, queried_tokens=0, evicted_pages=0
    )
