"""Keeps what tenants have put into the cache under a name, in memory: no tenant sees another's, nor pushes it out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from time import time

from pagoda.errors import HttpError
from pagoda.server.asked.fingerprint import plain
from pagoda.server.asked.opening import NO_OPENING, Opening
from pagoda.server.ground.jsons import to_json

MOST_CONTENTS = 256  # of one tenant
MOST_NBYTES = 64 << 20
PREFIX = "caches/"
TOKEN_NBYTES = 8
LEAST_SECONDS = 0.001


@dataclass(frozen=True)
class Content:
    """What has a name: the `opening` of prompts, until it `expires`. Times are in seconds since 1970.

    `is_leased` says whether its pages stay in any case; if not they do as long as there is room, or a tier has them.
    """

    opening: Opening
    model: str
    display_name: str | None
    created: float
    updated: float
    expires: float
    is_leased: bool

    @property
    def name(self) -> str:
        return self.opening.name

    @property
    def nbytes(self) -> int:
        """About as many as its text and tokens have."""
        texts = [self.opening.text, [plain(turn) for turn in self.opening.turns], self.opening.tools]
        return len(to_json(texts)) + TOKEN_NBYTES * len(self.opening.token_ids)


def full_name(name: str) -> str:
    """With the prefix that all names have, as they are given with it and without."""
    return name if name.startswith(PREFIX) else PREFIX + name


class Contents:
    """By tenant and name."""

    def __init__(self, clock: Callable[[], float] = time) -> None:
        self._clock = clock
        self._shelves: dict[str, dict[str, Content]] = {}

    def check_room(self, tenant: str, name: str, nbytes: int = 0) -> None:
        """Raise HttpError if a tenant has something of this name, or too much already."""
        contents = self.all(tenant)
        if any(each.name == name for each in contents):
            message = f"There is a cache {name!r} already; delete it first, or choose another name."
            raise HttpError(409, message, param="name", code="cache_exists")
        if len(contents) >= MOST_CONTENTS or nbytes + sum(each.nbytes for each in contents) > MOST_NBYTES:
            raise HttpError(
                400,
                f"You have {len(contents)} caches; {MOST_CONTENTS} of {MOST_NBYTES >> 20} MiB together are kept, so "
                "delete some.",
                code="too_many_caches",
            )

    def add(self, tenant: str, content: Content) -> None:
        """Raises HttpError as `check_room` does."""
        self.check_room(tenant, content.name, content.nbytes)
        self._shelves.setdefault(tenant, {})[content.name] = content

    def replace(self, tenant: str, content: Content) -> None:
        """In place of what has its name. Raises HttpError if that has gone meanwhile."""
        self.find(tenant, content.name)
        self._shelves[tenant][content.name] = content

    def all(self, tenant: str) -> list[Content]:
        """The oldest first; what has expired is gone."""
        shelf, now = self._shelves.get(tenant, {}), self._clock()
        for name in [name for name, each in shelf.items() if each.expires <= now]:
            del shelf[name]
        return list(shelf.values())

    def find(self, tenant: str, name: str) -> Content:
        """Raises HttpError 404."""
        found = next((each for each in self.all(tenant) if each.name == full_name(name)), None)
        if found is None:
            raise HttpError(
                404,
                f"There is no cache {name!r}; it may have expired, so make it again at /v1/kv/caches.",
                code="cache_not_found",
            )
        return found

    def remove(self, tenant: str, name: str) -> Content:
        """What had the name. Raises HttpError 404."""
        content = self.find(tenant, name)
        del self._shelves[tenant][content.name]
        return content

    def opening(self, tenant: str, name: str | None, cache_salt: str | None) -> Opening:
        """What a request that names it begins with. Raises HttpError 404, and 400 if no page of it could be hit."""
        if name is None:
            return NO_OPENING
        content, now = self.find(tenant, name), self._clock()
        if cache_salt:
            raise HttpError(400, "cached_content has no cache_salt; leave that out.", param="cache_salt")
        return replace(content.opening, ttl_seconds=max(content.expires - now, LEAST_SECONDS))
