"""The engine: schedule, reserve, forward, sample, commit; one `step` at a time.

Knows requests of token ids and one model. Knows neither text, threads nor HTTP. Every request ends in exactly one of
the ways of `FinishReason`, and whatever happens to one, the others go on.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from time import monotonic, sleep
from typing import Any, NamedTuple, TypeVar

import torch

from pagoda.cache.cache import CacheStats
from pagoda.cache.lease import Breakpoint, LeaseInfo
from pagoda.cache.outline import Outline
from pagoda.cache.radix import Watcher
from pagoda.config import EngineConfig
from pagoda.engine.admission import Admission
from pagoda.engine.breakpoints import check_breakpoints, lease_computed
from pagoda.engine.fit_store import FitStore
from pagoda.engine.format_fit import CalibrationText, fit_format
from pagoda.engine.forward import Computed, Forward
from pagoda.engine.memory import plan_memory
from pagoda.engine.pools import make_cache, make_pools
from pagoda.engine.request import FinishReason, Phase, Request, Sequence
from pagoda.engine.sampling import ban, draw, stop_token_ids, token_logprobs
from pagoda.engine.scheduler import Plan, Scheduler
from pagoda.engine.scoring import max_scored_tokens, score_prompt
from pagoda.errors import (
    NonFiniteCacheError,
    NonFiniteLogitsError,
    OutOfPagesError,
    RequestError,
    StructuredOutputError,
)
from pagoda.kernels.base import Kernels
from pagoda.models.determinism import check_determinism
from pagoda.models.encoder import EncoderInput
from pagoda.models.model import Model
from pagoda.sampling_params import SamplingParams

logger = logging.getLogger(__name__)

# Before another look, where all there is to do is to wait for matchers.
HELD_SECONDS = 0.001

Returned = TypeVar("Returned")


class TokenEvent(NamedTuple):
    """What a step did to a sequence: a new token, or its end without one."""

    sequence: Sequence
    token_id: int | None


class Engine:
    """Generates tokens for many requests over one paged, prefix-shared cache. Leases run by `clock`.

    Formats of few bits are fitted to the model with what `calibration` reads.
    """

    def __init__(
        self,
        model: Model,
        kernels: Kernels,
        config: EngineConfig,
        clock: Callable[[], float] = monotonic,
        calibration: Callable[[], CalibrationText] = CalibrationText,
    ) -> None:
        self.model = model
        self.kernels = kernels
        self.memory = plan_memory(model, config)
        model.fix_length(config.max_model_len)
        if config.deterministic:
            check_determinism(model, kernels)
        self.max_model_len = self.memory.max_model_len
        pools = make_pools(self.memory, config.environment.poison_pages)
        self._admission = Admission(model, config, self.memory)
        self._cache = make_cache(self.memory, pools, config, clock)
        self._scheduler = Scheduler(
            self._cache,
            config.max_num_seqs,
            config.max_num_batched_tokens,
            max_scored_tokens(model.vocab_size),
            {name: share.weight for name, share in config.tenants.items()},
        )
        store = FitStore(config.environment.cache_folder)
        self.fit = fit_format(model, kernels, self.memory, calibration, store)
        self._forward = Forward(model, kernels, self.memory, pools, self.fit.constants)
        self.kernel_choice = self._forward.kernel_choice
        for notice in self.kernel_choice.notices:
            logger.warning(notice)
        self._config = config
        self._seeds = random.Random(config.seed)
        self._requests: dict[str, Request] = {}
        self._held: list[Sequence] = []
        self._events: list[TokenEvent] = []  # of what has happened, until somebody takes them

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
        request.rules = self.model.generation.rules
        request.seed = self._seeds.getrandbits(63) if request.params.seed is None else request.params.seed
        self._scheduler.add(self._new_sequence(request, 0))
        self._requests[request.request_id] = request

    def refuse(self, request: Request, error: Exception) -> list[TokenEvent]:
        """End a request that `add` raised for."""
        if not request.sequences:
            request.sequences.append(Sequence(request, 0, list(request.prompt), random.Random(0)))
        self._fail(request.sequences, error)
        return self._take_events()

    def cancel(self, request_id: str) -> list[TokenEvent]:
        """End a request now and free its pages. Unknown and finished ids are ignored."""
        request = self._requests.get(request_id)
        if request is not None:
            self._end(request, FinishReason.ABORT)
        return self._take_events()

    def step(self) -> list[TokenEvent]:
        """Advance every scheduled sequence; returns what came of it.

        What raises for one request ends that one. If it raises all the same, what came of it is told by `fail_all`.
        """
        plan = self._schedule()
        try:
            computed = self._launch(plan)
            if computed is not None:
                self._settle(plan, computed)
        except Exception as error:
            logger.exception("A step of %d sequences failed", len(plan))
            self._fail(plan, RequestError(f"The step that this request was in failed: {error!r}"))
        return self._take_events()

    def fail_all(self, error: Exception) -> list[TokenEvent]:
        """End every request with `error`."""
        self._fail([s for request in list(self._requests.values()) for s in request.sequences], error)
        return self._take_events()

    def check_integrity(self) -> None:
        """Raise IntegrityError if the cache's bookkeeping contradicts itself."""
        self._cache.check_integrity()

    def cache_stats(self) -> CacheStats:
        return replace(self._cache.stats(), format_loss=self.fit.loss)

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

    def _take_events(self) -> list[TokenEvent]:
        events, self._events = self._events, []
        return events

    def _schedule(self) -> Plan:
        """What to compute; those for whom that raises end."""
        held, self._held = self._held, []
        for sequence in held:
            if sequence.phase is not Phase.FINISHED:
                self._contain(sequence, self._release)
        plan = self._scheduler.schedule()
        for sequence, error in self._scheduler.failed.items():
            logger.error("Scheduling request %s failed", sequence.request.request_id, exc_info=error)
            self._fail([sequence], RequestError(f"This request could not be scheduled: {error!r}"))
        if not plan and self._held:
            sleep(HELD_SECONDS)
        elif not plan and not self._scheduler.failed:
            self._refuse_next()
        now = monotonic()
        for sequence, num_tokens in plan.items():
            metrics = sequence.request.metrics
            metrics.first_scheduled = metrics.first_scheduled or now
            metrics.num_computed_tokens += num_tokens
        return _unfinished(plan)

    def _launch(self, plan: Plan) -> Computed | None:
        """Run the model, if there is anything to compute; those whose encoder input could not be read end."""
        new_inputs = self._forward.read(plan)
        for sequence, error in new_inputs.failed.items():
            self._fail([sequence], RequestError(f"The model's encoder failed: {error!r}"))
        left = _unfinished(plan)
        return self._forward.run(left, new_inputs) if left else None

    def _settle(self, plan: Plan, computed: Computed) -> None:
        """Take over what was computed, and draw the next tokens."""
        self._fail_broken(computed)
        for sequence, num_tokens in _unfinished(plan).items():
            self._contain(sequence, self._commit, num_tokens)
        for sequence, logits in computed.prompt_logits.items():
            self._contain(sequence, score_prompt, logits)
        ban(computed.logits, computed.complete, self.model.generation)
        complete = [
            (sequence, row)
            for sequence, row in zip(computed.complete, computed.logits, strict=True)
            if sequence.phase is Phase.RUNNING
        ]
        for sequence, _ in complete:
            if sequence.request.params.max_tokens == 0:
                self._contain(sequence, self._end_prompt)
        self._sample([(sequence, row) for sequence, row in complete if sequence.phase is Phase.RUNNING])

    def _commit(self, sequence: Sequence, num_tokens: int) -> None:
        assert sequence.cached is not None
        self._cache.commit(sequence.cached, sequence.tokens, sequence.cached.num_tokens + num_tokens)
        lease_computed(self._cache, sequence)

    def _end_prompt(self, sequence: Sequence) -> None:
        """End one that was to be computed only; its pages stay."""
        for each in (sequence, *self._fork(sequence)):
            self._finish(each, FinishReason.LENGTH)
            self._events.append(TokenEvent(each, None))

    def _sample(self, complete: list[tuple[Sequence, torch.Tensor]]) -> None:
        """Draw the next token of each completed sequence from its logits, forking those that want several samples."""
        rows = []
        for sequence, row in complete:
            twins = self._contain(sequence, self._fork) or ()
            rows += [(each, row) for each in (sequence, *twins) if each.phase is not Phase.FINISHED]
        drawn, failed = draw(rows, self.model.eos_token_ids)
        for sequence, error in failed:
            self._fail([sequence], error, keep_pages=True)
        now = monotonic()
        for sequence, row, token in drawn:
            if sequence.phase is not Phase.FINISHED:
                self._contain(sequence, self._accept, token, row, now)

    def _accept(self, sequence: Sequence, token: int, logits: torch.Tensor, now: float) -> None:
        self._append(sequence, token, logits, now)
        self._events.append(TokenEvent(sequence, token))

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
        stops = token in request.stop_token_ids
        # The text ends before the token that ends it, as it does before a stop string.
        is_shown = not stops or params.include_stop_str_in_output
        matched = request.watch(sequence, token) if request.watch and is_shown else None
        if sequence.matcher is not None:
            sequence.matcher.push(token)
        if stops:
            sequence.stop_reason = None if token in self.model.eos_token_ids else token
            self._finish(sequence, FinishReason.STOP)
        elif matched is not None and sequence.num_output_tokens >= params.min_tokens:
            sequence.stop_reason = matched
            self._finish(sequence, FinishReason.STOP)
        elif sequence.matcher is not None:
            sequence.is_held = True
            self._held.append(sequence)
        elif self._is_full(sequence):
            self._finish(sequence, FinishReason.LENGTH)

    def _is_full(self, sequence: Sequence) -> bool:
        request = sequence.request
        limit = self.max_len(request.tenant)
        return len(sequence.tokens) >= limit or sequence.num_output_tokens == request.params.max_tokens

    def _release(self, sequence: Sequence) -> None:
        """Let a sequence go on, or end it, if its matcher knows by now."""
        assert sequence.matcher is not None
        if not sequence.matcher.is_ready:
            self._held.append(sequence)
            return
        sequence.is_held = False
        if sequence.matcher.is_done or self._is_full(sequence):
            self._finish(sequence, FinishReason.STOP if sequence.matcher.is_done else FinishReason.LENGTH)
            self._events.append(TokenEvent(sequence, None))

    def _contain(self, sequence: Sequence, action: Callable[..., Returned], *arguments: Any) -> Returned | None:
        """What `action` returns for a sequence, None if it raises: that ends its request alone.

        Libraries in Rust that panic raise what is no Exception.
        """
        try:
            return action(sequence, *arguments)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if not isinstance(error, RequestError):
                logger.exception("Request %s failed", sequence.request.request_id)
                error = RequestError(f"This request failed: {error!r}")
            self._fail([sequence], error)
            return None

    def _finish(self, sequence: Sequence, reason: FinishReason, keep_pages: bool = True) -> None:
        sequence.finish_reason = reason
        self._scheduler.remove(sequence, keep_pages)
        if sequence.request.is_finished:
            self._requests.pop(sequence.request.request_id, None)

    def _end(self, request: Request, reason: FinishReason, keep_pages: bool = True) -> None:
        """Finish what is unfinished of a request."""
        for sequence in [each for each in request.sequences if each.phase is not Phase.FINISHED]:
            try:
                self._finish(sequence, reason, keep_pages)
            except Exception:
                logger.exception("A sequence of request %s could not be ended; trying again", request.request_id)
                self._finish(sequence, reason, keep_pages=False)
            self._events.append(TokenEvent(sequence, None))

    def _fail(self, sequences: Iterable[Sequence], error: Exception, keep_pages: bool = False) -> None:
        """End the requests of `sequences` with `error`, and forget their pages if what is in them is in doubt."""
        for request in {sequence.request: None for sequence in sequences}:
            request.error = error
            self._end(request, FinishReason.ERROR, keep_pages)

    def _fail_broken(self, computed: Computed) -> None:
        """End what computed NaN or infinity, before its pages are shared."""
        self._fail(
            computed.broken,
            NonFiniteCacheError("The model produced NaN or infinite keys or values for this request."),
        )
        broken = [sequence for sequence in computed.with_broken_logits() if sequence.phase is Phase.RUNNING]
        self._fail(broken, NonFiniteLogitsError("The model produced NaN or infinite logits for this request."))

    def _refuse_next(self) -> None:
        """Nothing runs and the first in the queue cannot start: end it, so that the others are not held up."""
        if not self._scheduler.running and self._scheduler.waiting:
            error = OutOfPagesError("The page pool is too small for this request; raise kv_cache_memory_bytes.")
            self._fail([self._scheduler.waiting[0]], error)

    def _new_sequence(self, request: Request, index: int) -> Sequence:
        # Text of sample i must depend on the seed and i alone, so each has a generator of its own.
        generator = random.Random(f"{request.seed}/{index}")
        sequence = Sequence(request, index, list(request.prompt), generator)
        sequence.matcher = None if request.constraint is None else request.constraint.new()
        request.sequences.append(sequence)
        return sequence


def _unfinished(plan: Plan) -> Plan:
    """What is left of a plan when requests have ended since."""
    return {sequence: num_tokens for sequence, num_tokens in plan.items() if sequence.phase is not Phase.FINISHED}
