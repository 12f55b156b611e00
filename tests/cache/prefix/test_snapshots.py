"""Snapshots are found by their tokens, whatever their digests."""

import pytest

from pagoda.cache.prefix import snapshots
from pagoda.cache.prefix.keys import token_key
from pagoda.cache.prefix.snapshots import Snapshots


class SameForAll:
    """A digest under which everything collides."""

    def __init__(self, _: bytes = b"") -> None: ...

    def update(self, _: bytes) -> None: ...

    def digest(self) -> bytes:
        return b""


def filled(*prompts: tuple[int, ...]) -> Snapshots:
    kept = Snapshots()
    for slot, tokens in enumerate(prompts):
        kept.add("", token_key(tokens), slot)
    return kept


def test_all_on_the_way_are_found_and_nothing_else():
    kept = filled((1,), (1, 2), (1, 2, 3, 4), (2, 2), (1, 3))
    assert [found.num_tokens for found in kept.match("", token_key((1, 2, 3, 4, 5)))] == [1, 2, 4]
    assert [found.num_tokens for found in kept.match("", token_key((1, 2, 3)))] == [1, 2]
    assert kept.match("salt", token_key((1, 2))) == []


def test_what_is_removed_is_not_found():
    kept = filled((1,), (1, 2))
    for found in kept.match("", token_key((1, 2))):
        kept.remove(found)
    assert kept.match("", token_key((1, 2))) == []
    assert list(kept) == []


@pytest.mark.parametrize("tokens", [(7, 8), (7, 8, 9)])
def test_tokens_are_compared_and_not_digests(monkeypatch, tokens):
    monkeypatch.setattr(snapshots, "blake2b", SameForAll)
    kept = filled((1, 2))
    assert kept.match("", token_key(tokens)) == []
    assert kept.find("", token_key((7, 8))) is None
