"""Counts what a cache finds in a trace of hashed blocks, without the package: what the simulator must agree with."""

from __future__ import annotations

from collections import OrderedDict


def unlimited(rows: list[dict], block: int = 512) -> list[int]:
    """Tokens found of each request if nothing ever goes: its first blocks that came before, and were all kept."""
    seen: set[tuple] = set()
    found = []
    for row in rows:
        hashes, num_blocks = row["hash_ids"], 0
        while num_blocks < len(hashes) and tuple(hashes[: num_blocks + 1]) in seen:
            num_blocks += 1
        found.append(min(num_blocks * block, row["input_length"]))
        seen.update(tuple(hashes[: end + 1]) for end in range(len(hashes)))
    return found


def flat_lru(rows: list[dict], capacity: int, block: int = 512) -> list[int]:
    """The same with room for `capacity` blocks: one list, in which the last block of a request is the oldest of them.

    Requests that are longer than that are left out. What has to go makes room before a block is new.
    """
    kept: OrderedDict = OrderedDict()
    found = []
    for row in rows:
        hashes = row["hash_ids"]
        if len(hashes) > capacity:
            found.append(-1)
            continue
        num_blocks = 0
        while num_blocks < len(hashes) and hashes[num_blocks] in kept:
            num_blocks += 1
        found.append(min(num_blocks * block, row["input_length"]))
        for each in reversed(hashes):
            kept[each] = None
            kept.move_to_end(each)
        while len(kept) > capacity:
            kept.popitem(last=False)
    return found
