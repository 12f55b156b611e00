"""How late requests have gone, for charts and for telling clients when to come back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import islice
from statistics import fmean
from time import time
from typing import Any

from pagoda.engine.request import Request

MOST_REMEMBERED = 240


@dataclass(frozen=True)
class Ended:
    """The numbers of one request that has ended."""

    time: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    ttft_seconds: float | None
    decode_tokens_per_second: float | None
    seconds: float | None


class Recent:
    """The last requests that have ended."""

    def __init__(self) -> None:
        self._ended: deque[tuple[str, Ended]] = deque(maxlen=MOST_REMEMBERED)  # with whose they were
        self.num_ended = 0

    def add(self, tenant: str, requests: Iterable[Request]) -> None:
        for request in requests:
            self.num_ended += 1
            metrics = request.metrics
            times = metrics.token_times
            rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 and times[-1] > times[0] else None
            ended = Ended(
                time=time(),
                prompt_tokens=len(request.prompt),
                cached_tokens=request.num_cached_tokens or 0,
                output_tokens=sum(sample.num_output_tokens for sample in request.sequences),
                ttft_seconds=metrics.ttft_seconds,
                decode_tokens_per_second=rate,
                seconds=metrics.e2e_seconds,
            )
            self._ended.append((tenant, ended))

    @property
    def mean_seconds(self) -> float:
        """Of whole requests; 1 before there are any."""
        return fmean([each.seconds for _, each in self._ended if each.seconds is not None] or [1.0])

    def since(self, number: int, tenant: str | None) -> list[dict[str, Any]]:
        """Of those after the first `number` there have ever been, what is remembered of a tenant, or of all (None).

        The oldest first.
        """
        skipped = max(number - (self.num_ended - len(self._ended)), 0)
        return [asdict(each) for owner, each in islice(self._ended, skipped, None) if tenant in (None, owner)]
