"""No text lies over another one: on a telephone, on laptops and on a large screen, however large numbers are."""

from __future__ import annotations

import json
import time
from base64 import b64encode
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from server.own.dashboard.browsing import BOOK, COLLISIONS, RECORD_DRAWN_TEXTS, SHIPS, STORY, complete, open_live
from server.running import MODEL, Running

HEIGHTS = {390: 844, 1100: 700, 1400: 900, 1920: 1080}
LONG_TEXT = "<|system|>You are the librarian of a small town by the sea and answer kindly and briefly. "
NUMBER = 98_765_432
PAGE_STATES = ("free", "open", "in_use", "idle", "leased", "in_transit")
SPENT = {
    "wall": {"queue": 4321.5, "promotion": 4321.5, "prefill": 4321.5, "decode": 43_210.5, "waiting": 4321.5},
    "work": dict.fromkeys(
        ("queue", "match", "promotion", "prefill", "decode", "sampling", "detokenise", "structured"), 54_321.5
    ),
    "verdict": ["The first token took 1.8 s because 6,012 of 6,400 prompt tokens were computed. " * 2, "It failed."],
}

TIER = {
    "fault": "It has failed 5 times since 14:35:10, and is asked again in 59 s: no answer from a-store.far.example.",
    "bytes": 999 << 40,
    "limit": 999 << 40,
    **dict.fromkeys(("records", "loaded_records", "skipped", "dropped", "refused", "damaged", "errors"), NUMBER),
    **dict.fromkeys(("loaded_bytes", "written_bytes", "waiting_bytes"), 999 << 40),
}


def recent(now: float, ttft_seconds: float) -> dict[str, Any]:
    counts = {"prompt_tokens": 12_345, "cached_tokens": 4_321, "output_tokens": 512, "preemptions": 2}
    told = {"id": f"cmpl-{now}", "time": now, "finish_reason": "abort", "spent": SPENT}
    return {"ttft_seconds": ttft_seconds, "decode_tokens_per_second": 54_321.0, "seconds": 99.9, **told, **counts}


def sample(now: float, factor: float) -> dict[str, Any]:
    rates = {"tokens_per_second": 54_321.0 * factor, "requests_per_second": 123.4 * factor}
    counts = {"waiting": round(2345 * factor), "running": round(1234 * factor), "errors": round(999 * factor)}
    return {"time": now, "seconds": 10.0, "ttft_p95_seconds": 234.5 * factor, **rates, **counts}


def crowded() -> dict[str, Any]:
    """An event of a server that has more of everything than is usual."""
    now = time.time()
    group = {"name": "sliding window 4096", "format": "kivi-2bit", "page_nbytes": 131_072, "page_tokens": 32}
    lease = {"tenant": "a-tenant-with-a-long-name", "text": LONG_TEXT, "tokens": NUMBER, "bytes": 999 << 20}
    lease |= {"expires_in_seconds": 29 * 86_400.5, "age_seconds": 1.0, "ttl_seconds": 30 * 86_400.0, "hits": NUMBER}
    request = {"id": "chatcmpl-1", "state": "running", "prompt_tokens": 131_072, "cached_tokens": 65_000}
    request |= {"output_tokens": 65_432, "seconds": 4321.0, "preemptions": 3, "spent": SPENT}
    return {
        "type": "state",
        "number": 0,
        "time": now,
        "uptime_seconds": 30 * 86_400.0,
        "model": "a-publisher/a-model-with-a-long-name-Instruct",
        "sees_all": True,
        "groups": [group | {"total": NUMBER, **dict.fromkeys(PAGE_STATES, NUMBER // 5)}] * 2,
        "pages": [b64encode(bytes(range(5)) * 500).decode()] * 2,
        "page_stride": 4_000,
        "memory": {"pages": 999 << 30, "process": 999 << 30},
        "cache": {"hit_rate": 0.998, "hit_tokens": 100 * NUMBER, "evicted_pages": NUMBER},
        "tiers": [TIER | {"name": name} for name in ("host", "disk", "remote")],
        "leases": [lease] * 3,
        "requests": [request | {"id": str(number)} for number in range(9)],
        "recent": [recent(now - 800 + number, 0.000_9 * 1.05**number) for number in range(240)],
        "hours": [sample(now - 21_600 + 10 * number, number / 2160) for number in range(2160)],
    }


def branch(number: int, children: list[dict[str, Any]]) -> dict[str, Any]:
    counts = {"tokens": NUMBER, "pages": NUMBER, "hits": NUMBER, "in_use": NUMBER, "leased": NUMBER}
    return {"id": str(number), "start": 0, "text": f"{number} {LONG_TEXT}", "hidden": 1, "children": children, **counts}


@pytest.fixture(params=HEIGHTS)
def sized(page: Page, request: pytest.FixtureRequest) -> Page:
    page.set_viewport_size({"width": request.param, "height": HEIGHTS[request.param]})
    page.add_init_script(RECORD_DRAWN_TEXTS)
    return page


def check(page: Page) -> None:
    expect(page.locator("#hours canvas").last).to_be_visible()
    assert page.evaluate(COLLISIONS) == []
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    drawn = page.evaluate("[...drawn.values()].map((texts) => texts.length)")
    assert len(drawn) == 9
    assert min(drawn) >= 4, "each chart has two numbers and two times at least"


def test_no_labels_collide(server: Running, sized: Page) -> None:
    for prompt in (STORY, STORY + SHIPS, STORY + BOOK):
        complete(server, prompt, max_tokens=20)
    server.post("/v1/kv/pin", {"model": MODEL, "prompt": STORY, "ttl_seconds": 3600})
    open_live(sized, server.url)
    expect(sized.locator("#leases tr")).to_have_count(1)
    expect(sized.locator("#tree .text").first).to_be_visible()
    check(sized)


def test_no_labels_collide_in_a_crowd(server: Running, sized: Page) -> None:
    event = f"event: state\ndata: {json.dumps(crowded())}\n\n"
    tree = {"roots": [{"tenant": "", "salted": False, "hidden": 7, "branches": [branch(n, []) for n in range(9)]}]}
    sized.route("**/v1/kv/events", lambda route: route.fulfill(content_type="text/event-stream", body=event))
    sized.route("**/v1/kv/tree*", lambda route: route.fulfill(json=tree))
    sized.goto(server.url)
    expect(sized.locator("#tree .text").last).to_be_attached()
    expect(sized.locator("#requests tr")).to_have_count(9)
    check(sized)
