"""What tokens cost that had to be computed again: in seconds at a rate, and in money at prices per million tokens."""

from __future__ import annotations

from dataclasses import dataclass

MILLION = 1_000_000


@dataclass(frozen=True)
class Rates:
    """None where nobody has said. prefill: tokens computed a second. Prices are those of a million tokens of a prompt,
    `input` computed and `cached` read.
    """

    prefill: float | None = None
    input: float | None = None
    cached: float | None = None

    def seconds(self, num_tokens: int) -> float | None:
        """To compute so many."""
        return num_tokens / self.prefill if self.prefill else None

    def price(self, num_computed: int, num_read: int) -> float | None:
        """Of a prompt."""
        if self.input is None:
            return None
        return (num_computed * self.input + num_read * (self.cached or 0.0)) / MILLION

    def surcharge(self, num_tokens: int) -> float | None:
        """What so many cost more as they were computed instead of read."""
        return None if self.input is None else num_tokens * (self.input - (self.cached or 0.0)) / MILLION


NO_RATES = Rates()
