"""A click on a request: where its time went, in numbers that are the server's and in words."""

from __future__ import annotations

import re

import httpx2
import pytest
from playwright.sync_api import Page, expect

from server.own.dashboard.browsing import SHIPS, STORY, complete, open_live
from server.running import MODEL, MOST_SECONDS, Running, unhurried


def values(page: Page, part: str) -> list[str]:
    return page.locator(f"#spent-{part} dd").all_inner_texts()


def test_a_click_on_a_request_tells_where_its_time_went(server: Running, live: Page) -> None:
    for prompt, number in ((STORY, 29), (STORY + SHIPS, 30)):
        complete(server, prompt, max_tokens=number, ignore_eos=True)
    server.wait_until_idle()
    row = live.locator("#ended tr").first
    expect(row.locator(".number").nth(2)).to_have_text("30")
    expect(row.locator(".state")).to_have_text("cut off")
    row.locator(".share").click()
    dialog = live.locator("#spent-dialog")
    expect(dialog).to_be_visible()
    expect(dialog.locator("#spent-id")).to_have_text(re.compile("^cmpl.*, cut off$"))
    sentences = dialog.locator("#spent-verdict li").all_inner_texts()
    assert re.match(r"The first token took .* of .* prompt tokens were computed: the prefix missed at", sentences[0])
    assert any(each.startswith("Decode reads ") for each in sentences)
    shares = [float(each.split("· ")[1].removeprefix("< ").removesuffix(" %")) for each in values(live, "wall")]
    assert sum(shares) == pytest.approx(100, abs=2)
    read, computed = (int(each) for each in values(live, "tokens"))
    assert f"{read + computed} tokens, 30 generated" == live.inner_text("#spent-tokens-total")
    assert read > computed > 1
    assert values(live, "work")[1] == "0 ms", "there is no tier to bring pages from"
    widths = dialog.locator("#spent-wall-bar span").evaluate_all("all => all.map((each) => each.clientWidth)")
    assert len(widths) == 5
    assert sum(widths) == pytest.approx(dialog.locator("#spent-wall-bar").evaluate("(bar) => bar.clientWidth"), abs=6)
    live.keyboard.press("Escape")
    expect(dialog).to_be_hidden()


def test_a_request_in_flight_is_followed_by_keyboard(server: Running, live: Page) -> None:
    body = {"model": MODEL, "prompt": STORY, "max_tokens": 3000, "ignore_eos": True, "stream": True}
    with (
        unhurried(server.llm),
        httpx2.stream("POST", server.url + "/v1/completions", json=body, timeout=MOST_SECONDS) as stream,
    ):
        lines = stream.iter_lines()  # the stream ends with it
        next(lines)
        button = live.locator("#requests button", has_text="running").last
        button.focus()
        live.keyboard.press("Enter")
        expect(live.locator("#spent-id")).to_have_text(re.compile("running$"))
        before = live.inner_text("#spent-total")
        expect(live.locator("#spent-total")).not_to_have_text(before)
    expect(live.locator("#spent-id")).to_have_text(re.compile("cancelled$"))
    expect(live.locator("#spent-verdict")).to_contain_text("It was cancelled after")
    live.click("#spent-close")
    expect(live.locator("#spent-dialog")).to_be_hidden()


@pytest.mark.parametrize("width", [360, 1440])
def test_the_dialog_fits_the_page(server: Running, page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    complete(server, STORY)
    open_live(page, server.url)
    page.locator("#ended button").first.click()
    box = page.locator("#spent-dialog").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    assert box["y"] + box["height"] <= 800
    assert page.locator("#spent-dialog").evaluate("(each) => each.scrollWidth - each.clientWidth") <= 0
