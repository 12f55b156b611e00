"""Which snapshots of recurrent states are made, and which stay when there is room for few."""

from __future__ import annotations

import pytest

from pagoda.cache.cache import Cache, NoBytes
from pagoda.cache.eviction.lru import LRU
from pagoda.cache.groups.pages import PageGroup
from pagoda.cache.groups.rule import KeepAll
from pagoda.cache.groups.state import SnapshotRule, StateGroup
from pagoda.cache.groups.table import ResumePoints
from pagoda.cache.inspector import Inspector
from pagoda.errors import OutOfPagesError

PAGE_TOKENS = 4


def make(num_slots: int, interval: int | None = None) -> Cache:
    states = StateGroup(num_slots, LRU(), SnapshotRule(interval, PAGE_TOKENS))
    return Cache([PageGroup(1000, PAGE_TOKENS, LRU(), KeepAll()), states], [NoBytes(), NoBytes()])


def run(cache: Cache, prompt: list[int], answer: list[int]) -> int:
    """Compute a prompt and all of an answer but its last token; returns the tokens that were hit."""
    hit = cache.match("", prompt, len(prompt) - 1)
    sequence = cache.attach(hit, len(prompt))
    tokens = prompt + answer[:-1]
    for end in (len(prompt), len(tokens)):
        assert cache.reserve(sequence, end - sequence.num_tokens)
        cache.commit(sequence, tokens, end)
    cache.release(sequence, tokens)
    Inspector(cache).check_integrity()
    return hit.num_tokens


def tokens(start: int, count: int) -> list[int]:
    return list(range(start, start + count))


@pytest.mark.parametrize(
    ("interval", "start", "stop", "milestones", "points"),
    [
        (None, 0, 30, ResumePoints(), []),
        (None, 0, 30, ResumePoints(prompt_tokens=30), [29]),
        (None, 0, 20, ResumePoints(prompt_tokens=30), []),
        (None, 0, 30, ResumePoints(branch_tokens=11, prompt_tokens=30), [8, 29]),
        (None, 8, 30, ResumePoints(branch_tokens=11, prompt_tokens=30), [29]),
        (10, 0, 30, ResumePoints(), [10, 20, 30]),
        (10, 10, 12, ResumePoints(), []),
        (10, 19, 20, ResumePoints(branch_tokens=20), [20]),
    ],
)
def test_where_states_are_copied(interval, start, stop, milestones, points):
    assert SnapshotRule(interval, PAGE_TOKENS).points(start, stop, milestones) == points


def test_conversations_need_one_snapshot_each():
    """Three of them with six slots: one runs, and what earlier turns have left goes before what the next will need."""
    cache = make(num_slots=6)
    histories = [tokens(1000 * index, 20) for index in range(3)]
    for turn in range(6):
        for index, history in enumerate(histories):
            answer = tokens(1000 * index + 100 * turn + 500, 7)
            expected = len(history) - 10 - 1 if turn else 0
            assert run(cache, history, answer) == expected
            histories[index] = history + answer + tokens(1000 * index + 100 * turn + 550, 10)


def test_what_many_share_outlasts_what_each_leaves():
    cache = make(num_slots=4)
    shared = tokens(0, 40)
    hits = [run(cache, shared + tokens(1000 * index, 9), tokens(1000 * index + 500, 5)) for index in range(1, 9)]
    assert hits == [0, 0, *[40] * 6]


def test_prompts_asked_again_outlast_the_ends_of_their_answers():
    """Where answers do not come back, what is kept of them gives way."""
    cache = make(num_slots=6)
    prompts = [tokens(1000 * index, 20) for index in range(3)]
    hits = [
        [run(cache, prompt, tokens(10_000 * turn + 1000 * index, 9)) for index, prompt in enumerate(prompts)]
        for turn in range(1, 7)
    ]
    assert hits[-3:] == [[19] * 3] * 3


def test_a_copy_that_finds_no_room_is_not_made():
    cache = make(num_slots=2, interval=8)
    first = cache.attach(cache.match("", [], 0), 20)
    second = cache.attach(cache.match("", [], 0), 20)
    assert cache.reserve(first, 20)
    cache.commit(first, tokens(0, 20), 20)
    with pytest.raises(OutOfPagesError, match="wait for a sequence to end"):
        cache.attach(cache.match("", [], 0), 20)
    cache.release(first, tokens(0, 20))
    assert cache.match("", tokens(0, 20), 20).num_tokens == 20
    cache.release(second)
    Inspector(cache).check_integrity()
