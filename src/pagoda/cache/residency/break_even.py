"""Whether it is faster to load tokens or to compute them again, from how fast both have been.

Loading wins where bytes / bandwidth < tokens / prefill rate (`docs/tiers.md`). Rates are moving averages of what was
measured; what was never measured is given the benefit of the doubt, and so, now and then, is a tier that lost.
"""

from __future__ import annotations

from collections.abc import Mapping

from pagoda.cache.report import LoadDecision

# How fast what was measured before is forgotten.
DECAY = 0.8
# A tier that loses is tried again after so many refusals, as it may have become faster.
RETRY_AFTER = 16
# Steps of fewer tokens say more of what a step takes at least than of how fast prompts are computed.
LEAST_TOKENS = 64


class BreakEven:
    """Weighs loads from tiers, by name, against prefill."""

    def __init__(self) -> None:
        self.tokens_per_second: float | None = None
        self.bytes_per_second: dict[str, float] = {}
        self._num_refused = 0

    def computed(self, num_tokens: int, seconds: float) -> None:
        """A step of so many tokens took so long."""
        if num_tokens >= LEAST_TOKENS and seconds > 0:
            self.tokens_per_second = _averaged(self.tokens_per_second, num_tokens / seconds)

    def loaded(self, nbytes: Mapping[str, int], seconds: float) -> None:
        """So many bytes were loaded from each tier; together that took so long."""
        total = sum(nbytes.values())
        if total and seconds > 0:
            for name in nbytes:
                self.bytes_per_second[name] = _averaged(self.bytes_per_second.get(name), total / seconds)

    def decide(self, num_tokens: int, nbytes: Mapping[str, int]) -> LoadDecision:
        """Whether to load so many tokens, which take so many bytes of each tier."""
        load, compute = self._load_seconds(nbytes), None
        if self.tokens_per_second is not None:
            compute = num_tokens / self.tokens_per_second
        is_loaded = load is None or compute is None or load < compute
        if not is_loaded:
            self._num_refused += 1
            is_loaded = self._num_refused > RETRY_AFTER
        if is_loaded:
            self._num_refused = 0
        return LoadDecision(num_tokens, sum(nbytes.values()), load, compute, is_loaded)

    def _load_seconds(self, nbytes: Mapping[str, int]) -> float | None:
        if any(name not in self.bytes_per_second for name in nbytes):
            return None
        return sum(number / self.bytes_per_second[name] for name, number in nbytes.items())


def _averaged(before: float | None, now: float) -> float:
    return now if before is None else DECAY * before + (1 - DECAY) * now
