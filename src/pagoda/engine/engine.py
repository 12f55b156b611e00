"""The engine: schedule, reserve, forward, sample, commit; one `step` at a time.

Knows requests of token ids and one model. Knows neither text, threads nor HTTP. Every request ends in exactly one of
the ways of `FinishReason`, and whatever happens to one, the others go on.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple

import torch

from pagoda.cache.base import CacheGroup
from pagoda.cache.cache import Cache, CacheStats, NoBytes, PageStore
from pagoda.cache.cross import CrossGroup
from pagoda.cache.group import PageGroup
from pagoda.cache.lease import Breakpoint, LeaseInfo
from pagoda.cache.outline import Outline
from pagoda.cache.pool import PagePool
from pagoda.cache.radix import Watcher
from pagoda.cache.rule import KeepAll
from pagoda.cache.state import SnapshotRule, StateGroup
from pagoda.config import EngineConfig
from pagoda.engine.admission import Admission
from pagoda.engine.breakpoints import check_breakpoints, lease_computed
from pagoda.engine.encoding import NewInputs
from pagoda.engine.forward import Computed, Forward
from pagoda.engine.memory import LEDGER_PAGES, MemoryPlan, plan_memory
from pagoda.engine.request import FinishReason, Phase, Request, Sequence
from pagoda.engine.sampling import ban, draw, stop_token_ids, token_logprobs
from pagoda.engine.scheduler import Plan, Scheduler
from pagoda.engine.scoring import max_scored_tokens, score_prompts
from pagoda.errors import (
    NonFiniteCacheError,
    NonFiniteLogitsError,
    OutOfPagesError,
    RequestError,
    StructuredOutputError,
)
from pagoda.kernels.base import Kernels
from pagoda.layouts.spec import Reach
from pagoda.models.encoder import EncoderInput
from pagoda.models.model import Model
from pagoda.registry import lookup
from pagoda.sampling_params import SamplingParams

logger = logging.getLogger(__name__)


class TokenEvent(NamedTuple):
    """What a step did to a sequence: a new token, or its end without one."""

    sequence: Sequence
    token_id: int | None


class Engine:
    """Generates tokens for many requests over one paged, prefix-shared cache. Leases run by `clock`."""

    def __init__(
        self, model: Model, kernels: Kernels, config: EngineConfig, clock: Callable[[], float] = monotonic
    ) -> None:
        self.model = model
        self.kernels = kernels
        self.memory = plan_memory(model, config)
        self.max_model_len = self.memory.max_model_len
        pools = _make_pools(self.memory, config.environment.poison_pages)
        self._admission = Admission(model, config, self.memory)
        self._cache = _make_cache(self.memory, pools, config, clock)
        self._scheduler = Scheduler(
            self._cache, config.max_num_seqs, config.max_num_batched_tokens, max_scored_tokens(model.vocab_size)
        )
        self._forward = Forward(model, kernels, self.memory, pools)
        self._config = config
        self._seeds = random.Random(config.seed)
        self._requests: dict[str, Request] = {}

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    def max_len(self, tenant: str = "") -> int:
        """Where sequences of `tenant` end: others may have reserved pages that it can never get."""
        return self._admission.max_len(tenant)

    def validate(
        self,
        prompt: list[int],
        params: SamplingParams,
        encoder_input: EncoderInput | None = None,
        tenant: str = "",
        breakpoints: tuple[Breakpoint, ...] = (),
    ) -> None:
        """Raise the RequestError that `add` would raise for this request."""
        self._admission.check_encoder_input(encoder_input, tenant)
        self._admission.check_prompt(prompt, params.max_tokens, tenant)
        check_breakpoints(breakpoints, len(prompt))
        self._admission.check_params(params)

    def add(self, request: Request) -> None:
        """Queue a request. Raises a RequestError, changing nothing, if it can never be served."""
        self.validate(request.prompt, request.params, request.encoder_input, request.tenant, request.breakpoints)
        if request.params.structured_outputs is not None and request.constraint is None:
            raise StructuredOutputError("The engine knows no text: give the request a constraint for its outputs.")
        if request.request_id in self._requests:
            raise RequestError(f"There is a request {request.request_id!r} already; choose another id.")
        request.stop_token_ids = stop_token_ids(request.params, self.model.eos_token_ids)
        request.seed = self._seeds.getrandbits(63) if request.params.seed is None else request.params.seed
        self._requests[request.request_id] = request
        self._scheduler.add(self._new_sequence(request, 0))

    def cancel(self, request_id: str) -> list[TokenEvent]:
        """End a request now and free its pages. Unknown and finished ids are ignored."""
        request = self._requests.get(request_id)
        return [] if request is None else self._end(request, FinishReason.ABORT)

    def step(self) -> list[TokenEvent]:
        """Advance every scheduled sequence; returns what came of it."""
        plan = self._scheduler.schedule()
        if not plan:
            return self._refuse_next()
        now = monotonic()
        for sequence, num_tokens in plan.items():
            metrics = sequence.request.metrics
            metrics.first_scheduled = metrics.first_scheduled or now
            metrics.num_computed_tokens += num_tokens
        new_inputs = self._forward.read(plan)
        events = self._fail_unread(plan, new_inputs)
        if not plan:
            return events
        try:
            computed = self._forward.run(plan, new_inputs)
        except Exception as error:
            logger.exception("The forward pass of %d sequences failed", len(plan))
            return events + self._fail(list(plan), RequestError(f"The model's forward pass failed: {error!r}"))
        events += self._fail_broken(computed)
        self._commit(plan)
        score_prompts(computed.prompt_logits)
        ban(computed.logits, computed.complete, self.model.generation)
        rows = zip(computed.complete, computed.logits, strict=True)
        running = [(sequence, row) for sequence, row in rows if sequence.phase is Phase.RUNNING]
        events += self._end_prompts([sequence for sequence, _ in running if sequence.request.params.max_tokens == 0])
        return events + self._sample([(sequence, row) for sequence, row in running if sequence.phase is Phase.RUNNING])

    def fail_all(self, error: Exception) -> list[TokenEvent]:
        """End every request with `error`."""
        return self._fail([s for request in list(self._requests.values()) for s in request.sequences], error)

    def check_integrity(self) -> None:
        """Raise IntegrityError if the cache's bookkeeping contradicts itself."""
        self._cache.check_integrity()

    def cache_stats(self) -> CacheStats:
        return self._cache.stats()

    def leases(self) -> list[LeaseInfo]:
        """Every live lease."""
        return self._cache.leases()

    def watch(self, watcher: Watcher) -> None:
        """Tell `watcher` which pages can be hit; on the engine's thread."""
        self._cache.watch(watcher)

    def page_states(self, stride: int = 1) -> list[bytes]:
        """What every page of each group is, or one in `stride`."""
        return self._cache.page_states(stride)

    def outline(self, most: int, most_tokens: int, tenant: str | None = None) -> list[Outline]:
        """Up to `most` branches of the prefix tree of a tenant, or of all (None), each with its first `most_tokens`."""
        return self._cache.outline(most, most_tokens, tenant)

    def reset_prefix_cache(self) -> int:
        """Forget every page that no running sequence uses; returns how many."""
        return self._cache.reset()

    def _commit(self, plan: Plan) -> None:
        for sequence, num_tokens in plan.items():
            if sequence.cached is not None:
                self._cache.commit(sequence.cached, sequence.tokens, sequence.cached.num_tokens + num_tokens)
                lease_computed(self._cache, sequence)

    def _end_prompts(self, complete: list[Sequence]) -> list[TokenEvent]:
        """End those that were to be computed only; their pages stay."""
        ended = [each for sequence in complete for each in (sequence, *self._fork(sequence))]
        for sequence in ended:
            self._finish(sequence, FinishReason.LENGTH)
        return [TokenEvent(sequence, None) for sequence in ended]

    def _sample(self, complete: list[tuple[Sequence, torch.Tensor]]) -> list[TokenEvent]:
        """Draw the next token of each completed sequence from its logits, forking those that want several samples."""
        rows = [(each, row) for sequence, row in complete for each in (sequence, *self._fork(sequence))]
        drawn, failed = draw(rows, self.model.eos_token_ids)
        events = []
        for sequence, error in failed:
            events += self._fail([sequence], error, keep_pages=True)
        now = monotonic()
        for sequence, row, token in drawn:
            if sequence.phase is Phase.RUNNING:
                self._append(sequence, token, row, now)
                events.append(TokenEvent(sequence, token))
        return events

    def _fork(self, sequence: Sequence) -> list[Sequence]:
        """The other samples of a request whose prompt is computed now."""
        request = sequence.request
        twins = [self._new_sequence(request, index) for index in range(len(request.sequences), request.params.n)]
        self._scheduler.fork(sequence, twins)
        return twins

    def _append(self, sequence: Sequence, token: int, logits: torch.Tensor, now: float) -> None:
        request, params = sequence.request, sequence.request.params
        if params.logprobs is not None:
            logprobs = token_logprobs(logits, token, params.logprobs)
            sequence.logprobs.append(logprobs)
            sequence.cumulative_logprob += logprobs.logprob
        sequence.tokens.append(token)
        metrics = request.metrics
        metrics.first_token = metrics.first_token or now
        metrics.last_token = now
        if sequence.index == 0:
            metrics.token_times.append(now)
        matched = request.watch(sequence, token) if request.watch else None
        if sequence.matcher is not None:
            sequence.matcher.push(token)
        if token in request.stop_token_ids:
            sequence.stop_reason = None if token in self.model.eos_token_ids else token
            self._finish(sequence, FinishReason.STOP)
        elif matched is not None and sequence.num_output_tokens >= params.min_tokens:
            sequence.stop_reason = matched
            self._finish(sequence, FinishReason.STOP)
        elif sequence.matcher is not None and sequence.matcher.is_done:
            self._finish(sequence, FinishReason.STOP)
        elif len(sequence.tokens) >= self.max_len(request.tenant) or sequence.num_output_tokens == params.max_tokens:
            self._finish(sequence, FinishReason.LENGTH)

    def _finish(self, sequence: Sequence, reason: FinishReason, keep_pages: bool = True) -> None:
        sequence.finish_reason = reason
        self._scheduler.remove(sequence, keep_pages)
        if sequence.request.is_finished:
            self._requests.pop(sequence.request.request_id, None)

    def _end(self, request: Request, reason: FinishReason, keep_pages: bool = True) -> list[TokenEvent]:
        """Finish what is unfinished of a request."""
        ended = [sequence for sequence in request.sequences if sequence.phase is not Phase.FINISHED]
        for sequence in ended:
            self._finish(sequence, reason, keep_pages)
        return [TokenEvent(sequence, None) for sequence in ended]

    def _fail(self, sequences: list[Sequence], error: Exception, keep_pages: bool = False) -> list[TokenEvent]:
        """End the requests of `sequences` with `error`, and forget their pages if what is in them is in doubt."""
        events = []
        for request in {sequence.request: None for sequence in sequences}:
            request.error = error
            events += self._end(request, FinishReason.ERROR, keep_pages)
        return events

    def _fail_unread(self, plan: Plan, new_inputs: NewInputs) -> list[TokenEvent]:
        """End those whose encoder input could not be read, and take them out of the plan."""
        events = []
        for sequence, error in new_inputs.failed.items():
            del plan[sequence]
            events += self._fail([sequence], RequestError(f"The model's encoder failed: {error!r}"))
        return events

    def _fail_broken(self, computed: Computed) -> list[TokenEvent]:
        """End what computed NaN or infinity, before its pages are shared."""
        events = self._fail(
            computed.broken,
            NonFiniteCacheError("The model produced NaN or infinite keys or values for this request."),
        )
        broken = [sequence for sequence in computed.with_broken_logits() if sequence.phase is Phase.RUNNING]
        error = NonFiniteLogitsError("The model produced NaN or infinite logits for this request.")
        return events + self._fail(broken, error)

    def _refuse_next(self) -> list[TokenEvent]:
        """Nothing runs and the first in the queue cannot start: end it, so that the others are not held up."""
        if self._scheduler.running or not self._scheduler.waiting:
            return []
        error = OutOfPagesError("The page pool is too small for this request; raise kv_cache_memory_bytes.")
        return self._fail([self._scheduler.waiting[0]], error)

    def _new_sequence(self, request: Request, index: int) -> Sequence:
        # Text of sample i must depend on the seed and i alone, so each has a generator of its own.
        generator = random.Random(f"{request.seed}/{index}")
        sequence = Sequence(request, index, list(request.prompt), generator)
        sequence.matcher = None if request.constraint is None else request.constraint.new()
        request.sequences.append(sequence)
        return sequence


def _make_pools(memory: MemoryPlan, poison: bool) -> list[PagePool]:
    """A pool for every group of layers that attend, then one for recurrent states."""
    pools = [PagePool(geometry, num_pages, poison) for geometry, num_pages in memory.pools]
    if memory.states is not None:
        pools.append(PagePool(memory.states.geometry, memory.states.num_slots, poison))
    return pools


def _make_cache(memory: MemoryPlan, pools: list[PagePool], config: EngineConfig, clock: Callable[[], float]) -> Cache:
    policy, share, tenants = (
        lookup("eviction", config.eviction_policy)(),
        config.enable_prefix_caching,
        config.tenants,
    )
    groups: list[CacheGroup] = [
        CrossGroup(num_pages, geometry.page_tokens, policy, share, tenants)
        if geometry.group.reach is Reach.ENCODER
        else PageGroup(num_pages, geometry.page_tokens, policy, geometry.group, share, tenants)
        for geometry, num_pages in memory.pools
    ]
    stores: list[PageStore] = [*pools]
    page_nbytes = [pool.geometry.page_nbytes for pool in pools]
    if not groups:  # pages of nothing tell where prompts part
        groups.append(PageGroup(LEDGER_PAGES, config.block_size, policy, KeepAll(), share, tenants))
        stores.insert(0, NoBytes())
        page_nbytes.insert(0, 0)
    if memory.states is not None:
        rule = SnapshotRule(memory.states.interval_tokens, config.block_size)
        groups.append(StateGroup(memory.states.num_slots, policy, rule, share, tenants))
    return Cache(groups, stores, page_nbytes, clock)
