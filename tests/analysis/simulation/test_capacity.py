"""Capacities as people write them, and how much of them is simulated."""

import pytest

from analysis.synthetic import BLOCK, block_rows, read, written
from pagoda.analysis.simulation.capacity import MOST_PAGES, Capacities
from pagoda.analysis.traces.workload import prepare
from pagoda.errors import ConfigError


@pytest.fixture
def workload(tmp_path):
    return prepare(read(written(tmp_path / "trace.jsonl", block_rows(20))), BLOCK)


@pytest.mark.parametrize(
    ("text", "num_pages"),
    [("300pages", 300), ("10000000000pages", 10**10), ("600000tokens", 1171), (f"{10**18}", 10**18 // BLOCK)],
)
@pytest.mark.parametrize("num_running", [None, 256])
def test_no_more_is_simulated_than_the_trace_can_fill(workload, text, num_pages, num_running):
    capacities = Capacities(workload, None, num_running)
    capacity, unlimited = capacities.read(text), capacities.read("inf")
    assert capacity.num_pages == num_pages
    assert capacity.num_simulated == min(num_pages, unlimited.num_simulated)
    assert capacities.num_filled < unlimited.num_simulated < 20_000


@pytest.mark.parametrize("text", ["9" * 20, "9" * 24 + "%", "9" * 400 + "pages", "9" * 20 + "tokens"])
def test_absurd_numbers_are_refused(workload, text):
    with pytest.raises(ConfigError, match="write inf for one without limit"):
        Capacities(workload, None).read(text)


def test_so_is_what_cannot_be_told_apart(workload):
    replicas = MOST_PAGES // 100
    with pytest.raises(ConfigError, match=f"200 pages in each of {replicas} replicas, more than the 67,108,864"):
        Capacities(workload, None, 256, replicas).read("200pages")


def test_as_many_run_at_once_as_there_are(workload):
    few = Capacities(workload, None, 20).read("inf")
    assert Capacities(workload, None, 2**31 - 1).read("inf") == few
