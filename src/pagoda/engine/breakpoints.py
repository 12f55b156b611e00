"""The breakpoints of a request: which are allowed, and leasing the prompt up to them as it is computed."""

from __future__ import annotations

from math import isfinite

from pagoda.cache.cache import Cache
from pagoda.cache.leases import Breakpoint
from pagoda.engine.request import Sequence
from pagoda.errors import BreakpointError


def check_breakpoints(breakpoints: tuple[Breakpoint, ...], num_prompt_tokens: int) -> None:
    """Raise BreakpointError unless they go forward through the prompt and last for a time."""
    last = 0
    for each in breakpoints:
        if each.num_tokens <= last:
            raise BreakpointError(
                f"A breakpoint after {each.num_tokens} tokens follows one after {last}; give them in order, from 1 on."
            )
        if each.num_tokens > num_prompt_tokens:
            raise BreakpointError(
                f"A breakpoint is after {each.num_tokens} tokens and the prompt has {num_prompt_tokens}; move it there."
            )
        if not (isfinite(each.ttl_seconds) and each.ttl_seconds > 0):
            raise BreakpointError(f"A breakpoint's ttl_seconds is {each.ttl_seconds}; give a time above 0.")
        last = each.num_tokens


def lease_computed(cache: Cache, sequence: Sequence) -> None:
    """Lease the prompt up to every breakpoint that has just been computed.

    Not later: what windows have left behind is still held now.
    """
    request = sequence.request
    pending = request.breakpoints[len(request.lease_results) :]
    for each in pending if sequence.cached is not None else ():
        assert sequence.cached is not None
        if each.num_tokens > sequence.cached.num_tokens:
            break
        request.lease_results.append(cache.leases.grant(request.namespace, request.prompt, each))
