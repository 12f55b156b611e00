"""The engine: schedule, reserve, forward, sample, commit; one `step` at a time.

Knows requests of token ids and one model. Knows neither text, threads nor HTTP. Every request ends in exactly one of
the ways of `FinishReason`, and whatever happens to one, the others go on.
"""

from __future__ import annotations

import logging
import random
from array import array
from collections.abc import Callable, Iterable
from functools import cached_property
from time import monotonic, sleep
from typing import Any, NamedTuple, TypeVar

import torch

from pagoda.cache.inspector import Inspector
from pagoda.cache.prefix.keys import TOKEN_TYPE
from pagoda.cache.prefix.names import PageNames
from pagoda.config import EngineConfig
from pagoda.engine.admission import Admission
from pagoda.engine.batch import Batch, Chunk
from pagoda.engine.breakpoints import check_breakpoints, lease_computed
from pagoda.engine.fit_store import FitStore
from pagoda.engine.format_fit import CalibrationText, fit_format
from pagoda.engine.forward import Computed, Forward
from pagoda.engine.identity import identity_of
from pagoda.engine.pools import make_cache, make_pools
from pagoda.engine.request import FinishReason, Phase, Request, Sequence
from pagoda.engine.sampling import ban, draw, stop_token_ids, token_logprobs
from pagoda.engine.scheduler import Scheduler
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
from pagoda.models.model import Model
from pagoda.planning.facts import MachineFacts
from pagoda.planning.memory import plan_memory

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

    Formats of few bits are fitted to the model with what `calibration` reads. What there is to see of the cache is
    shown by `inspector`, on the thread that steps.
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
        self.memory = plan_memory(model.facts, MachineFacts.measured(), config)
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
        self.inspector = Inspector(self._cache, self.fit.loss)
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

    @cached_property
    def page_names(self) -> PageNames:
        """What pages are called outside of the process."""
        return PageNames(identity_of(self.model, self.memory, self.fit.digest))

    def validate(self, request: Request) -> None:
        """Raise a RequestError if it can never be served. Looks at a request once."""
        if request.is_valid:
            return
        self._admission.check_encoder_input(request.encoder_input, request.tenant)
        self._admission.check_prompt(request.prompt, request.params.max_tokens, request.tenant)
        check_breakpoints(request.breakpoints, len(request.prompt))
        self._admission.check_params(request.params)
        request.is_valid = True

    def add(self, request: Request) -> None:
        """Queue a request. Raises a RequestError, changing nothing, if it can never be served."""
        self.validate(request)
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
            request.sequences.append(Sequence(request, 0, array(TOKEN_TYPE, request.prompt), random.Random(0)))
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
        batch = self._schedule()
        try:
            computed = self._launch(batch)
            if computed is not None:
                self._settle(batch, computed)
        except Exception as error:
            logger.exception("A step of %d sequences failed", len(batch))
            self._fail(batch.sequences, RequestError(f"The step that this request was in failed: {error!r}"))
        return self._take_events()

    def fail_all(self, error: Exception) -> list[TokenEvent]:
        """End every request with `error`."""
        self._fail([s for request in list(self._requests.values()) for s in request.sequences], error)
        return self._take_events()

    def reset_prefix_cache(self) -> int:
        """Forget every page that no running sequence uses; returns how many."""
        return self._cache.reset()

    def _take_events(self) -> list[TokenEvent]:
        events, self._events = self._events, []
        return events

    def _schedule(self) -> Batch:
        """What to compute; those for whom that raises end."""
        held, self._held = self._held, []
        for sequence in held:
            if sequence.phase is not Phase.FINISHED:
                self._contain(sequence, self._release)
        batch = self._scheduler.schedule()
        for sequence, error in self._scheduler.failed.items():
            logger.error("Scheduling request %s failed", sequence.request.request_id, exc_info=error)
            self._fail([sequence], RequestError(f"This request could not be scheduled: {error!r}"))
        if not batch and self._held:
            sleep(HELD_SECONDS)
        elif not batch and not self._scheduler.failed:
            self._refuse_next()
        now = monotonic()
        for chunk in batch.chunks:
            metrics = chunk.sequence.request.metrics
            metrics.first_scheduled = metrics.first_scheduled or now
            metrics.num_computed_tokens += len(chunk.tokens)
        return batch.unfinished()

    def _launch(self, batch: Batch) -> Computed | None:
        """Run the model, if there is anything to compute; those whose encoder input could not be read end."""
        new_inputs = self._forward.read(batch)
        for sequence, error in new_inputs.failed.items():
            self._fail([sequence], RequestError(f"The model's encoder failed: {error!r}"))
        left = batch.unfinished()
        return self._forward.run(left, new_inputs) if left else None

    def _settle(self, batch: Batch, computed: Computed) -> None:
        """Decide how many tokens of each chunk count, commit them, and draw the next ones."""
        self._fail_broken(computed)
        for chunk in batch.unfinished().chunks:
            self._contain(chunk.sequence, self._commit, self._accepted_tokens(chunk))
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

    def _accepted_tokens(self, chunk: Chunk) -> int:
        """How many tokens of its sequence are computed for good once a chunk is: all that it had."""
        return chunk.stop

    def _commit(self, sequence: Sequence, num_tokens: int) -> None:
        assert sequence.cached is not None
        self._cache.commit(sequence.cached, sequence.tokens, num_tokens)
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
        sequence = Sequence(request, index, array(TOKEN_TYPE, request.prompt), generator)
        sequence.matcher = None if request.constraint is None else request.constraint.new()
        request.sequences.append(sequence)
        return sequence
