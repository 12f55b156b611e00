"""How long the sequences of a tenant may be: with the pages that no other tenant has reserved."""

from __future__ import annotations

from collections.abc import Mapping

from pagoda.config import EngineConfig, TenantShare, share_of
from pagoda.layouts.spec import Reach
from pagoda.planning.memory import LEDGER_PAGES, MIN_SLOTS, MemoryPlan, group_capacity


class TenantLimits:
    """The longest sequences by tenant; those without a share of their own are all alike."""

    def __init__(self, memory: MemoryPlan, config: EngineConfig) -> None:
        self._memory = memory
        self._config = config
        tenants = config.tenants
        self._max_len = {name: self._longest(_without(tenants, name)) for name in tenants}
        self._max_encoder_len = {name: self._longest_input(_without(tenants, name)) for name in tenants}
        self._shared_max_len = self._longest(tenants)
        self._shared_max_encoder_len = self._longest_input(tenants)

    def max_len(self, tenant: str) -> int:
        """Tokens of a prompt and what it is continued with."""
        return self._max_len.get(tenant, self._shared_max_len)

    def max_encoder_len(self, tenant: str) -> int | None:
        """Tokens of what the encoder reads; None without an encoder."""
        return self._max_encoder_len.get(tenant, self._shared_max_encoder_len)

    def _longest(self, others: Mapping[str, TenantShare]) -> int:
        memory, step_tokens = self._memory, self._config.max_num_batched_tokens
        limits = [
            group_capacity(geometry, _left(num_pages, others), step_tokens)
            for geometry, num_pages in memory.pools
            if geometry.group.reach is not Reach.ENCODER
        ] or [_left(LEDGER_PAGES, others) * self._config.block_size]
        if memory.states is not None and _left(memory.states.num_slots, others) < MIN_SLOTS:
            return 0
        return min([memory.max_model_len, *(limit for limit in limits if limit is not None)])

    def _longest_input(self, others: Mapping[str, TenantShare]) -> int | None:
        if self._memory.max_encoder_len is None:
            return None
        pools = [pool for pool in self._memory.pools if pool[0].group.reach is Reach.ENCODER]
        room = [_left(num_pages, others) * geometry.page_tokens for geometry, num_pages in pools]
        return min([self._memory.max_encoder_len, *room])


def _left(num_pages: int, others: Mapping[str, TenantShare]) -> int:
    return num_pages - sum(share_of(share.reserved, num_pages) for share in others.values())


def _without(tenants: Mapping[str, TenantShare], name: str) -> dict[str, TenantShare]:
    return {each: share for each, share in tenants.items() if each != name}
