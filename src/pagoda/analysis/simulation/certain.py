"""What a replay would find where no two requests begin alike: nothing, which nobody has to try."""

from __future__ import annotations

from collections.abc import Sequence

from pagoda.analysis.simulation.counts import Counts
from pagoda.analysis.traces.workload import Workload


def nothing_found(workload: Workload, num_pages: int, tiers: Sequence[str] = ()) -> Counts:
    """Of each request; what would be evicted is not counted."""
    counts = Counts.of(len(workload.requests), tiers)
    counts.is_replayed = False
    for asked in workload.requests:
        if workload.num_pages(asked) <= num_pages:
            counts.add(asked.number, asked.num_prompt_tokens, 0)
        else:
            counts.refuse(asked.num_prompt_tokens)
    return counts
