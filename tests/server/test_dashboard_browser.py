"""The dashboard in a real browser: a Chromium that is installed already, or the tests are skipped."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from pagoda import LLM
from pagoda.cache.pages import ShownState
from server.running import MODEL, MOST_SECONDS, Running, running, unhurried, wait_until

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
MOST_MS = 1000 * MOST_SECONDS
expect.set_options(timeout=MOST_MS)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed; CHROMIUM names one")

STORY = "The room was a pleasant one, at the top of the house, overlooking the sea. " * 4
SHIPS = " I looked out and saw the ships." * 4
BOOK = " She sat down and read a book." * 4
SCRIPT = "<script>document.title = 'taken over'</script><img src=x onerror=alert(1)>"
STATES = ("free", "open", "in-use", "idle", "leased")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=MOST_MS)
        yield browser
        browser.close()


@pytest.fixture
def problems() -> list[str]:
    return []


@pytest.fixture
def page(browser: Browser, problems: list[str]) -> Iterator[Page]:
    """An empty page; `problems` are what goes wrong on it."""
    page = browser.new_page(viewport={"width": 1440, "height": 900}, color_scheme="light")
    page.set_default_timeout(MOST_MS)
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("requestfailed", lambda request: problems.append(f"{request.url}: {request.failure}"))
    yield page
    page.close()


@pytest.fixture
def live(server: Running, page: Page, problems: list[str]) -> Iterator[Page]:
    """The dashboard of `server`, connected; nothing may go wrong on it."""
    open_live(page, server.url)
    yield page
    page.goto("about:blank")
    assert [each for each in problems if "net::ERR_ABORTED" not in each] == []


def open_live(page: Page, url: str) -> None:
    page.goto(url)
    expect(page.locator("#connection")).to_have_text("Live")


def complete(server: Running, prompt: str, headers: dict[str, str] | None = None, **more: Any) -> None:
    asked = {"model": MODEL, "prompt": prompt, "max_tokens": 2, **more}
    assert server.post("/v1/completions", asked, headers=headers).is_success


def shown_counts(page: Page) -> list[int]:
    return [int(page.inner_text(f"[data-state={state}] b").replace(",", "")) for state in STATES]


def test_the_page_fits_a_laptop(live: Page) -> None:
    expect(live.locator("#model-name")).to_have_text(MODEL)
    expect(live).to_have_title("Pagoda")
    size = live.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
    assert size == [1440, 900]
    for panel in ("pages", "memory", "leases", "tree", "requests", "charts", "playground"):
        box = live.locator(f"#{panel}-panel").bounding_box()
        assert box["height"] > 80
        assert box["y"] + box["height"] <= 900


def test_the_map_has_the_counts_of_the_status(server: Running, live: Page) -> None:
    complete(server, STORY)
    server.post("/v1/kv/pin", {"model": MODEL, "prompt": BOOK, "ttl_seconds": 3600})
    server.wait_until_idle()
    group = server.get("/v1/kv/status").json()["groups"][0]
    expect(live.locator("[data-state=leased] b")).to_have_text(str(group["leased"]))
    expect(live.locator("[data-state=in-use] b")).to_have_text("0")
    free, open_, in_use, idle, leased = shown_counts(live)
    assert (free, open_, in_use) == (group["free"], group["open"], group["in_use"]) == (free, 0, 0)
    assert idle + leased == group["idle"]
    assert painted(live, "--idle") * free == painted(live, "--free") * idle > 0
    assert painted(live, "--leased") > 0
    assert f"{group['total']} pages" in live.inner_text("#groups h3")
    states = server.llm.engine.page_states(1)[0]
    live.focus("#groups canvas")
    for state in (ShownState.FREE, ShownState.IDLE, ShownState.LEASED):
        live.keyboard.press("Home")
        for _ in range(states.index(state)):
            live.keyboard.press("ArrowRight")
        expect(live.locator(".tip")).to_have_text(f"Page {states.index(state)}: {state.name.lower()}")
    live.keyboard.press("End")
    expect(live.locator(".tip")).to_have_text(f"Page {group['total'] - 1}: {ShownState(states[-1]).name.lower()}")


def painted(page: Page, colour: str) -> int:
    """Pixels of the first map that have the colour."""
    return page.evaluate(
        """(name) => {
            const text = getComputedStyle(document.documentElement).getPropertyValue(name);
            const wanted = [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16));
            const canvas = document.querySelector("#groups canvas");
            const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            let count = 0;
            for (let at = 0; at < data.length; at += 4) {
                count += wanted.every((part, index) => data[at + index] === part);
            }
            return count;
        }""",
        colour,
    )


def test_a_request_appears_and_goes(server: Running, live: Page) -> None:
    complete(server, STORY)
    body = {"model": MODEL, "prompt": STORY + SHIPS, "max_tokens": 3000, "ignore_eos": True, "stream": True}
    rows = live.locator("#requests tr")
    running_row = rows.filter(has=live.locator(".state", has_text="running"))
    with (
        unhurried(server.llm),
        httpx2.stream("POST", server.url + "/v1/completions", json=body, timeout=MOST_SECONDS) as stream,
    ):
        lines = stream.iter_lines()
        next(lines)
        # The first request may still be seen, of which nothing was cached.
        expect(running_row.last.locator(".number").first).to_have_text(re.compile(r"^[1-9]\d\.\d %$"))
        assert int(running_row.last.locator(".number").nth(1).inner_text()) > 60
    expect(rows).to_have_count(0)
    expect(live.locator("#no-requests")).to_be_visible()
    charts = live.locator("#charts canvas")
    expect(charts.first).to_have_attribute("aria-label", re.compile("Time to first token in ms: median"))
    expect(charts.nth(1)).to_have_attribute("aria-label", re.compile("last [0-9.]+"))


def test_the_tree_opens_by_keyboard_and_stays_open(server: Running, live: Page) -> None:
    for prompt in (STORY, STORY + SHIPS, STORY + BOOK):
        complete(server, prompt)
    items = live.locator("#tree [role=treeitem]")
    expect(items.first).to_contain_text("The room was a pleasant one")
    expect(items.first).to_have_attribute("aria-label", re.compile("2 hits, .* pages"))
    expect(items.first).to_have_attribute("aria-expanded", "false")
    items.first.focus()
    live.keyboard.press("ArrowRight")
    expect(items.first).to_have_attribute("aria-expanded", "true")
    live.keyboard.press("ArrowRight")
    focused = live.locator("#tree :focus")
    expect(focused).to_have_attribute("aria-level", "2")
    key = focused.get_attribute("data-key")
    count = items.count()
    assert count >= 3
    complete(server, "Something else that nobody has asked. " * 4)
    expect(items).to_have_count(count + 1)
    assert focused.get_attribute("data-key") == key
    live.keyboard.press("ArrowLeft")
    live.keyboard.press("ArrowLeft")
    expect(items.first).to_have_attribute("aria-expanded", "false")


def test_texts_that_begin_alike_are_cut_to_where_they_part(live: Page) -> None:
    start = "The room was a pleasant one, "
    texts = [start + "at the top of the house and large", start + "at an end of the road and small", "Another text"]
    distinct = "(texts) => import('/dashboard/excerpt.js').then((module) => module.distinct(texts))"
    expected = ["… the top of the house and large", "… an end of the road and small", "Another text"]
    assert live.evaluate(distinct, texts) == expected
    assert live.evaluate(distinct, ["The same text twice over"] * 2) == ["The same text twice over"] * 2
    assert live.evaluate(distinct, []) == []


def test_times_are_written_as_people_do(live: Page) -> None:
    countdown = "(times) => import('/dashboard/words.js').then((module) => times.map(module.countdown))"
    written = ["0:00", "0:01", "1:05", "1:00:00", "2 d 3:04:05"]
    assert live.evaluate(countdown, [-1, 0.2, 65, 3600, 2 * 86400 + 3 * 3600 + 4 * 60 + 5]) == written


def test_leases_count_down(server: Running, live: Page) -> None:
    server.post("/v1/kv/pin", {"model": MODEL, "prompt": STORY, "ttl_seconds": 599})
    left = live.locator("#leases td.left b")
    expect(left).to_have_text(re.compile(r"^\d:\d\d$"))
    first = left.inner_text()
    wait_until(lambda: left.inner_text() < first)


def test_the_playground_streams_and_later_turns_hit(server: Running, live: Page) -> None:
    live.locator("#playground summary").click()
    live.fill("#chat-system", STORY)
    live.fill("#chat-tokens", "8")
    costs = live.locator("#conversation .model .note")
    for turn, text in enumerate(("Tell me of the sea.", "And of the house?")):
        live.fill("#chat-message", text)
        live.press("#chat-message", "Enter")
        expect(costs.nth(turn)).to_contain_text("computed · first after")
    assert costs.first.inner_text().startswith("0 cached")
    assert int(costs.nth(1).inner_text().split(" cached")[0]) > 60
    expect(live.locator("#conversation .said").nth(2)).to_have_text("And of the house?")
    live.click("#chat-clear")
    expect(live.locator("#conversation li")).to_have_count(0)


def test_an_answer_can_be_stopped(server: Running, live: Page) -> None:
    def go_on(route: Route) -> None:
        """Without an end of its own."""
        route.continue_(post_data=json.dumps(json.loads(route.request.post_data or "") | {"ignore_eos": True}))

    live.route("**/v1/chat/completions", go_on)
    live.locator("#playground summary").click()
    live.fill("#chat-tokens", "3000")
    live.fill("#chat-message", "Tell me everything.")
    with unhurried(server.llm):
        live.click("#chat-send")
        expect(live.locator("#conversation .said").nth(1)).not_to_be_empty()
        live.click("#chat-stop")
        expect(live.locator("#chat-status")).to_have_text("Stopped")
        expect(live.locator("#chat-send")).to_be_enabled()
        server.wait_until_idle()


def test_markup_in_prompts_is_text(server: Running, live: Page) -> None:
    complete(server, SCRIPT + STORY)
    expect(live.locator("#tree")).to_contain_text("<script>")
    expect(live.locator("#tree-text")).to_contain_text("<script>")
    live.fill("#chat-message", SCRIPT)
    live.press("#chat-message", "Enter")
    expect(live.locator("#conversation .said").first).to_have_text(SCRIPT)
    expect(live.locator("#chat-status")).to_have_text("Answered")
    assert live.locator("main script, main img").count() == 0
    expect(live).to_have_title("Pagoda")


def test_colours_follow_the_system_and_the_button(live: Page) -> None:
    body, light, dark = live.locator("body"), "rgb(238, 240, 243)", "rgb(13, 15, 18)"
    expect(body).to_have_css("background-color", light)
    live.emulate_media(color_scheme="dark")
    expect(body).to_have_css("background-color", dark)
    live.click("#theme-button")
    expect(body).to_have_css("background-color", light)
    live.reload()
    expect(body).to_have_css("background-color", light)


def test_a_key_is_asked_for(llm: LLM, page: Page) -> None:
    with running(llm, api_key=("secret",)) as server:
        page.goto(server.url)
        expect(page.locator("#key-dialog")).to_be_visible()
        page.fill("#key-input", "wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#key-reason")).to_have_text("The server refused this key.")
        expect(page.locator("#connection")).to_have_text("An API key is needed")
        page.fill("#key-input", "secret")
        page.keyboard.press("Enter")
        expect(page.locator("#connection")).to_have_text("Live")
        expect(page.locator("#key-dialog")).to_be_hidden()
        page.reload()
        expect(page.locator("#connection")).to_have_text("Live")
        assert page.evaluate("[localStorage.length, sessionStorage.length]") == [0, 1]
        page.close()


def test_a_lost_connection_is_shown_and_comes_back(llm: LLM, page: Page) -> None:
    with running(llm) as server:
        open_live(page, server.url)
        port = int(server.url.rsplit(":", 1)[1])
        server.service.drain()
    expect(page.locator("#connection")).to_have_text(re.compile("Connection lost at"))
    expect(page.locator("#figures")).to_have_css("opacity", "0.55")
    with running(llm, port=port) as server:
        expect(page.locator("#connection")).to_have_text("Live")
        expect(page.locator("#figures")).to_have_css("opacity", "1")
        page.close()


def test_a_tenant_sees_how_many_pages_there_are_and_an_admin_which(
    llm: LLM, page: Page, problems: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "tenants.toml"
    file.write_text('[tenants.a]\napi_key = "a"\n[tenants.operator]\napi_key = "operator"\nis_admin = true')
    with running(llm, tenants=file) as server:
        complete(server, STORY, headers={"x-api-key": "a"})
        for key, sees_all in (("a", False), ("operator", True)):
            page.goto(server.url)
            page.evaluate("(key) => sessionStorage.setItem('pagoda-api-key', key)", key)
            open_live(page, server.url)
            expect(page.locator("#tree")).to_contain_text("Tenant a")
            expect(page.locator("#groups h3")).to_contain_text(f"{llm.cache_stats().groups[0].total} pages")
            expect(page.locator("#memory")).to_contain_text("all pages")
            expect(page.locator("#figures")).to_contain_text("Hit rate")
            for place in ("#groups canvas", "#groups .legend", "#memory-bar"):
                expect(page.locator(place)).to_be_visible(visible=sees_all)
            expect(page.locator("#pages-note")).to_be_visible(visible=not sees_all)
            assert ("Evicted pages" in page.inner_text("#figures")) == sees_all
        assert painted(page, "--idle") > 0
        page.close()
    assert [each for each in problems if "net::ERR_ABORTED" not in each and "401" not in each] == []
