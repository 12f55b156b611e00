"""The panel of what lives below the page pools: how full tiers are, what moves, and why one is off."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from pagoda import LLM
from server.own.dashboard.browsing import STORY, complete, open_live
from server.running import Running, running


@pytest.fixture
def tiered(tmp_path: Path) -> Iterator[Running]:
    """A server with a disk, and a store that is not there."""
    llm = LLM(kv_cache_memory_bytes=32 << 20, kv_disk=str(tmp_path), kv_remote="redis://127.0.0.1:1/0")
    with llm, running(llm) as served:
        yield served


def test_each_tier_says_what_it_holds_or_why_it_is_off(tiered: Running, page: Page) -> None:
    complete(tiered, STORY)
    open_live(page, tiered.url)
    disk, remote = page.locator("#tiers article").all()
    expect(disk.locator("h3")).to_have_text("disk")
    expect(disk.locator(".note")).to_have_text(re.compile(r" of .* · [1-9]\d* pages · 0 loaded"))
    expect(disk.locator(".note")).to_have_text(re.compile("up .*/s · down .*/s"))
    expect(disk.locator(".fault")).to_be_hidden()
    expect(remote.locator(".fault")).to_have_text(re.compile("127.0.0.1:1"))


def test_there_is_no_panel_without_tiers(live: Page) -> None:
    expect(live.locator("#tiers-panel")).to_be_hidden()
