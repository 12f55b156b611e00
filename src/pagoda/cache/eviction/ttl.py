"""Least recently used, and nothing for longer than a time."""

from pagoda.cache.eviction.lru import LRU


class TTL(LRU):
    """What nobody has used for `lifetime_seconds` goes though there is room, as prompt caches of vendors have it."""

    lifetime_seconds = 300.0
