"""The time model: figures that can be reckoned by hand, arrivals, replicas, and what has no room."""

import json

import pytest

from analysis.counting import unlimited
from analysis.synthetic import BLOCK, block_rows, read, written
from pagoda.analysis.simulation.counts import percentile
from pagoda.analysis.simulation.rates import Rates, measured_rates
from pagoda.analysis.simulation.replay import replay
from pagoda.analysis.simulation.routing import ROUTES
from pagoda.analysis.simulation.settings import Settings
from pagoda.analysis.simulation.timed import Timing, simulate
from pagoda.analysis.traces.workload import prepare
from pagoda.config import TenantShare
from pagoda.errors import ConfigError

RATES = Rates(prefill_tokens_per_second=1000.0, decode_tokens_per_second=10.0)
ROOM = 100_000


def requests_of(path, rows, page_tokens=32):
    return prepare(read(written(path / "trace.jsonl", rows)), page_tokens)


def lengths(*triples):
    """Rows of (arrival in seconds, prompt tokens, output tokens)."""
    return [{"timestamp": at * 1000, "input_length": prompt, "output_length": out} for at, prompt, out in triples]


def timed(workload, rates=RATES, num_pages=ROOM, timing=None, **options):
    settings = Settings(**{"step_tokens": 512, **options})
    return simulate(workload, settings, num_pages, timing or Timing(rates=rates), lambda _: None)


class TestTimes:
    def test_of_one_request(self, tmp_path):
        times = timed(requests_of(tmp_path, lengths((5, 300, 4)))).times
        assert times.ttft_seconds.tolist() == pytest.approx([0.3])
        assert times.e2e_seconds.tolist() == pytest.approx([0.3 + 3 * 0.1])
        assert times.output_tokens_per_second == pytest.approx(4 / 0.6)
        assert (times.num_steps, times.num_output_tokens) == (4, 4)

    def test_a_long_prompt_goes_in_chunks_beside_others(self, tmp_path):
        """The first decodes one token in each of the two steps in which the second one's prompt is computed."""
        counts = timed(requests_of(tmp_path, lengths((0, 100, 3), (0.05, 1022, 1))))
        first, second = sorted(counts.times.ttft_seconds)
        assert first == pytest.approx(0.1)
        # It arrives while the first prompt is computed, and then computes 511 tokens in each of two steps.
        assert second == pytest.approx(0.05 + 2 * (0.511 + 0.1))

    def test_further_sequences_make_a_step_longer_by_what_they_cost(self, tmp_path):
        rates = Rates(1000.0, 10.0, sequence_seconds=0.02)
        times = timed(requests_of(tmp_path, lengths((0, 100, 2), (0, 100, 2), (0, 100, 2))), rates).times
        assert max(times.e2e_seconds) == pytest.approx(0.3 + 0.1 + 2 * 0.02)

    def test_what_is_found_is_not_computed(self, tmp_path):
        rows = [
            {"timestamp": at, "input_length": 2 * BLOCK, "output_length": 1, "hash_ids": [1, 2]} for at in (0, 60_000)
        ]
        counts = timed(requests_of(tmp_path, rows), step_tokens=4096)
        assert counts.hit_tokens.tolist() == [0, 2 * BLOCK - 1]
        assert sorted(counts.times.ttft_seconds) == pytest.approx([1 / 1000, 2 * BLOCK / 1000])

    def test_a_prompt_of_one_token_is_a_prompt(self, tmp_path):
        times = timed(requests_of(tmp_path, lengths((0, 1, 3), (9, 513, 1)))).times
        assert sorted(times.ttft_seconds) == pytest.approx([0.001, 0.513])
        assert min(times.e2e_seconds) == pytest.approx(0.001 + 2 * 0.1)

    def test_arrivals_out_of_order_are_served_in_time(self, tmp_path):
        counts = timed(requests_of(tmp_path, lengths((30, 100, 1), (10, 200, 1), (20, 300, 1))))
        assert counts.times.ttft_seconds.tolist() == pytest.approx([0.2, 0.3, 0.1])

    def test_who_does_not_say_when_comes_with_the_one_before(self, tmp_path):
        rows = lengths((1_700_000_000, 100, 1), (0, 200, 1), (1_700_000_010, 300, 1))
        del rows[1]["timestamp"]
        counts = timed(requests_of(tmp_path, rows))
        assert counts.times.ttft_seconds.tolist() == pytest.approx([0.3, 0.3, 0.3])
        assert counts.times.duration_seconds == pytest.approx(10.3)

    def test_a_faster_world(self, tmp_path):
        workload = requests_of(tmp_path, lengths(*((at, 500, 1) for at in range(10))))
        slow = timed(workload).times
        fast = timed(workload, timing=Timing(rates=RATES, speed=10.0)).times
        assert max(slow.ttft_seconds) == pytest.approx(0.5)
        assert max(fast.ttft_seconds) > 3
        assert fast.duration_seconds < slow.duration_seconds

    def test_arrivals_by_chance(self, tmp_path):
        workload = requests_of(tmp_path, lengths(*((0, 50, 2) for _ in range(400))))
        timing = Timing(rates=RATES, requests_per_second=4.0)
        counts = timed(workload, timing=timing)
        assert counts.times.duration_seconds == pytest.approx(100, rel=0.2)
        assert counts.times.ttft_seconds == timed(workload, timing=timing).times.ttft_seconds

    def test_without_times_all_are_there_at_once(self, tmp_path):
        rows = [{"input_length": 100, "output_length": 2} for _ in range(5)]
        times = timed(requests_of(tmp_path, rows)).times
        assert times.duration_seconds == pytest.approx(0.5 + 0.1)


class TestCache:
    def test_one_after_the_other_finds_what_a_replay_finds(self, tmp_path):
        """All but the last token of a prompt, which the engine computes; answers have tokens of their own."""
        rows = block_rows(80)
        for number, row in enumerate(rows):
            row["timestamp"] = number * 10**6
        counts = timed(requests_of(tmp_path, rows))
        expected = [min(hit, row["input_length"] - 1) for hit, row in zip(unlimited(rows), rows, strict=True)]
        assert counts.hit_tokens.tolist() == expected

    def test_what_can_never_fit_is_counted(self, tmp_path):
        counts = timed(requests_of(tmp_path, lengths((0, 320, 1), (1, 64, 1), (2, 300, 50))), num_pages=10)
        assert counts.num_too_long == 1
        assert counts.hit_tokens.tolist() == [0, 0, -1]
        assert counts.num_requests == 3, "nothing is found of it, and all count"
        assert counts.num_computed_tokens == 320 + 64

    def test_short_of_pages_some_are_sent_back_and_all_end(self, tmp_path):
        counts = timed(requests_of(tmp_path, lengths(*((0, 60, 90) for _ in range(20)))), num_pages=16)
        assert counts.times.num_preemptions > 0
        assert len(counts.times.e2e_seconds) == 20

    def test_what_nobody_uses_for_too_long_is_forgotten(self, tmp_path):
        rows = [
            {"timestamp": at * 1000, "input_length": BLOCK, "output_length": 1, "hash_ids": [7]}
            for at in (0, 50, 120, 300)
        ]
        workload = requests_of(tmp_path, rows, BLOCK)
        for counts in (
            timed(workload, ttl_seconds=100),
            replay(workload, Settings(ttl_seconds=100), 99, lambda _: None),
        ):
            assert [hit > 0 for hit in counts.hit_tokens] == [False, True, True, False]
            assert counts.evicted_pages["expired"] == 1

    def test_tenants_share_nothing_and_keep_their_own(self, tmp_path):
        rows = [
            {"input_length": 4 * BLOCK, "hash_ids": [*range(first, first + 4)], "tenant": tenant}
            for first, tenant in ((0, "a"), (0, "b"), (10, "b"), (20, "b"), (0, "a"), (0, "b"))
        ]
        workload = requests_of(tmp_path, rows, BLOCK)

        def hits(**options):
            return [hit // BLOCK for hit in replay(workload, Settings(**options), 8, lambda _: None).hit_tokens]

        assert hits() == [0, 0, 0, 0, 0, 0]
        assert hits(tenants={"a": TenantShare(page_quota=0.5)}) == [0, 0, 0, 0, 4, 0]


class TestReplicas:
    def talks(self, path):
        """Ten conversations by turns, each behind a prompt of its own."""
        rows = [
            {
                "timestamp": 2000 * (10 * turn + talk),
                "input_length": BLOCK * (4 + turn),
                "output_length": 2,
                "hash_ids": [f"{talk}/{number}" for number in range(4 + turn)],
            }
            for turn in range(6)
            for talk in range(10)
        ]
        return requests_of(path, rows, BLOCK)

    @pytest.mark.parametrize("routing", ROUTES)
    def test_each_request_has_one(self, tmp_path, routing):
        workload = self.talks(tmp_path)
        for counts in (
            timed(workload, num_replicas=3, routing=routing),
            replay(workload, Settings(num_replicas=3, routing=routing), ROOM, lambda _: None),
        ):
            assert sum(counts.by_replica) == counts.num_requests == 60
            assert min(counts.by_replica) > 0

    def test_prefix_aware_finds_as_much_as_one_cache(self, tmp_path):
        workload = self.talks(tmp_path)
        one = timed(workload).num_hit_tokens
        hits = {name: timed(workload, num_replicas=3, routing=name).num_hit_tokens for name in ROUTES}
        assert hits["prefix-aware"] == one > hits["round-robin"]

    def test_an_idle_one_is_preferred_to_a_busy_one(self):
        assert ROUTES["least-loaded"](0, lambda _: 0, [5, 3, 9]) == 1
        assert ROUTES["prefix-aware"](0, [0, 90, 80].__getitem__, [5, 5, 5]) == 1
        assert ROUTES["prefix-aware"](0, [0, 90, 80].__getitem__, [5, 10**6, 5]) == 2

    def test_there_is_no_other(self, tmp_path):
        with pytest.raises(ConfigError, match="choose one of: round-robin, least-loaded, prefix-aware"):
            timed(self.talks(tmp_path), num_replicas=2, routing="random")


class TestRates:
    def write(self, path, **changes):
        def measured(scenario, name, *values):
            return {"scenario": scenario, "name": name, "unit": "s", "values": [*values]}

        found = {
            "workload": {"prompt_tokens": 256, "output_tokens": 33, "batch": 8, "repeats": 3},
            "measurements": [
                measured("single", "time to first token, cold", 0.2, 0.128, 0.1),
                measured("single", "decode", 25.0, 20.0, 10.0),
                # Eight prompts of 128 ms, then 32 steps of 50 ms and 7 times 2 ms.
                measured("batch", "whole batch", 8 * 0.128 + 32 * (0.05 + 7 * 0.002)),
            ],
        } | changes
        file = path / "bench.json"
        file.write_text(json.dumps(found))
        return file

    def test_they_come_from_what_was_measured(self, tmp_path):
        rates = measured_rates(self.write(tmp_path))
        assert rates.prefill_tokens_per_second == pytest.approx(2000)
        assert rates.decode_tokens_per_second == 20
        assert rates.sequence_seconds == pytest.approx(0.002)

    @pytest.mark.parametrize(
        "changes",
        [
            {"measurements": []},
            {"measurements": [{"scenario": "single", "name": "decode", "values": ["x"]}]},
            {"workload": {}},
            {"workload": 3},
        ],
    )
    def test_a_file_without_them_is_told(self, tmp_path, changes):
        with pytest.raises(ConfigError, match="pagoda bench --json"):
            measured_rates(self.write(tmp_path, **changes))

    @pytest.mark.parametrize("content", ["", "[]", "{"])
    def test_so_is_another_file(self, tmp_path, content):
        (tmp_path / "x").write_text(content)
        with pytest.raises(ConfigError, match="pagoda bench --json"):
            measured_rates(tmp_path / "x")

    @pytest.mark.parametrize("rates", [(0, 1), (1, 0), (-1, 1), (float("nan"), 1)])
    def test_they_are_positive(self, rates):
        with pytest.raises(ConfigError, match="must be positive"):
            Rates(*rates)


def test_percentiles():
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, percent) for percent in (50, 90, 99, 100)] == [50, 90, 99, 100]
    assert percentile([3.0], 50) == 3.0
    assert percentile([], 50) is None
