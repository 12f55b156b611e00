"""The page in a real browser: what its panels show, and what they do when the server or the key is another."""

from __future__ import annotations

import re
from pathlib import Path

import httpx2
from playwright.sync_api import Page, expect

from pagoda import LLM
from pagoda.cache.holdings.allocator import ShownState
from server.own.dashboard.browsing import BOOK, SHIPS, STORY, call, complete, open_live
from server.running import MODEL, MOST_SECONDS, Running, running, unhurried, wait_until

SCRIPT = "<script>document.title = 'taken over'</script><img src=x onerror=alert(1)>"
STATES = ("free", "open", "in-use", "idle", "leased")


def shown_counts(page: Page) -> list[int]:
    return [int(page.inner_text(f"[data-state={state}] b").replace(",", "")) for state in STATES]


def test_the_page_fits_a_laptop(live: Page) -> None:
    expect(live.locator("#model-name")).to_have_text(MODEL)
    expect(live).to_have_title("Pagoda")
    size = live.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
    assert size == [1440, 900]
    for panel in ("pages", "memory", "leases", "tree", "hours", "requests", "charts", "playground"):
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
    states = server.service.backend.inspector.page_states(1).result()[0]
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
    expect(charts.first).to_have_attribute("aria-label", re.compile("Time to first token in ms.*: median"))
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
    def distinct(texts: list[str], with_beginning: bool) -> list[str]:
        return list(call(live, "excerpt", "distinct", texts, {"withBeginning": with_beginning}))

    start = "The room was a pleasant one, "
    texts = [start + "at the top of the house and large", start + "at an end of the road and small", "Another text"]
    ends = ["… the top of the house and large", "… an end of the road and small"]
    assert distinct(texts, False) == [*ends, "Another text"]
    assert distinct(texts, True) == [*(f"The room was a {end}" for end in ends), "Another text"]
    for with_beginning in (False, True):
        assert distinct(["The same text twice over"] * 2, with_beginning) == ["The same text twice over"] * 2
        assert distinct([], with_beginning) == []
    unbroken = ["x" * 60 + " and the first of two ends", "x" * 60 + " and the second of two ends"]
    assert [each[:20] for each in distinct(unbroken, True)] == ["x" * 16 + " … a"] * 2


def test_rows_of_the_tree_begin_as_prompts_do(server: Running, live: Page) -> None:
    for end in ("of the house, where nobody had been for years. ", "of the hill, from which the sea was seen. "):
        complete(server, "The room was a pleasant one, at the top " + end * 4)
    rows = live.locator("#tree .text")
    expect(rows).to_have_count(2)
    for text in rows.all_inner_texts():
        assert text.startswith("The room was a … ")


def test_times_are_written_as_people_do(live: Page) -> None:
    written = {-1: "0:00", 0.2: "0:01", 65: "1:05", 3600: "1:00:00", 2 * 86400 + 3 * 3600 + 4 * 60 + 5: "2 d 3:04:05"}
    assert {seconds: call(live, "words", "countdown", seconds) for seconds in written} == written
    now = 1_795_702_451
    assert call(live, "words", "until", now + 60, now) == call(live, "words", "clockTime", now + 60)
    assert re.fullmatch(r"\d+ \w+ \d\d:\d\d", call(live, "words", "until", now + 86_400, now))


def test_shares_that_are_not_0_do_not_say_so(live: Page) -> None:
    written = {0: "0 %", 0.001: "< 1 %", 0.02: "2 %", 0.548: "54.8 %", 1: "100 %"}
    assert {share: call(live, "words", "percent", share) for share in written} == written


def test_leases_say_of_what_and_until_when(server: Running, live: Page) -> None:
    expect(live.locator("#no-leases")).to_be_visible()
    server.post("/v1/kv/pin", {"model": MODEL, "prompt": STORY, "ttl_seconds": 599})
    row = live.locator("#leases tr")
    expect(row.locator(".text")).to_have_text(re.compile("^The room was a pleasant one"))
    expect(row.locator(".left span").first).to_have_text(re.compile(r"^until \d\d:\d\d:\d\d$"))
    expect(row.locator(".tenant")).to_be_hidden()
    left = row.locator(".left b")
    expect(left).to_have_text(re.compile(r"^\d:\d\d$"))
    first = left.inner_text()
    wait_until(lambda: left.inner_text() < first)


def test_a_full_looking_cache_says_what_is_in_use(server: Running, live: Page) -> None:
    for number in range(3):
        complete(server, f"{number} {STORY}")
    server.wait_until_idle()
    group = server.llm.cache_stats().groups[0]
    assert group.idle > 0
    expect(live.locator("[data-part=in-use] dd")).to_have_text("0 · 0 %")
    parts = {"idle": group.idle, "free": group.free}
    for name, pages in parts.items():
        expect(live.locator(f"[data-part={name}] dd")).to_have_text(re.compile(f"^{pages:,} · "))
    widths = {name: live.locator(f"#usage-bar .{name}").bounding_box()["width"] for name in parts}
    assert abs(widths["idle"] / widths["free"] - group.idle / group.free) < 0.1 * group.idle / group.free
    assert live.locator("#usage-bar .in-use").evaluate("(node) => node.clientWidth") == 0
    for title in ("Pages in use", "Pages idle", "Pages free"):
        assert title in live.inner_text("#figures")


def test_what_compression_leaves_out_is_told_while_it_runs(page: Page) -> None:
    llm = LLM(kv_cache_memory_bytes=16 << 20, num_threads=1, kv_compression="knorm:tokens=32")
    body = {"model": MODEL, "prompt": STORY, "max_tokens": 1900, "n": 8, "stream": True, "ignore_eos": True}
    with llm, running(llm) as served:
        open_live(page, served.url)
        assert "Left out" not in page.inner_text("#figures")
        omitted = served.post("/tokenize", {"model": MODEL, "prompt": STORY}).json()["count"] - 32
        with httpx2.stream("POST", served.url + "/v1/completions", json=body, timeout=MOST_SECONDS) as stream:
            lines = stream.iter_lines()  # which end the stream with themselves
            next(lines)
            expect(page.locator("#figures")).to_contain_text(f"Left out of running{8 * omitted} · ")


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
            for place in ("#groups canvas", "#groups .legend", "#usage-bar"):
                expect(page.locator(place)).to_be_visible(visible=sees_all)
            expect(page.locator("#pages-note")).to_be_visible(visible=not sees_all)
            assert ("Evicted pages" in page.inner_text("#figures")) == sees_all
        assert painted(page, "--idle") > 0
        page.close()
    assert [each for each in problems if "net::ERR_ABORTED" not in each and "401" not in each] == []
