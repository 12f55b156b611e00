"""In which parts two servers differ, or one before and after a restart: then neither can use what the other computed.

Knows identities of pages as a server tells them to others, long parts as digests. Knows neither files nor servers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from pagoda.cache.prefix.names import Identity
from pagoda.errors import ConfigError
from pagoda.formats.page import PAGE_TOKENS_MULTIPLE

MOST_TOLD_CHARACTERS = 200
MOST_SHOWN_CHARACTERS = 48  # within a sentence
DIGEST_NBYTES = 16
PAGE_SIZES = range(0, 1 << 31, PAGE_TOKENS_MULTIPLE)

# In words, what decides others first: other weights have other constants, too.
NAMES: Mapping[str, str] = {
    "weights": "weights",
    "model": "configuration of the model",
    "adapter": "adapter",
    "layout": "layout",
    "format": "format",
    "constants": "constants of the format",
    "page_tokens": "page size (tokens)",
    "positions": "positions",
}
DIGESTS = ("weights", "model", "constants")  # which nobody can read
WANTED = "give what GET /v1/kv/identity of a server of this version answers."
OF_MODEL = ("weights", "model", "adapter")


@dataclass(frozen=True)
class Part:
    """A field of `Identity` that is not the same, and what it says of the earlier pages and of the later ones."""

    field: str
    earlier: str
    later: str

    @property
    def is_of_model(self) -> bool:
        return self.field in OF_MODEL

    @property
    def name(self) -> str:
        return NAMES[self.field]

    @property
    def words(self) -> str:
        """As "format: bf16 and int8"; without values that nobody can read."""
        values = [each or "none" for each in (self.earlier, self.later)]
        if self.field in DIGESTS or max(map(len, values)) > MOST_SHOWN_CHARACTERS:
            return self.name
        return f"{self.name}: {' and '.join(values)}"


def differing_parts(earlier: Identity, later: Identity) -> tuple[Part, ...]:
    """None, where pages of the one are pages of the other."""
    before, after = earlier._asdict(), later._asdict()
    return tuple(Part(field, str(before[field]), str(after[field])) for field in NAMES if before[field] != after[field])


def identity_as_json(identity: Identity) -> dict[str, Any]:
    """For others: the digest of all, and all parts, a digest of each that is long."""
    parts = {name: _told(str(value)) for name, value in identity._asdict().items()}
    return {"digest": identity.digest.hex(), **parts, "page_tokens": identity.page_tokens}


def identity_from_json(value: Any, source: str) -> Identity:
    """What `identity_as_json` has made, as `source` has it. Raises ConfigError for anything else."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{source} has no identity of pages; {WANTED}")
    texts = [name for name in Identity._fields if name != "page_tokens"]
    wrong = [name for name in texts if not (isinstance(value.get(name), str) and value[name].isprintable())]
    wrong += [] if type(value.get("page_tokens")) is int else ["page_tokens"]
    if wrong:
        raise ConfigError(f"{source} has no identity of pages: {', '.join(wrong)} is missing or wrong; {WANTED}")
    identity = Identity(**{name: value[name] for name in Identity._fields})
    if identity.page_tokens not in PAGE_SIZES:
        raise ConfigError(f"{source} has pages of {identity.page_tokens} tokens, which no server has; {WANTED}")
    return identity


def _told(text: str) -> str:
    return text if len(text) <= MOST_TOLD_CHARACTERS else f"digest {_digest(text)}"


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=DIGEST_NBYTES).hexdigest()
