"""The figures of a simulation as rows with names: for JSON, CSV and tables alike.

Shares are from 0 to 1, times in seconds. Tells lengths and counts, never what was asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pagoda.analysis.simulation.counts import Counts, Times, percentiles
from pagoda.analysis.simulation.settings import Settings
from pagoda.analysis.simulation.sweep import Outcome
from pagoda.analysis.traces.trace import Kind, Trace
from pagoda.analysis.traces.workload import Workload, shares_nothing

MOST_FAULTS = 100
RUNS = {Kind.BLOCKS: "block", Kind.PAGES: "page", Kind.TOKENS: "token"}

Row = dict[str, Any]


def document(trace: Trace, workload: Workload, settings: Settings, num_filled: int, outcomes: Sequence[Outcome]) -> Row:
    """Everything there is to tell."""
    return {
        "trace": {
            "kind": trace.kind.value,
            "requests": len(trace.requests),
            "prompt_tokens": trace.num_prompt_tokens,
            "output_tokens": sum(request.num_output_tokens for request in trace.requests),
            "unit_tokens": trace.unit_tokens,
            "requests_without_time": trace.num_without_time,
            **_served(trace),
            "skipped_lines": len(trace.faults),
            "faults": [{"line": fault.line, "problem": fault.problem} for fault in trace.faults[:MOST_FAULTS]],
        },
        "page_tokens": workload.page_tokens,
        "working_set_pages": num_filled,
        "replicas": settings.num_replicas,
        "routing": settings.routing if settings.num_replicas > 1 else None,
        "ttl_seconds": settings.ttl_seconds,
        "tiers": {name: settings.tiers.sizes[name] for name in settings.tiers.names},
        "kv_write": settings.tiers.write.value if settings.tiers.names else None,
        "note": note(workload, outcomes),
        "runs": [row(outcome, workload) for outcome in outcomes],
    }


def note(workload: Workload, outcomes: Sequence[Outcome]) -> str | None:
    """What to know of the figures, if nothing can be found."""
    if workload.kind is Kind.LENGTHS:
        why = "the trace tells how long prompts are, and not what is in them."
    elif shares_nothing(workload):
        why = f"no two prompts of the trace begin with the same {RUNS[workload.kind]}."
    else:
        return None
    is_replayed = all(outcome.counts.is_replayed for outcome in outcomes)
    return f"Nothing can be found: {why}{'' if is_replayed else ' So nothing was replayed.'}"


def _served(trace: Trace) -> Row:
    """What the server that wrote the trace found itself; None where it does not say."""
    served = trace.served
    return {
        "server_prompt_tokens": None if served is None else served.num_prompt_tokens,
        "server_hit_tokens": None if served is None else served.num_cached_tokens,
    }


def row(outcome: Outcome, workload: Workload) -> Row:
    """One run."""
    counts, capacity = outcome.counts, outcome.run.capacity
    evicted = {f"evicted_{reason}_pages": number for reason, number in counts.evicted_pages.items() if reason in SHOWN}
    found = {
        "policy": outcome.run.policy,
        "capacity": capacity.text,
        "capacity_pages": None if capacity.is_unlimited else capacity.num_pages,
        "capacity_tokens": None if capacity.is_unlimited else capacity.num_pages * workload.page_tokens,
        "capacity_bytes": None if capacity.is_unlimited else capacity.nbytes,
        "requests": counts.num_requests,
        "too_long_requests": counts.num_too_long,
        "token_hit_rate": counts.token_hit_rate,
        "request_hit_rate": counts.request_hit_rate,
        "mean_request_hit_rate": counts.mean_request_hit_rate,
        "prompt_tokens": counts.num_prompt_tokens,
        "hit_tokens": counts.num_hit_tokens,
        "computed_tokens": counts.num_computed_tokens,
        "evicted_pages": sum(counts.evicted_pages.values()),
        **dict.fromkeys((f"evicted_{reason}_pages" for reason in SHOWN), 0),
        **evicted,
        "peak_pages": counts.peak_pages,
        "evicted_bytes": counts.evicted_nbytes if capacity.page_nbytes else None,
        "peak_bytes": counts.peak_nbytes if capacity.page_nbytes else None,
        "requests_by_replica": counts.by_replica,
        **(_tiers(counts, bool(capacity.page_nbytes))),
        **(_times(counts.times) if counts.times is not None else {}),
    }
    return found if counts.is_replayed else found | dict.fromkeys(OF_REPLAYS)


# Why pages go in a simulation; nobody resets it, and nothing in it is in doubt.
SHOWN = ("room", "superseded", "expired")
OF_REPLAYS = (
    *("evicted_pages", "peak_pages", "evicted_bytes", "peak_bytes", "requests_by_replica"),
    *(f"evicted_{reason}_pages" for reason in SHOWN),
)


def _tiers(counts: Counts, has_bytes: bool) -> Row:
    """Where tokens were found, and what was written where; what a disk wrote again is told apart."""
    if not counts.tiers:
        return {}
    found: Row = {"pool_hit_tokens": counts.num_pool_tokens}
    for name, tier in counts.tiers.items():
        found[f"{name}_hit_tokens"] = tier.num_hit_tokens
        found[f"{name}_written_tokens"] = tier.written_tokens
        found[f"{name}_written_bytes"] = tier.written_nbytes if has_bytes else None
        found[f"{name}_rewritten_bytes" if has_bytes else f"{name}_rewritten_tokens"] = tier.rewritten_nbytes
        found[f"{name}_dropped_pages"] = tier.num_dropped
    return found


def _times(times: Times) -> Row:
    ttft, e2e = percentiles(times.ttft_seconds), percentiles(times.e2e_seconds)
    return {
        **{f"ttft_p{percent}_seconds": seconds for percent, seconds in ttft.items()},
        **{f"e2e_p{percent}_seconds": seconds for percent, seconds in e2e.items()},
        "output_tokens": times.num_output_tokens,
        "output_tokens_per_second": times.output_tokens_per_second,
        "requests_per_second": times.requests_per_second,
        "preemptions": times.num_preemptions,
        "steps": times.num_steps,
        "busy_seconds": times.busy_seconds,
        "duration_seconds": times.duration_seconds,
    }
