"""How many sequences run at once where windows decide it: asked of the scheduler, over pages that hold no bytes.

Pages come and go behind a window, so that one more may start at a lucky moment than can be promised. Where few run,
that one matters, and a run is short; `planning/users.py` promises how many there are at least.
"""

from __future__ import annotations

from pagoda.cache.cache import Cache, NoBytes
from pagoda.cache.groups.pages import PageGroup
from pagoda.config import EngineConfig
from pagoda.engine.request import Request, RequestMetrics, new_sample
from pagoda.engine.round import Limits
from pagoda.engine.scheduler import Scheduler
from pagoda.layouts.spec import Reach
from pagoda.planning.memory import MemoryPlan
from pagoda.planning.users import Load, most_users, users_by_group
from pagoda.registry import lookup
from pagoda.sampling_params import SamplingParams

# Steps of single sequences, some 20 microseconds each. Where more run, one more or less is a small share.
MOST_ADVANCES = 2000
TOKENS_PER_ADVANCE = 32  # of a prompt, in time


def users_at_once(memory: MemoryPlan, config: EngineConfig, load: Load) -> int:
    """How many of such sequences the pages and states of `memory` are enough for; seats are not counted.

    Of those that are compressed so many as are promised.
    """
    users = most_users(memory, config, load)
    limits = users_by_group(memory, config, load)
    others = [limit for limit, (geometry, _) in zip(limits, memory.pools, strict=False) if geometry.group.span is None]
    at_most = min([*others, *limits[len(memory.pools) :], config.max_num_seqs], default=users)
    if not users or load.policy is not None or min(limits) == min(others, default=None):
        return users
    while users < at_most and _advances(users + 1, load) <= MOST_ADVANCES:
        if not _run_at_once(memory, config, load, users + 1):
            break
        users += 1
    return users


def _advances(users: int, load: Load) -> int:
    return users * (load.num_generated + load.num_prompt // TOKENS_PER_ADVANCE)


def _run_at_once(memory: MemoryPlan, config: EngineConfig, load: Load, users: int) -> bool:
    """Whether so many sequences all run at the same time, with none of them ever sent back."""
    policy = lookup("eviction", config.eviction_policy)()
    own = [(each, num_pages) for each, num_pages in memory.pools if each.group.reach is not Reach.ENCODER]
    groups = [PageGroup(num_pages, each.page_tokens, policy, each.group) for each, num_pages in own]
    cache = Cache(groups, [NoBytes()] * len(groups))
    scheduler = Scheduler(cache, Limits(config.max_num_seqs, config.max_num_batched_tokens))
    requests = [_request(index, load) for index in range(users)]
    for request in requests:
        scheduler.add(new_sample(request, 0))
    most = 0
    while scheduler.has_work:
        batch = scheduler.schedule()
        most = max(most, len(scheduler.running))
        if not batch.chunks or any(request.metrics.num_preemptions for request in requests):
            return False
        for chunk in batch.chunks:
            sequence = chunk.sequence
            assert sequence.cached is not None
            cache.commit(sequence.cached, sequence.tokens, sequence.cached.num_tokens + len(chunk.tokens))
            if sequence.cached.num_tokens == len(sequence.tokens):
                sequence.tokens.append(0)
                if len(sequence.tokens) == load.num_tokens:
                    scheduler.remove(sequence)
                    if most < users and not scheduler.waiting:
                        return False
    return most == users


def _request(index: int, load: Load) -> Request:
    """A prompt that shares with the others what the load says, and no token of the rest."""
    shared = min(load.num_shared, load.num_prompt)
    prompt = [1] * shared + [2 + index] * (load.num_prompt - shared)
    return Request(str(index), prompt, SamplingParams(max_tokens=load.num_generated), RequestMetrics(0.0))
