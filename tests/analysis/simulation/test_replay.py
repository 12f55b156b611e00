"""Replays against counters that know nothing of the package: request by request, on made up traces and a real one."""

import gzip
import itertools
import json
from array import array
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.counting import flat_lru, unlimited
from analysis.synthetic import BLOCK, block_rows, read, written
from pagoda.analysis.simulation.certain import nothing_found
from pagoda.analysis.simulation.optimum import optimum
from pagoda.analysis.simulation.replay import replay
from pagoda.analysis.simulation.settings import Settings
from pagoda.analysis.traces.trace import Kind, Trace, TracedRequest
from pagoda.analysis.traces.workload import prepare, shares_nothing, working_set

# Beside a checkout, where there is one.
SHARED = "shared/data/traces/mooncake_conversation_trace.jsonl.gz"
REAL = next((file for folder in Path(__file__).parents if (file := folder / SHARED).exists()), None)


def silent(_):
    pass


def workload(path, rows, page_tokens=BLOCK, **options):
    return prepare(read(written(path / "trace.jsonl", rows), **options), page_tokens)


def hits(requests, num_pages, run=replay, **options):
    return run(requests, Settings(**options), num_pages, silent)


class TestWithoutLimit:
    def test_every_request_finds_what_came_before(self, tmp_path):
        rows = block_rows(400)
        requests = workload(tmp_path, rows)
        counts = hits(requests, sum(working_set(requests)) + 99)
        assert counts.hit_tokens.tolist() == unlimited(rows)
        assert counts.num_hit_tokens == sum(unlimited(rows)) > 0
        assert not any(counts.evicted_pages.values())
        assert counts.peak_pages == sum(working_set(requests))

    @pytest.mark.parametrize("page_tokens", [128, 512, 1024, 96, 1536])
    def test_pages_of_any_size_find_the_same(self, tmp_path, page_tokens):
        """Hits go to the unit, which is as many tokens as a page and a block have in common."""
        rows = block_rows(60)
        requests = workload(tmp_path, rows, page_tokens)
        counts = hits(requests, sum(working_set(requests)) + 9999)
        assert counts.hit_tokens.tolist() == unlimited(rows)

    @pytest.mark.skipif(REAL is None, reason="the trace lies outside of the repository")
    def test_a_real_trace(self):
        with gzip.open(REAL, "rt") as file:
            rows = [json.loads(line) for line in file]
        requests = prepare(read(REAL), BLOCK)
        counts = hits(requests, working_set(requests)[0] + 247)
        assert counts.hit_tokens.tolist() == unlimited_chained(rows)


def unlimited_chained(rows):
    """`unlimited` where each hash stands for all before it, which that trace promises."""
    seen, found = set(), []
    for row in rows:
        hashes = row["hash_ids"]
        num_blocks = sum(1 for _ in itertools.takewhile(seen.__contains__, hashes))
        found.append(min(num_blocks * BLOCK, row["input_length"]))
        seen.update(hashes)
    return found


class TestNothingInCommon:
    @pytest.mark.parametrize("num_pages", [3, 8, 10**4])
    def test_what_is_certain_is_what_a_replay_counts(self, tmp_path, num_pages):
        rows = [{"input_length": BLOCK * (1 + number % 7)} for number in range(40)]
        named = [
            {**row, "hash_ids": [f"{number}/{part}" for part in range(1 + number % 7)]}
            for number, row in enumerate(rows)
        ]
        for each in (rows, named):
            requests = workload(tmp_path, each)
            assert shares_nothing(requests)
            certain, tried = nothing_found(requests, num_pages), hits(requests, num_pages)
            for name in (
                "hit_tokens",
                "num_too_long",
                "num_refused_tokens",
                "num_prompt_tokens",
                "num_computed_tokens",
            ):
                assert getattr(certain, name) == getattr(tried, name)
            assert working_set(requests) == (sum(1 + number % 7 for number in range(40)), 0)

    def test_one_common_begin_is_enough(self, tmp_path):
        rows = [{"input_length": 2 * BLOCK, "hash_ids": [number % 39, f"{number}"]} for number in range(40)]
        assert not shares_nothing(workload(tmp_path, rows))
        apart = [{**row, "tenant": str(number)} for number, row in enumerate(rows)]
        assert shares_nothing(workload(tmp_path, apart))


class TestLeastRecentlyUsed:
    @pytest.mark.parametrize("num_pages", [25, 60, 200, 500])
    def test_leaves_first_is_a_flat_list_touched_from_the_tail(self, tmp_path, num_pages):
        rows = block_rows(400)
        counts = hits(workload(tmp_path, rows), num_pages)
        assert counts.hit_tokens.tolist() == flat_lru(rows, num_pages)
        assert counts.num_too_long == flat_lru(rows, num_pages).count(-1)

    @settings(max_examples=60)
    @given(seed=st.integers(0, 10**6), num_pages=st.integers(4, 60))
    def test_of_any_trace(self, tmp_path_factory, seed, num_pages):
        rows = block_rows(60, seed)
        counts = hits(workload(tmp_path_factory.mktemp("traces"), rows), num_pages)
        assert counts.hit_tokens.tolist() == flat_lru(rows, num_pages)

    @pytest.mark.skipif(REAL is None, reason="the trace lies outside of the repository")
    @pytest.mark.parametrize("num_pages", [400, 3000, 40_000])
    def test_a_real_trace(self, num_pages):
        with gzip.open(REAL, "rt") as file:
            rows = [json.loads(line) for line in file]
        counts = hits(prepare(read(REAL), BLOCK), num_pages)
        assert counts.hit_tokens.tolist() == flat_lru(rows, num_pages)


class TestOptimum:
    @pytest.mark.parametrize("num_pages", [25, 60, 200, 500])
    def test_it_lies_between_least_recently_used_and_all(self, tmp_path, num_pages):
        requests = workload(tmp_path, block_rows(300))
        worst = hits(requests, num_pages).num_hit_tokens
        best = hits(requests, sum(working_set(requests)) + 99).num_hit_tokens
        bound = hits(requests, num_pages, run=optimum, policy="belady").num_hit_tokens
        assert worst <= bound <= best
        assert hits(requests, 10**6, run=optimum, policy="belady").num_hit_tokens == best

    @settings(max_examples=150)
    @given(
        trees=st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=3), min_size=1, max_size=6),
        capacity=st.integers(1, 4),
    )
    def test_nothing_does_better(self, tmp_path_factory, trees, capacity):
        """Against every choice there is of which whole prefixes to keep after each request."""
        rows = [
            {"input_length": BLOCK * len(path), "hash_ids": [str(path[:end]) for end in range(1, len(path) + 1)]}
            for path in trees
        ]
        requests = workload(tmp_path_factory.mktemp("traces"), rows, block_tokens=BLOCK)
        counts = hits(requests, capacity, run=optimum, policy="belady")
        fitting = [row["hash_ids"] for row in rows if len(row["hash_ids"]) <= capacity]
        assert counts.num_hit_tokens == BLOCK * most_hits(fitting, capacity)
        assert counts.num_too_long == len(rows) - len(fitting)

    @settings(max_examples=60)
    @given(data=st.data(), capacity=st.integers(2, 6))
    def test_of_a_log_whose_prompts_end_within_pages(self, data, capacity):
        """A prompt may find the last page of another sequence, and leave one of its own behind."""
        requests = []
        for number in range(data.draw(st.integers(1, 12))):
            prompt = array("i", data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=3)))
            sequence = prompt[:-1] + array("i", data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=2)))
            tokens = len(prompt) * 32 - 5
            requests.append(TracedRequest(number, tokens, len(sequence) * 32 - tokens + 1, prompt, sequence))
        workload = prepare(Trace(Kind.PAGES, 32, tuple(requests)), 32)
        bound = hits(workload, capacity, run=optimum, policy="belady")
        for policy in ("lru", "sieve", "s3-fifo"):
            assert hits(workload, capacity, policy=policy).num_hit_tokens <= bound.num_hit_tokens

    def test_what_is_not_used_within_the_lifetime_is_forgotten_though_there_is_room(self, tmp_path):
        rows = [
            {"timestamp": at * 1000, "input_length": 2 * BLOCK, "hash_ids": hashes}
            for at, hashes in ((0, [1, 2]), (5, [1, 3]), (14, [1, 3]), (16, [1, 2]), (100, [1, 2]))
        ]
        requests = workload(tmp_path, rows)
        counts = hits(requests, 99, run=optimum, policy="belady", ttl_seconds=10)
        assert counts.hit_tokens.tolist() == [0, BLOCK, 2 * BLOCK, BLOCK, 0]
        same = hits(requests, 99, ttl_seconds=10)
        assert counts.hit_tokens == same.hit_tokens
        # Block 2 lies for 16 s; then all three, of which only two come back, for 74 s and more.
        assert counts.evicted_pages["expired"] == same.evicted_pages["expired"] == 4
        assert counts.evicted_pages["room"] == 0

    @pytest.mark.parametrize("num_pages", [25, 60, 10**4])
    @pytest.mark.parametrize("ttl_seconds", [0.5, 3, 20])
    def test_it_bounds_others_with_the_same_lifetime(self, tmp_path, num_pages, ttl_seconds):
        requests = workload(tmp_path, block_rows(300))
        bound = hits(requests, num_pages, run=optimum, policy="belady", ttl_seconds=ttl_seconds)
        longest = hits(requests, num_pages, ttl_seconds=ttl_seconds * 1.01)
        found = hits(requests, num_pages, ttl_seconds=ttl_seconds)
        assert found.num_hit_tokens <= bound.num_hit_tokens
        if num_pages == 10**4:
            assert bound.num_hit_tokens <= longest.num_hit_tokens


def most_hits(paths: list[list[str]], capacity: int) -> int:
    """By trying all that can be kept."""
    states: dict[frozenset, int] = {frozenset(): 0}
    for path in paths:
        following: dict[frozenset, int] = {}
        for kept, num_hits in states.items():
            found = sum(1 for _ in itertools.takewhile(kept.__contains__, path))
            there = kept | {*path}
            for size in range(min(capacity, len(there)) + 1):
                for choice in map(frozenset, itertools.combinations(sorted(there), size)):
                    if is_whole(choice):
                        following[choice] = max(following.get(choice, 0), num_hits + found)
        states = following
    return max(states.values())


def is_whole(names: frozenset) -> bool:
    """Whether all that is before each of them is among them: they are lists, as text."""
    paths = [json.loads(name) for name in names]
    return all(len(path) == 1 or str(path[:-1]) in names for path in paths)
