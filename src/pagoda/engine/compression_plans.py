"""How each request is compressed, and what becomes of it when pages are short: what it and the engine ask for.

Knows requests and options, and what cannot be. Does not know when a sequence is due, or what is done to it then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from pagoda.cache.compression.base import Policy
from pagoda.cache.compression.choice import STOP, MemoryFull, policy_of, policy_when_full, when_memory_is_full
from pagoda.cache.compression.kvzip import FEWEST_TOKENS
from pagoda.cache.compression.progress import Plan
from pagoda.cache.compression.repeat import RepeatPrompt
from pagoda.cache.groups.compacted import CompactedKey
from pagoda.cache.prefix.keys import token_key
from pagoda.config import EngineConfig
from pagoda.engine.compression import Compressor
from pagoda.engine.request import Request
from pagoda.errors import ConfigError, InvalidSamplingError


class Asked(NamedTuple):
    """What is asked for one sequence: a policy, and what `context_full` and `memory_full` say."""

    policy: Policy | None
    when_full: str
    when_short: str


class CompressionPlans:
    """Of an engine whose `compressor` does it. Sequences of a tenant reach the end of the context at `max_len` tokens.

    With `has_tiers` pages can go down to some, and `repeat_prompt` asks the model to repeat a text. Raises ConfigError
    if what `config` asks for cannot be.
    """

    def __init__(
        self,
        compressor: Compressor,
        config: EngineConfig,
        max_len: Callable[[str], int],
        has_tiers: bool,
        repeat_prompt: RepeatPrompt,
    ) -> None:
        self._compressor = compressor
        self._repeat_prompt = repeat_prompt
        self._max_len = max_len
        self._has_tiers = has_tiers
        self._shares = config.enable_prefix_caching
        self._default = Asked(policy_of(config.kv_compression), config.context_full, config.memory_full)
        self._check_tiers(config.memory_full)
        plan = self._of(self._default, "")
        if plan is not None:
            compressor.check(plan.policy)
            compressor.tell_obstacles()
            self._check_fits(plan, max_len(""), "")
            self._prepare(plan)

    @property
    def has_default(self) -> bool:
        """Whether sequences are compressed that do not say it themselves."""
        return self._of(self._default, "") is not None

    @property
    def is_endless(self) -> bool:
        """Whether prompts may be longer than the context unless they say otherwise."""
        plan = self._of(self._default, "")
        return plan is not None and plan.is_endless

    def checked(self, request: Request) -> Plan | None:
        """`plan`; raises InvalidSamplingError if that cannot be."""
        try:
            self._check_tiers(request.params.memory_full or self._default.when_short)
            plan = self.plan(request)
            if plan is None:
                return None
            self._compressor.check(plan.policy)
            self._check_fits(plan, len(request.prompt), request.tenant)
            self._check_repeats(plan, len(request.prompt), request.tenant)
        except ConfigError as error:
            raise InvalidSamplingError(str(error)) from error
        if request.breakpoints or request.scores_prompt:
            name = "context_full" if plan.when_full else "memory_full" if plan.when_short else "kv_compression"
            reason = "prompt_logprobs" if request.scores_prompt else "leases of its prompt"
            raise InvalidSamplingError(f"{name} does not go with {reason}: leave one of the two out.")
        return plan

    def plan(self, request: Request) -> Plan | None:
        """How a request is compressed: not as was said for all, where it needs the whole prompt or says it itself."""
        params = request.params
        policy = None if params.kv_compression is None else policy_of(params.kv_compression)
        asked = Asked(policy, params.context_full or STOP, params.memory_full or MemoryFull.PREEMPT)
        if policy is not None or params.context_full is not None or _policy_when_short(asked) is not None:
            return self._of(asked, request.tenant)
        if request.breakpoints or request.scores_prompt or params.max_tokens == 0:
            return None
        default = self._default
        if params.kv_compression is not None:
            default = default._replace(policy=None)
        if params.memory_full is not None:
            default = default._replace(when_short=params.memory_full)
        return self._of(default, request.tenant)

    def prepare(self, request: Request) -> None:
        """Plan a request that is about to be queued, on the thread that steps: the model may have to be looked at.

        Raises InvalidSamplingError if it turns out that it cannot be.
        """
        request.compression = plan = self.plan(request)
        request.compacted_key = None if plan is None else self._compacted_key(request, plan)
        request.memory_full, _ = when_memory_is_full(request.params.memory_full or self._default.when_short)
        try:
            self._prepare(request.compression)
        except ConfigError as error:
            raise InvalidSamplingError(str(error)) from error

    def _compacted_key(self, request: Request, plan: Plan) -> CompactedKey | None:
        """By which others find what the prompt, or the beginning of it, is compressed to; None if nobody may or can."""
        due = plan.begin(len(request.prompt)).due if self._shares and plan.is_shareable else None
        if due is None or not self._compressor.can_share(due):
            return None
        policy = plan.policy.with_budget(plan.budget(due))
        return CompactedKey(request.namespace, policy, tuple(self._compressor.groups), token_key(request.prompt[:due]))

    def _of(self, asked: Asked, tenant: str) -> Plan | None:
        unit, max_len = self._compressor.page_tokens, self._max_len(tenant)
        policy, when_short = asked.policy, _policy_when_short(asked)
        at_end = policy_when_full(asked.when_full, max_len, unit)
        given = {"context_full": at_end, "memory_full": when_short, "kv_compression": policy}
        first, *others = [name for name, each in given.items() if each is not None] or ["nothing"]
        if others:
            raise ConfigError(f"{first} does not go with {others[0]}: leave out one of the two.")
        if at_end is not None:
            return Plan(at_end, unit, max_len, when_full=True)
        if when_short is not None:
            return replace(Plan.of(when_short, unit), when_short=True)
        return None if policy is None else Plan.of(policy, unit, max_len, self._repeat_prompt)

    def _check_tiers(self, memory_full: str) -> None:
        """Raise ConfigError if that cannot be for want of tiers, or is nothing."""
        if when_memory_is_full(memory_full)[0] is MemoryFull.DEMOTE and not self._has_tiers:
            raise ConfigError(
                "memory_full is 'demote', and there are no tiers for pages: give kv_host_bytes, kv_disk or kv_remote."
            )

    def _check_fits(self, plan: Plan, num_prompt_tokens: int, tenant: str) -> None:
        """Raise ConfigError unless what an endless sequence holds between two compressions is within the context."""
        if not plan.is_endless:
            return
        unit = plan.unit
        held, most = plan.budget(num_prompt_tokens) + plan.every, self._max_len(tenant) // unit * unit
        if held > most:
            raise ConfigError(
                f"{'context_full' if plan.when_full else 'kv_compression'} would hold up to {held:,} tokens, in pages "
                f"of {unit}, and sequences have at most {most:,} here; lower its budget or every."
            )

    def _check_repeats(self, plan: Plan, num_prompt_tokens: int, tenant: str) -> None:
        """Raise ConfigError unless there is room for what is repeated of such a prompt behind it."""
        repeat, most = plan.begin(num_prompt_tokens).repeat, self._max_len(tenant)
        if repeat is None or repeat.most_slots <= most:
            return
        chunk = repeat.plan.most_chunk_tokens(repeat.num_tokens, most)
        remedy = f"give chunk={chunk} or less" if chunk >= FEWEST_TOKENS else "shorten what is compressed"
        raise ConfigError(
            f"{plan.policy.name} has {repeat.num_tokens:,} tokens repeated behind them, in chunks of up to "
            f"{repeat.plan.chunk_tokens:,}, which takes room for {repeat.most_slots:,}, and sequences have at most "
            f"{most:,} here; {remedy}."
        )

    def _prepare(self, plan: Plan | None) -> None:
        if plan is not None:
            self._compressor.prepare(plan.policy)


def _policy_when_short(asked: Asked) -> Policy | None:
    return when_memory_is_full(asked.when_short)[1]
