"""How each request is compressed: what it and the engine ask for, and whether that can be.

Knows requests and options. Does not know when a sequence is due, or what is done to it then.
"""

from __future__ import annotations

from collections.abc import Callable

from pagoda.cache.compression.base import Policy
from pagoda.cache.compression.choice import STOP, policy_of, policy_when_full
from pagoda.cache.compression.progress import Plan
from pagoda.config import EngineConfig
from pagoda.engine.compression import Compressor
from pagoda.engine.request import Request
from pagoda.errors import ConfigError, InvalidSamplingError


class CompressionPlans:
    """Of an engine whose `compressor` does it. Sequences of a tenant reach the end of the context at `max_len` tokens.

    Raises ConfigError if what `config` asks for cannot be.
    """

    def __init__(self, compressor: Compressor, config: EngineConfig, max_len: Callable[[str], int]) -> None:
        self._compressor = compressor
        self._max_len = max_len
        self._default = policy_of(config.kv_compression)
        self._when_full = config.context_full
        plan = self._of(self._default, self._when_full, "")
        if plan is not None:
            compressor.check(plan.policy)
            compressor.tell_obstacles()
            self._check_fits(plan, max_len(""), "")
            self._prepare(plan)

    @property
    def is_endless(self) -> bool:
        """Whether prompts may be longer than the context unless they say otherwise."""
        plan = self._of(self._default, self._when_full, "")
        return plan is not None and plan.is_endless

    def checked(self, request: Request) -> Plan | None:
        """`plan`; raises InvalidSamplingError if that cannot be."""
        params = request.params
        try:
            plan = self.plan(request)
            if plan is None:
                return None
            self._compressor.check(plan.policy)
            self._check_fits(plan, len(request.prompt), request.tenant)
        except ConfigError as error:
            raise InvalidSamplingError(str(error)) from error
        if request.breakpoints or request.scores_prompt:
            name = "kv_compression" if params.context_full is None else "context_full"
            reason = "prompt_logprobs" if request.scores_prompt else "leases of its prompt"
            raise InvalidSamplingError(f"{name} does not go with {reason}: leave one of the two out.")
        return plan

    def plan(self, request: Request) -> Plan | None:
        """How a request is compressed: not as was said for all, where it needs the whole prompt or says it itself."""
        params = request.params
        asked = None if params.kv_compression is None else policy_of(params.kv_compression)
        if asked is not None or params.context_full is not None:
            return self._of(asked, params.context_full or STOP, request.tenant)
        if request.breakpoints or request.scores_prompt or params.max_tokens == 0:
            return None
        default = None if params.kv_compression is not None else self._default
        return self._of(default, self._when_full, request.tenant)

    def prepare(self, request: Request) -> None:
        """Plan a request that is about to be queued, on the thread that steps: the model may have to be looked at.

        Raises InvalidSamplingError if it turns out that it cannot be.
        """
        request.compression = self.plan(request)
        try:
            self._prepare(request.compression)
        except ConfigError as error:
            raise InvalidSamplingError(str(error)) from error

    def _of(self, policy: Policy | None, when_full: str, tenant: str) -> Plan | None:
        unit, max_len = self._compressor.page_tokens, self._max_len(tenant)
        at_end = policy_when_full(when_full, max_len, unit)
        if policy is not None and at_end is not None:
            raise ConfigError("context_full does not go with kv_compression: leave out one of the two.")
        if at_end is not None:
            return Plan(at_end, unit, max_len, when_full=True)
        if policy is None:
            return None
        if policy.num_sinks is not None:
            return Plan(policy, unit, max_len)
        return Plan(policy, budget_unit=1 if policy.is_even else unit)

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

    def _prepare(self, plan: Plan | None) -> None:
        if plan is not None:
            self._compressor.prepare(plan.policy)
