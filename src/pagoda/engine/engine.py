"""The engine: schedule, reserve, forward, sample, commit; one `step` at a time, the next one under way on a device.

Knows requests of token ids and one model. Knows neither text, threads nor HTTP. Every request ends in exactly one of
the ways of `FinishReason`, and whatever happens to one, the others go on.
"""

from __future__ import annotations

import logging
import random
from array import array
from collections.abc import Callable
from functools import cached_property, partial
from operator import is_
from time import monotonic, sleep

from pagoda.cache.compression.progress import MOST_POSITIONS
from pagoda.cache.compression.repeat import WORDLESS, RepeatPrompt
from pagoda.cache.inspector import Inspector
from pagoda.cache.prefix.keys import TOKEN_TYPE
from pagoda.cache.prefix.names import PageNames
from pagoda.cache.prefix.namespace import Namespace
from pagoda.cache.residency.carry import Carrier
from pagoda.cache.residency.labels import Labels
from pagoda.cache.residency.residency import Residency
from pagoda.config import EngineConfig
from pagoda.devices import check_alive
from pagoda.engine.accounting import StepTimes, charge_step
from pagoda.engine.admission import Admission
from pagoda.engine.ahead import Ahead
from pagoda.engine.batch import Batch
from pagoda.engine.breakpoints import check_breakpoints
from pagoda.engine.compression import Compressor
from pagoda.engine.compression_plans import CompressionPlans
from pagoda.engine.ends import Ends, TokenEvent
from pagoda.engine.fit_store import FitStore
from pagoda.engine.format_fit import CalibrationText, fit_format
from pagoda.engine.forward import Forward, Queued
from pagoda.engine.identity import identity_of
from pagoda.engine.lookups import Lookups
from pagoda.engine.pools import check_device, machine_facts, make_pools
from pagoda.engine.promotion import Promotions
from pagoda.engine.reading import ReadingPlans
from pagoda.engine.request import FinishReason, Request, Sequence, new_sample
from pagoda.engine.round import Limits
from pagoda.engine.sampling import stop_token_ids
from pagoda.engine.scheduler import Scheduler
from pagoda.engine.scoring import max_scored_tokens
from pagoda.engine.settle import Settler
from pagoda.engine.shrinking import Shrinking
from pagoda.engine.tiers import labels_of, make_residency, open_tiers
from pagoda.errors import (
    OutOfPagesError,
    RequestError,
    StructuredOutputError,
)
from pagoda.kernels.base import Kernels
from pagoda.models.determinism import check_determinism
from pagoda.models.kept_digest import kept_weights_digest
from pagoda.models.model import Model
from pagoda.models.rotations import find_rotations
from pagoda.planning.caches import cache_stores, make_cache
from pagoda.planning.decoding import decode_costs
from pagoda.planning.memory import plan_memory

logger = logging.getLogger(__name__)

# Before another look, where all there is to do is to wait for matchers.
HELD_SECONDS = 0.001


class Engine:
    """Generates tokens for many requests over one paged, prefix-shared cache. Leases run by `clock`.

    Formats of few bits are fitted to the model with what `calibration` reads, and `repeat_prompt` asks it to repeat a
    text. What there is to see of the cache is shown by `inspector`, and why late prompts missed by `lookups`, on the
    thread that steps.
    """

    def __init__(
        self,
        model: Model,
        kernels: Kernels,
        config: EngineConfig,
        clock: Callable[[], float] = monotonic,
        calibration: Callable[[], CalibrationText] = CalibrationText,
        repeat_prompt: RepeatPrompt = WORDLESS,
    ) -> None:
        self.model = model
        self.kernels = kernels
        self.memory = plan_memory(model.facts, machine_facts(model, config), config)
        model.fix_length(config.max_model_len)
        if config.deterministic:
            check_determinism(model, kernels)
        self.decode_costs = decode_costs(model.facts, self.memory, config)
        self.max_model_len = self.memory.max_model_len
        check_device(model, config)
        pools = make_pools(self.memory, config.environment.poison_pages, model.device, config.kv_host_bytes)
        self._admission = Admission(model, config, self.memory)
        self._cache = make_cache(self.memory, pools, config, clock)
        policy = config.eviction_policy if config.enable_prefix_caching else None
        self.lookups = Lookups(self._cache, policy, config.miss_memory_bytes)
        store = FitStore(config.environment.cache_folder)
        self.fit = fit_format(model, kernels, self.memory, calibration, store)
        self._pools, self._stores = pools, cache_stores(self.memory, pools)
        self.residency = self._open_residency(config)
        limits = Limits(
            config.max_num_seqs,
            config.max_num_batched_tokens,
            max_scored_tokens(model.vocab_size),
            {name: share.weight for name, share in config.tenants.items()},
        )
        self._promotions = Promotions(self.residency)
        tiers = tuple if self.residency is None else self.residency.late_report
        self._forward = Forward(model, kernels, self.memory, pools, self.fit.constants)
        reads = self._forward.page_reads
        self.inspector = Inspector(self._cache, self.fit.loss, lambda: self.lookups.nbytes, tiers, lambda: reads.counts)
        self.kernel_choice = self._forward.kernel_choice
        for notice in self.kernel_choice.notices:
            logger.warning(notice)
        self._seeds = random.Random(config.seed)
        self._compressor = Compressor(
            self._forward.sites,
            model.discovered.uses,
            model.projections,
            self._cache,
            partial(find_rotations, model, kernels),
        )
        self._plans = CompressionPlans(
            self._compressor, config, self.max_len, self.residency is not None, repeat_prompt
        )
        self._readings = ReadingPlans(self._forward.sites, model.discovered.uses, config, self._plans.has_default)
        self._forward.choosing_groups = self._readings.groups
        shrinking = Shrinking(self._cache, self._compressor.groups, self._compressor.compress)
        self._scheduler = Scheduler(self._cache, limits, self.lookups, self._promotions, shrinking)
        self._ends = Ends(self._scheduler)
        self._settler = Settler(model, self._cache, self._scheduler, self._ends, self._compressor, self.max_len)
        self.ahead = Ahead(self._cache, self._forward, self._settler.ends_soon)
        self._last_done = 0.0  # when the step before had been computed

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    @property
    def most_prompt_tokens(self) -> int:
        """Of requests that do not say what becomes of them where the context ends."""
        return MOST_POSITIONS if self._plans.is_endless else self.max_model_len

    def max_len(self, tenant: str = "") -> int:
        """Where sequences of `tenant` end: others may have reserved pages that it can never get."""
        return self._admission.max_len(tenant)

    @cached_property
    def page_names(self) -> PageNames:
        """What pages are called outside of the process."""
        weights = kept_weights_digest(self.model.network, self.model.origin)
        if self.model.has_codes and not self.kernels.layers.codes_input:
            weights += ", input as it is"
        return PageNames(identity_of(self.model, self.memory, self.fit.digest, weights))

    @cached_property
    def carrier(self) -> Carrier:
        """Takes sequences out of the cache and puts them in."""
        return Carrier(self._cache, self._stores, self._labels)

    @cached_property
    def _labels(self) -> Labels:
        return labels_of(self._cache, self.page_names)

    def close(self) -> None:
        """Write down what waits for it, and let go of tiers. Nothing is called after it."""
        if self.residency is not None:
            self.residency.close()
        for pool in self._pools:
            pool.close()

    def validate(self, request: Request) -> None:
        """Raise a RequestError if it can never be served. Looks once at what a request asks for."""
        asked = (self, request.prompt, request.params, request.encoder_input, request.tenant, request.breakpoints)
        if request.validated and all(map(is_, request.validated, asked)):
            return
        self._admission.check_encoder_input(request.encoder_input, request.tenant)
        plan = self._plans.checked(request)
        self._readings.checked(request, is_compressed=plan is not None)
        is_endless = plan is not None and plan.is_endless
        self._admission.check_prompt(request.prompt, request.params.max_tokens, request.tenant, is_endless)
        check_breakpoints(request.breakpoints, len(request.prompt))
        self._admission.check_params(request.params)
        request.validated = asked

    def add(self, request: Request) -> None:
        """Queue a request. Raises a RequestError, changing nothing, if it can never be served."""
        self.validate(request)
        if request.params.structured_outputs is not None and request.constraint is None:
            raise StructuredOutputError("The engine knows no text: give the request a constraint for its outputs.")
        if request.request_id in self._ends.requests:
            raise RequestError(f"There is a request {request.request_id!r} already; choose another id.")
        request.stop_token_ids = stop_token_ids(request.params, self.model.eos_token_ids)
        request.rules = self.model.generation.rules
        request.seed = self._seeds.getrandbits(63) if request.params.seed is None else request.params.seed
        request.decode_costs = self.decode_costs
        self._plans.prepare(request)
        request.reading = self._readings.checked(request, is_compressed=request.compression is not None)
        request.metrics.added = monotonic()
        request.metrics.num_ahead = self._scheduler.num_ahead(request.tenant)
        self._scheduler.add(new_sample(request, 0))
        self._ends.requests[request.request_id] = request

    def refuse(self, request: Request, error: Exception) -> list[TokenEvent]:
        """End a request that `add` raised for."""
        if not request.sequences:
            request.sequences.append(Sequence(request, 0, array(TOKEN_TYPE), random.Random(0)))
        self._ends.fail(request.sequences, error)
        return self._ends.take_events()

    def cancel(self, request_id: str) -> list[TokenEvent]:
        """End a request now and free its pages. Unknown and finished ids are ignored."""
        request = self._ends.requests.get(request_id)
        if request is not None:
            self._ends.end(request, FinishReason.ABORT)
        return self._ends.take_events()

    def step(self) -> list[TokenEvent]:
        """Advance every scheduled sequence; returns what came of it.

        What raises for one request ends that one. If it raises all the same, what came of it is told by `fail_all`.
        """
        begun = monotonic()
        batch = self._schedule()
        launched = done = monotonic()
        try:
            parts = self._launch(batch)
            self.ahead.queue(parts, self._scheduler.num_computing)
            computed = [part.read() for part in parts]
            done = monotonic()
            # A device began with it when it was done with the step before, if that was later.
            launched = max(self._last_done, min((part.queued for part in parts), default=launched))
            self._last_done = done
            for part, each in zip(parts, computed, strict=True):
                self._settler.settle(part.batch, each)
        except Exception as error:
            check_alive(self.model.device, error)
            logger.exception("A step of %d sequences failed", len(batch))
            self._ends.fail(batch.sequences, RequestError(f"The step that this request was in failed: {error!r}"))
        if batch:
            charge_step(batch, StepTimes(begun, launched, done, monotonic()))
            self._promotions.computed(sum(len(chunk.tokens) for chunk in batch.chunks), done - launched)
        return self._ends.take_events()

    def fail_all(self, error: Exception) -> list[TokenEvent]:
        """End every request with `error`."""
        self._ends.fail([s for request in list(self._ends.requests.values()) for s in request.sequences], error)
        return self._ends.take_events()

    def reset_prefix_cache(self) -> int:
        """Forget every page that no running sequence uses; returns how many."""
        self.lookups.serve_nobody()
        return self._cache.reset()

    def end_lease(self, namespace: Namespace, tokens: list[int]) -> bool:
        """Let the pages of just these tokens go before the time of their lease; False if there is none."""
        return self._cache.leases.release(namespace, tokens)

    def _open_residency(self, config: EngineConfig) -> Residency | None:
        tiers = open_tiers(config)
        return make_residency(self._cache, self._stores, self._labels, tiers, config) if tiers else None

    def _schedule(self) -> Batch:
        """What to compute; those for whom that raises end."""
        self._settler.release_held()
        batch = self._scheduler.schedule()
        for sequence, error in self._scheduler.failed.items():
            if isinstance(error, RequestError):
                self._ends.fail([sequence], error)
                continue
            logger.error("Scheduling request %s failed", sequence.request.request_id, exc_info=error)
            self._ends.fail([sequence], RequestError(f"This request could not be scheduled: {error!r}"))
        if not batch and self._promotions.is_waiting:
            self._promotions.wait(HELD_SECONDS)
        elif not batch and self._settler.holds_any:
            sleep(HELD_SECONDS)
        elif not batch and not self._scheduler.failed:
            self._refuse_next()
        now = monotonic()
        for chunk in batch.chunks:
            metrics = chunk.sequence.request.metrics
            if metrics.first_scheduled is None:
                metrics.first_scheduled = metrics.known_until = now
                metrics.phases.queue = now - metrics.arrival - metrics.phases.promotion
            metrics.num_computed_tokens += len(chunk.tokens)
        return batch.unfinished()

    def _launch(self, batch: Batch) -> list[Queued]:
        """Have the model run, as far as it does not yet; those whose encoder input could not be read end."""
        new_inputs = self._forward.read(batch)
        for sequence, error in new_inputs.failed.items():
            self._ends.fail([sequence], RequestError(f"The model's encoder failed: {error!r}"))
        under_way, left = self.ahead.take(batch.unfinished())
        parts = [] if under_way is None else [under_way]
        if left:
            parts.append(self._forward.queue(left, new_inputs, self._compressor.watch(left)))
        return parts

    def _refuse_next(self) -> None:
        """Nothing runs and the first in the queue cannot start: end it, so that the others are not held up."""
        if not self._scheduler.running and self._scheduler.waiting:
            error = OutOfPagesError("The page pool is too small for this request; raise kv_cache_memory_bytes.")
            self._ends.fail([self._scheduler.waiting[0]], error)
