"""Tiers of a simulation: hits equal those of a counter that shares no code, and those of the engine over real tiers."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.synthetic import BLOCK, block_rows, read, written
from analysis.tier_counting import tiered
from pagoda.analysis.simulation.replay import replay
from pagoda.analysis.simulation.settings import Settings
from pagoda.analysis.simulation.tiers import TierOptions
from pagoda.analysis.traces.workload import prepare
from pagoda.cache.residency.admission import WritePolicy

SIZES = [(None, 900), (150, None), (100, 400), (30, 3000)]


def silent(_):
    pass


def workload(path, rows):
    return prepare(read(written(path / "trace.jsonl", rows)), BLOCK)


def tokens(number):
    return None if number is None else number * BLOCK


def options(host, disk, write="seal"):
    return TierOptions(host_size=tokens(host), disk_size=tokens(disk), write=WritePolicy(write))


def found(counts):
    """Of each request, as the counter has it."""
    result = []
    for number, hit in enumerate(counts.hit_tokens):
        loaded = {name: tier.hit_tokens[number] for name, tier in counts.tiers.items()}
        result.append(None if hit < 0 else {"pool": hit - sum(loaded.values()), **loaded})
    return result


def check(path, rows, pool, host, disk, write):
    counts = replay(workload(path, rows), Settings(tiers=options(host, disk, write)), pool, silent)
    expected, tiers = tiered(rows, pool, tokens(host), tokens(disk), write)
    assert found(counts) == expected
    for name, tier in tiers.items():
        assert counts.tiers[name].written_tokens == tier.written * BLOCK
    if "disk" in tiers:
        assert counts.tiers["disk"].rewritten_nbytes == tiers["disk"].rewritten * BLOCK
    return counts


class TestAgainstACounter:
    @pytest.mark.parametrize("write", ["seal", "evict", "second-hit", "auto"])
    @pytest.mark.parametrize(("host", "disk"), SIZES)
    def test_every_request_finds_the_same_where(self, tmp_path, host, disk, write):
        counts = check(tmp_path, block_rows(400), 40, host, disk, write)
        assert all(tier.num_hit_tokens > 0 for tier in counts.tiers.values())
        if disk == 400 and write == "seal":
            assert counts.tiers["disk"].rewritten_nbytes > 0

    @settings(max_examples=40, deadline=None)
    @given(
        seed=st.integers(0, 10**6),
        pool=st.integers(8, 60),
        sizes=st.tuples(st.none() | st.integers(1, 60), st.none() | st.integers(2, 200)),
        write=st.sampled_from(["seal", "evict", "second-hit", "auto"]),
    )
    def test_of_any_trace(self, tmp_path_factory, seed, pool, sizes, write):
        check(tmp_path_factory.mktemp("traces"), block_rows(60, seed), pool, *sizes, write)
