"""Says where the time of a request went, as those who look after a server are shown it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pagoda.analysis.time import RequestTime, verdict


@dataclass(frozen=True)
class Spent:
    """Seconds by the clock on the `wall`, which add up, seconds of `work` by phase, and the `verdict` in words."""

    wall: Mapping[str, float]
    work: Mapping[str, float]
    verdict: tuple[str, ...]


def spent(time: RequestTime) -> Spent:
    """Of one request."""
    return Spent(time.wall, time.work, verdict(time))
