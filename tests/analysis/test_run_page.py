"""The report of a run as a page: whole by itself, well-formed, with the numbers it was given, and nothing unescaped."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import pytest

from pagoda.analysis.run_page import run_page
from pagoda.analysis.run_plots import MOST_ROWS
from pagoda.analysis.run_record import CacheSample, PageMap, RequestRecord, RunRecord, ScenarioRecord
from pagoda.analysis.time import RequestTime, verdict
from pagoda.planning.decoding import DecodeReads

MIB = 1 << 20
VOID = {"meta"}
HOSTILE = '<script>alert("1")</script>&"\'<b>'

WALL = {"queue": 1.2, "promotion": 0.0, "prefill": 0.6, "decode": 2.0, "waiting": 0.2}
NAMES = ("queue", "match", "promotion", "prefill", "decode", "sampling", "detokenise", "structured")
WORK = dict.fromkeys(NAMES, 0.001) | {"queue": 1.2, "prefill": 0.5, "decode": 0.9}
READS = DecodeReads(264 * MIB, {"full": 936 * MIB}, 0, {"int8": 486 * MIB})
TIME = RequestTime(6400, 388, 100, WALL, WORK, ttft_seconds=1.8, ending="length", num_ahead=7, reads=READS)
REQUEST = RequestRecord("request 1", 0.0, 1.2, 1.8, 4.0, TIME)
REFUSED = RequestRecord(
    "request 2",
    0.5,
    None,
    None,
    0.5,
    RequestTime(3, 0, 0, dict.fromkeys(WALL, 0.0), dict.fromkeys(NAMES, 0.0), ending="error"),
)
SAMPLES = (
    CacheSample(0.0, 0, 0, (0, 0), (0, 0), (0, 0)),
    CacheSample(1.5, 388, 6400, (300 * MIB, 5 * MIB), (20 * MIB, MIB), (3 * MIB, 0)),
    CacheSample(3.0, 388, 6400, (100 * MIB, 5 * MIB), (220 * MIB, MIB), (2 * MIB, 0)),
)
MAPS = (PageMap("KV, full (bf16)", bytes([2, 2, 1, 3, 0, 4]), 1, 26, 128 << 10, 32),)
SCENARIO = ScenarioRecord(
    "single", [("time to first token", "1.8 s", "1.7 s", "1.9 s")], [REQUEST], ["KV, full", "states"], SAMPLES, MAPS
)
RUN = RunRecord(
    "Pagoda bench: a-model",
    "2026-11-26 20:00 UTC",
    [("processor", "A chip"), ("cores", "2")],
    [("block size", "32")],
    264 * MIB,
    [SCENARIO],
)


class Reader(HTMLParser):
    """Checks that every element is closed by its own end, and collects what is to be seen."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.seen: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.seen.append(data)

    @property
    def words(self) -> str:
        return "\n".join(self.seen)


def drawings(page: str) -> list[ET.Element]:
    """As XML, which is stricter than HTML."""
    return [ET.fromstring(drawn) for drawn in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def rectangles(drawn: ET.Element, kind: str) -> list[dict[str, str]]:
    return [each.attrib for each in drawn.iter("{http://www.w3.org/2000/svg}rect") if each.get("class") == kind]


def test_the_page_is_whole_by_itself() -> None:
    page = run_page(RUN)
    reader = Reader(page)
    assert page.startswith("<!doctype html>")
    assert not {"script", "link", "img", "iframe", "object", "form"} & {*reader.tags}
    assert not {name for name, _ in reader.attributes} & {"src", "href", "style", "onclick"}
    assert "url(" not in page
    assert "@import" not in page
    assert set(re.findall(r"https?://[^\s\"']+", page)) == {"http://www.w3.org/2000/svg"}
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in reader.attributes


def test_every_section_is_there_with_its_numbers() -> None:
    seen = Reader(run_page(RUN)).words
    for title in (
        *("All scenarios together", "Work by phase", "Machine", "Configuration", "Scenario: single", "Measured"),
        *("Requests over time", "Hit rate", "Bytes by kind", "Bytes of pages over time"),
        *("Page map: KV, full (bf16)", "Slowest first tokens", "Requests"),
    ):
        assert title in seen, title
    for value in (
        *("A chip", "block size", "2026-11-26 20:00 UTC", "time to first token", "1.8 s", "1.7 s", "1.9 s"),
        *("388 of 6,400 prompt tokens were found in the cache, 6.1%.", "When most was in use, after 1.5 s."),
        *("297 MiB", "3 MiB", "264 MiB", "21 MiB", "5 MiB"),  # in use and filled, waste, weights, idle, states
        *("6,400", "388", "6,012", "100", "1.2 s", "600 ms", "2 s", "200 ms", "4 s"),
        *("in use 2", "open 1", "idle 1", "leased 1", "free 1", "26 more behind them are free."),
    ):
        assert value in seen, value
    for sentence in verdict(TIME):
        assert sentence in seen


def test_bars_are_as_long_as_what_they_stand_for() -> None:
    shares, requests, _, by_kind, _, cells = drawings(run_page(RUN))
    (queue,), (prefill,), (decode,) = (rectangles(requests, phase) for phase in ("queue", "prefill", "decode"))
    unit = float(queue["width"]) / 1.2
    assert float(prefill["width"]) == pytest.approx(0.6 * unit, rel=1e-3)
    assert float(decode["width"]) == pytest.approx(2.2 * unit, rel=1e-3)
    assert float(prefill["x"]) == pytest.approx(float(queue["x"]) + float(queue["width"]), abs=0.02)
    widths = {kind: float(rectangles(by_kind, kind)[0]["width"]) for kind in ("weights", "kind-0", "unfilled", "idle")}
    assert widths["kind-0"] / widths["weights"] == pytest.approx(297 / 264, rel=1e-2)
    assert widths["idle"] / widths["unfilled"] == pytest.approx(21 / 3, rel=1e-2)
    found = {kind: float(rectangles(shares, kind)[0]["width"]) for kind in ("prefill", "decode")}
    assert found["decode"] / found["prefill"] == pytest.approx(0.9 / 0.5, rel=1e-3)
    states = ("in-use", "open", "idle", "free", "leased")
    assert [len(rectangles(cells, state)) for state in states] == [2, 1, 1, 1, 1]


def test_names_are_escaped() -> None:
    request = replace(REQUEST, name=HOSTILE)
    maps = [replace(MAPS[0], kind=HOSTILE)]
    scenario = replace(
        SCENARIO, name=HOSTILE, figures=[(HOSTILE,) * 4], requests=[request], kinds=[HOSTILE] * 2, maps=maps
    )
    page = run_page(
        replace(RUN, title=HOSTILE, when=HOSTILE, machine=[(HOSTILE,) * 2], configuration=[], scenarios=[scenario])
    )
    reader = Reader(page)
    assert not {"script", "b"} & {*reader.tags}
    assert HOSTILE in reader.words
    assert len(drawings(page)) == 6


def test_a_run_in_which_little_happened_is_a_page_too() -> None:
    empty = ScenarioRecord("nothing", [], [], ["KV"], [], [])
    refused = replace(empty, name="refused", requests=[REFUSED], samples=[CacheSample(0.0, 0, 0, (0,), (0,), (0,))])
    page = run_page(replace(RUN, scenarios=[empty, refused]))
    seen = Reader(page).words
    assert "Nothing was looked up." in seen
    assert not re.search(r"\bnan\b|\binf\b", "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL)))
    assert len(Reader(run_page(replace(RUN, scenarios=[]))).words) > 0


def test_of_many_requests_the_first_are_drawn_and_all_are_in_the_table() -> None:
    requests = [replace(REQUEST, name=f"request {number}") for number in range(MOST_ROWS + 7)]
    page = run_page(replace(RUN, scenarios=[replace(SCENARIO, requests=requests)]))
    assert len(rectangles(drawings(page)[1], "decode")) == MOST_ROWS
    assert "7 more are in the table." in Reader(page).words
    assert page.count("<td>request ") == MOST_ROWS + 7


def test_a_long_run_is_drawn_with_as_many_points_as_can_be_seen() -> None:
    samples = [CacheSample(number / 1000, number, 2 * number, (number,), (0,), (0,)) for number in range(20_000)]
    page = run_page(replace(RUN, scenarios=[replace(SCENARIO, samples=samples, kinds=["KV"], maps=[])]))
    assert len(page) < 200_000
