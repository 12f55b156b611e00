"""What the cache had of one prompt when it was looked up, and why it had no more. Data only."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum


class MissCause(StrEnum):
    """Why tokens of a prompt were computed, as far as the cache can tell by itself."""

    NONE = "none"  # all was read that ever is
    CONTINUED = "continued"  # all that an earlier sequence had was read; the rest is new
    INPUT_CHANGED = "input_changed"  # it parts from an earlier one
    NEVER_SEEN = "never_seen"
    EVICTED = "evicted"
    TTL_EXPIRED = "ttl_expired"
    RESET = "reset"
    FAILED = "failed"
    CHECKPOINT_MISSING = "swa_checkpoint_missing"  # no window or state to go on from, though pages are held
    PARTIAL_BLOCK = "partial_block"  # no page to copy the last tokens to
    COMPRESSED = "compressed"  # what was written behind a compressed prefix is nobody else's
    PROMPT_LOGPROBS = "prompt_logprobs"
    DISABLED = "disabled"
    NOT_IN_TIERS = "not_in_tiers"  # it went, and no tier has it
    TIER_OFF = "tier_off"  # a tier that may have it is off, or did not answer in time
    LOAD_REFUSED = "load_refused"  # a tier has it, and computing it was expected to be faster
    LOAD_FAILED = "load_failed"  # a tier had it, damaged or only until it was read
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class LoadDecision:
    """Whether `num_tokens` were loaded (`is_loaded`) rather than computed, and what either was expected to take.

    None where nothing was known. Times are in seconds.
    """

    num_tokens: int
    nbytes: int
    load_seconds: float | None
    compute_seconds: float | None
    is_loaded: bool


@dataclass(frozen=True)
class CacheReport:
    """Of a request when it was first scheduled; all counts are in tokens of its prompt.

    prompt_tokens = sum of `read_tokens` (by tier) + `uncached_tokens`; `written_tokens` of these can be hit by others
    from then on. known_tokens: those held by whoever holds most; more than were read where nobody can resume.
    first_missed_token: None where nothing was missed. missed_tokens: so many beyond it were held before and went, at
    `gone_at` (seconds since 1970), for the request `gone_for`, by the eviction `policy`. What nobody can tell is None.
    load: whether what tiers had was loaded, if they had anything. tiers_off: tiers that could not be asked.
    num_failed_records: so many that tiers had could not be used.
    """

    prompt_tokens: int
    read_tokens: dict[str, int] = field(default_factory=dict)
    uncached_tokens: int = 0
    written_tokens: int = 0
    known_tokens: int = 0
    cause: MissCause = MissCause.UNKNOWN
    first_missed_token: int | None = None
    missed_tokens: int = 0
    gone_at: float | None = None
    gone_for: str | None = None
    policy: str | None = None
    load: LoadDecision | None = None
    tiers_off: tuple[str, ...] = ()
    num_failed_records: int = 0

    @property
    def num_read_tokens(self) -> int:
        return sum(self.read_tokens.values())

    @property
    def without_departure(self) -> CacheReport:
        """For those who may not know when others were served, and so neither when pages went for them."""
        return replace(self, gone_at=None, gone_for=None, policy=None)


NOT_LOOKED_UP = CacheReport(0)
