"""Which replica serves a request: one pure function of what each would find and how much it has to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pagoda.errors import ConfigError

# Nothing goes to a replica that has more to do than another by this factor, and by more than so many tokens.
BALANCE_FACTOR = 1.5
BALANCE_TOKENS = 32_768

# The number of a request, what it would find at each replica, and what each has to do, in tokens; then a replica.
Route = Callable[[int, Callable[[int], int], Sequence[int]], int]


def round_robin(number: int, found: Callable[[int], int], loads: Sequence[int]) -> int:  # noqa: ARG001
    """Each in turn."""
    return number % len(loads)


def least_loaded(number: int, found: Callable[[int], int], loads: Sequence[int]) -> int:  # noqa: ARG001
    """Who has least to do; equals in turn."""
    return min(range(len(loads)), key=lambda index: (loads[index], (index - number) % len(loads)))


def prefix_aware(number: int, found: Callable[[int], int], loads: Sequence[int]) -> int:
    """Who holds most of the prompt, of those that do not have far more to do than others; of equals the idler."""
    most = max(min(loads) * BALANCE_FACTOR, min(loads) + BALANCE_TOKENS)
    able = [index for index, load in enumerate(loads) if load <= most]
    return min(able, key=lambda index: (-found(index), loads[index], (index - number) % len(loads)))


ROUTES: dict[str, Route] = {
    "round-robin": round_robin,
    "least-loaded": least_loaded,
    "prefix-aware": prefix_aware,
}


def route_of(name: str) -> Route:
    """Raises ConfigError for a name that there is none of."""
    if name not in ROUTES:
        raise ConfigError(f"There is no routing {name!r}; choose one of: {', '.join(ROUTES)}.")
    return ROUTES[name]
