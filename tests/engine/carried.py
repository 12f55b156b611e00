"""Engines over tiny models of every kind of cache, and the bytes that sessions and tiers carry of them."""

from __future__ import annotations

from typing import Any

import torch

from pagoda import LLM, SamplingParams
from pagoda.cache.prefix.held import Reason
from pagoda.cache.prefix.namespace import Namespace
from pagoda.models.model import Model

PAGE_TOKENS = 16
PARAMS = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
MIB = 1 << 20
LENGTH = 150

# Grouped heads, windows in some layers, latents, states beside attention, states alone.
DECODERS = ("llama", "gemma3_text", "deepseek_v2", "jamba", "qwen3_next", "mamba2")


def make(model: Model, **options: Any) -> LLM:
    options = {"block_size": PAGE_TOKENS, "kv_cache_memory_bytes": 64 * MIB, "num_threads": 1, **options}
    return LLM(model, max_num_batched_tokens=48, max_num_seqs=4, **options)


def prompt(seed: int = 0, length: int = LENGTH) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(64, 128, (length,), generator=generator).tolist()


def bodies(llm: LLM, tokens: list[int]) -> list[tuple[bytes, bytes]]:
    """The bytes of all that it takes to resume after `tokens`, by key."""
    carried = llm.loop.call(lambda: llm.engine.carrier.take_out(Namespace(), tokens)).result()
    assert carried.num_tokens == len(tokens)
    return [(draft.label.key, draft.body.tobytes()) for draft in carried.drafts]


def flood(llm: LLM) -> None:
    """Evict what is idle, for want of room."""

    def evict() -> None:
        for group in llm.engine._cache.groups:
            group.holdings.evict_all(Reason.ROOM)
        llm.engine.residency.flush()

    llm.loop.call(evict).result()
    assert all(each.idle == 0 for each in llm.cache_stats().groups)
