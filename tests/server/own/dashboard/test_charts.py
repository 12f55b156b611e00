"""Charts: where values are on their axes, how samples become columns, and what the last hours show after a reload."""

from __future__ import annotations

import re
from itertools import product
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from pagoda import LLM
from server.own.dashboard.browsing import STORY, complete, open_live
from server.running import MODEL, running, wait_until


def scale(page: Page, name: str, *arguments: Any, of: list[float]) -> tuple[list[float], list[float]]:
    """The numbers beside the axis, and how far up each of some values is."""
    code = """([name, given, values]) => import('/dashboard/scale.js').then((module) => {
        const { ticks, share } = module[name](...given);
        return [ticks, values.map(share)];
    })"""
    ticks, shares = page.evaluate(code, [name, list(arguments), of])
    return ticks, shares


def test_one_slow_request_does_not_flatten_the_others(live: Page) -> None:
    values = [10.0, 20.0, 12.0, 15.0, 60_000.0]
    ticks, shares = scale(live, "logarithmic", values, 5, of=values)
    assert ticks == [10, 100, 1000, 10_000, 100_000]
    assert shares[1] - shares[0] > 0.07
    assert all(0 <= share <= 1 for share in shares)
    assert scale(live, "linear", max(values), of=values)[1][1] < 0.001
    headings = live.locator("#charts h3")
    for index in (0, 1):
        expect(headings.nth(index)).to_contain_text("logarithmic")
    expect(live.locator("#hours-note")).to_contain_text("logarithmic")


def test_every_value_is_on_a_logarithmic_axis(live: Page) -> None:
    some = ([], [7.0], [0.0], [0.0, 3.0], [1.0, 1.0], [999.0, 1001.0], [1e-4, 1e6])
    for values, most_ticks in product(some, (2, 3, 5)):
        ticks, shares = scale(live, "logarithmic", values, most_ticks, of=values)
        assert 2 <= len(ticks) <= most_ticks, values
        assert ticks == sorted(set(ticks))
        assert all(0 <= share <= 1 for share in shares), values
        assert scale(live, "logarithmic", values, most_ticks, of=ticks)[1][0] == 0


def test_a_linear_axis_begins_at_0(live: Page) -> None:
    for most, ticks in ((0, [0, 1]), (1, [0, 0.5, 1]), (7, [0, 5, 10]), (900, [0, 500, 1000])):
        assert scale(live, "linear", most, of=[0, ticks[-1]]) == (ticks, [0, 1])


def columns(page: Page, name: str, samples: list[dict[str, Any]], last: float, count: int) -> list[float | None]:
    code = """([name, samples, last, count]) => import('/dashboard/columns.js').then((module) =>
        module[name](samples, { first: 0, last }, count, (sample) => sample.value))"""
    return list(page.evaluate(code, [name, samples, last, count]))


def test_samples_become_columns(live: Page) -> None:
    samples = [
        {"time": 5, "seconds": 10, "value": 100.0},
        {"time": 15, "seconds": 10, "value": 4.0},
        {"time": 40, "seconds": 10, "value": None},
    ]
    assert columns(live, "means", samples[:2], 40.0, 4) == [52, 2, 0, 0]
    assert columns(live, "highest", samples, 40.0, 4) == [100, 4, None, None]
    assert columns(live, "means", samples[:2], 40.0, 1) == [13.5]
    assert columns(live, "highest", [], 40.0, 2) == [None, None]


def test_the_last_hours_are_there_again_after_a_reload(llm: LLM, page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pagoda.server.watched.hours.SAMPLE_SECONDS", 0.2)
    with running(llm) as server:
        complete(server, STORY, max_tokens=20)
        server.post("/v1/completions", {"model": MODEL, "prompt": STORY, "max_tokens": -1})
        wait_until(lambda: sum(each.errors for each in server.service.hours.of(None).samples) == 1)
        server.wait_until_idle()
        open_live(page, server.url)
        expect(page.locator("#hours-note")).to_contain_text("The last 10 min · 1 error ·")
        most = re.compile(r"^Tokens/s: .* now, [0-9.,]*[1-9][0-9.,]* at most$")
        rates = page.locator("#hours canvas").first
        expect(rates).to_have_attribute("aria-label", most)
        page.reload()
        expect(page.locator("#hours-note")).to_contain_text("1 error ·")
        expect(rates).to_have_attribute("aria-label", most)
        page.close()
