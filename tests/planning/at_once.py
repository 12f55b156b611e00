"""The scheduler and the cache over pages that hold no bytes: whether so many sequences run at once."""

from __future__ import annotations

from math import ceil

from pagoda.cache.cache import Cache, NoBytes
from pagoda.cache.groups.pages import PageGroup
from pagoda.engine.request import Request, RequestMetrics, new_sample
from pagoda.engine.round import Limits
from pagoda.engine.scheduler import Scheduler
from pagoda.planning.users import Load
from pagoda.sampling_params import SamplingParams


def requests(load: Load, number: int) -> list[Request]:
    """Prompts that share their first tokens, as the load says, and nothing else."""
    shared = [*range(load.num_shared)]
    own = load.num_prompt - load.num_shared
    prompts = [shared + [1 + 1000 * (index + 1) + i for i in range(own)] for index in range(number)]
    params = SamplingParams(max_tokens=load.num_generated, ignore_eos=True)
    return [Request(str(index), prompt, params, RequestMetrics(0.0)) for index, prompt in enumerate(prompts)]


def runs_at_once(group: PageGroup, load: Load, number: int, step_tokens: int) -> bool:
    """Whether so many sequences all run at the same time, none of them ever sent back."""
    cache = Cache([group], [NoBytes()])
    scheduler = Scheduler(cache, Limits(256, step_tokens))
    asked = requests(load, number)
    for request in asked:
        scheduler.add(new_sample(request, 0))
    most = 0
    while scheduler.has_work:
        batch = scheduler.schedule()
        assert batch.chunks, "it came to a stop"
        most = max(most, len(scheduler.running))
        for chunk in batch.chunks:
            sequence = chunk.sequence
            assert sequence.cached is not None
            cache.commit(sequence.cached, sequence.tokens, sequence.cached.num_tokens + len(chunk.tokens))
            if sequence.cached.num_tokens < len(sequence.tokens):
                continue
            sequence.tokens.append(500_000 + len(sequence.tokens))
            if len(sequence.tokens) == load.num_tokens:
                scheduler.remove(sequence)
        if any(request.metrics.num_preemptions for request in asked):
            return False
    return most == number


def longest_run(load: Load, number: int, step_tokens: int) -> bool:
    """Whether the first is still there when the last starts."""
    return load.num_generated > ceil(load.num_prompt * number / step_tokens) + 4
