"""One server of a timed simulation: the engine's scheduler over the engine's cache, and a clock that nobody waits for.

Like the engine a step is schedule, launch, settle; to launch takes the time that the model of rates says, and settling
appends the next token of an answer. Knows no arrival but those it is told of.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pagoda.analysis.simulation.below import BelowCache, Prompt
from pagoda.analysis.simulation.rates import Rates
from pagoda.analysis.simulation.settings import Settings
from pagoda.cache.cache import Cache
from pagoda.cache.prefix.keys import TOKEN_TYPE
from pagoda.cache.prefix.namespace import Namespace
from pagoda.engine.batch import Batch, Chunk
from pagoda.engine.lookups import DEVICE
from pagoda.engine.promotion import Promotions
from pagoda.engine.request import Phase, Request, RequestMetrics, Sequence
from pagoda.engine.round import Limits
from pagoda.engine.scheduler import Scheduler
from pagoda.sampling_params import SamplingParams

PARAMS = SamplingParams()
NO_CHANCE = random.Random(0)


@dataclass(frozen=True, slots=True)
class Job:
    """A request in tokens. Its `answer` has what is known of it, and else tokens that nobody asks for.

    Arrives at `arrival_seconds` on the clock of the simulation.
    """

    number: int
    namespace: Namespace
    prompt: array[int]
    answer: array[int]
    arrival_seconds: float


@dataclass(frozen=True, slots=True)
class Done:
    """How a job ended: `num_cached_tokens` of its prompt were found, of which so many were `loaded` from tiers; None if
    it can never fit.
    """

    job: Job
    num_cached_tokens: int | None
    loaded: Mapping[str, int] = field(default_factory=dict)
    first_token_seconds: float = 0.0
    last_token_seconds: float = 0.0


class Server:
    """Runs jobs over `cache`, which `settings` are of. `tell` hears of each that ends. It is `now`, in seconds."""

    def __init__(self, cache: Cache, settings: Settings, rates: Rates | None, tell: Callable[[Done], None]) -> None:
        self.cache = cache
        self.now = 0.0
        self.num_steps = 0
        self.busy_seconds = 0.0
        self.num_preemptions = 0
        self.load_tokens = 0  # of jobs that have not ended
        weights = {name: share.weight for name, share in settings.tenants.items()}
        self.below = BelowCache.of(cache, settings, unit_tokens=1, clock=lambda: self.now)
        self._promotions = Promotions(None if self.below is None else self.below.residency)
        limits = Limits(settings.max_num_seqs, settings.step_tokens, weights=weights)
        self._scheduler = Scheduler(cache, limits, promotions=self._promotions)
        self._rates = rates
        self._tell = tell
        self._jobs: dict[Request, Job] = {}

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    def reach(self, job: Job) -> int:
        """How many tokens of a prompt are here, in the pool or below it."""
        limit = len(job.prompt) - 1
        hit = self.cache.match(job.namespace, job.prompt, limit)
        return hit.num_tokens if self.below is None else self.below.reach(Prompt(hit, limit, job.prompt))

    def add(self, job: Job) -> None:
        """A job arrives, now or while a step is computed."""
        if not self.has_work:
            self.now = max(self.now, job.arrival_seconds)
        metrics, salt = RequestMetrics(arrival=job.arrival_seconds), job.namespace.salt
        request = Request(str(job.number), [], PARAMS, metrics, cache_salt=salt, tenant=job.namespace.tenant)
        sequence = Sequence(request, 0, array(TOKEN_TYPE, job.prompt), NO_CHANCE)
        request.sequences.append(sequence)
        self._jobs[request] = job
        self.load_tokens += len(job.prompt) + len(job.answer)
        self._scheduler.add(sequence)

    def step(self, until: float) -> None:
        """Compute what the scheduler says, and settle it at the end of the step; or wait for tiers, at most `until`."""
        batch = self._scheduler.schedule()
        if self.below is not None:
            self.below.movers.write()
        for sequence, error in self._scheduler.failed.items():
            raise AssertionError(f"scheduling {sequence.request.request_id} failed") from error
        if not batch and self.below is not None and self._promotions.is_waiting:
            self.now = min(self.below.movers.next_end, until)
            return
        if not batch:
            self._refuse(self._scheduler.waiting[0])
            return
        self.num_steps += 1
        seconds = self._seconds(batch)
        self.now += seconds
        self.busy_seconds += seconds
        for chunk in batch.chunks:
            assert chunk.sequence.cached is not None
            self.cache.commit(chunk.sequence.cached, chunk.sequence.tokens, chunk.stop)
        for chunk in batch.chunks:
            if chunk.drawn:
                self._answer(chunk.sequence)

    def _seconds(self, batch: Batch) -> float:
        if self._rates is None:
            return 0.0
        num_decodes = sum(map(self._is_decode, batch.chunks))
        num_prompt_tokens = sum(len(chunk.tokens) for chunk in batch.chunks) - num_decodes
        self._promotions.computed(num_prompt_tokens, self._rates.step_seconds(num_prompt_tokens, 0))
        return self._rates.step_seconds(num_prompt_tokens, num_decodes)

    def _is_decode(self, chunk: Chunk) -> bool:
        """Whether it is the last token that was answered; the last one of a prompt alone is of the prompt."""
        num_prompt_tokens = len(self._jobs[chunk.sequence.request].prompt)
        return len(chunk.tokens) == 1 and len(chunk.drawn) == 1 and chunk.stop > num_prompt_tokens

    def _answer(self, sequence: Sequence) -> None:
        """All of its tokens are computed: it gets the next one, or has them all."""
        job = self._jobs[sequence.request]
        metrics, num_answered = sequence.request.metrics, len(sequence.tokens) - len(job.prompt)
        if num_answered < len(job.answer):
            sequence.tokens.append(job.answer[num_answered])
            metrics.first_token = metrics.first_token or self.now
            num_answered += 1
        if num_answered == len(job.answer):
            self._end(sequence, job)

    def _end(self, sequence: Sequence, job: Job) -> None:
        request = sequence.request
        self._scheduler.remove(sequence)
        del self._jobs[request]
        self.load_tokens -= len(job.prompt) + len(job.answer)
        self.num_preemptions += request.metrics.num_preemptions
        first = request.metrics.first_token
        read = {} if request.cache_report is None else request.cache_report.read_tokens
        loaded = {name: number for name, number in read.items() if name != DEVICE}
        self._tell(Done(job, request.num_cached_tokens, loaded, self.now if first is None else first, self.now))

    def _refuse(self, sequence: Sequence) -> None:
        """Nothing runs and the first in the queue cannot start."""
        assert not self._scheduler.running
        job = self._jobs.pop(sequence.request)
        self._scheduler.remove(sequence)
        assert sequence.phase is Phase.FINISHED
        self.load_tokens -= len(job.prompt) + len(job.answer)
        self._tell(Done(job, None))
