"""The playground: a conversation that streams, is kept over reloads, and says where an answer was cut off."""

from __future__ import annotations

import json
import re

from playwright.sync_api import Page, Route, expect

from pagoda import LLM
from server.own.dashboard.browsing import STORY, open_live
from server.running import Running, running, unhurried

FULL = """data: {"choices": [{"delta": {"content": "The sea"}, "finish_reason": null}]}

data: {"choices": [{"delta": {}, "finish_reason": "length"}]}

data: {"choices": [], "usage":
data: {"prompt_tokens": 9, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 2}}}

data: [DONE]

"""


def go_on(route: Route) -> None:
    """Without an end of its own."""
    route.continue_(post_data=json.dumps(json.loads(route.request.post_data or "") | {"ignore_eos": True}))


def ask(page: Page, text: str, tokens: str | None = None) -> None:
    """Send a message and wait for the end of the answer."""
    if tokens is not None:
        page.evaluate("(most) => document.getElementById('chat-tokens').value = most", tokens)
    page.fill("#chat-message", text)
    page.press("#chat-message", "Enter")
    expect(page.locator("#conversation .model .note").last).to_contain_text("computed · first after")


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


def test_an_answer_has_512_tokens_and_says_where_it_was_cut(server: Running, live: Page) -> None:
    live.route("**/v1/chat/completions", go_on)
    ask(live, "Tell me of the sea.")
    cut = live.locator("#conversation .model .cut")
    expect(cut).to_have_text(re.compile("cut off after 512 tokens, the most"))
    expect(live.locator("#conversation .model .note")).to_contain_text("512 tokens")
    expect(live.locator("#conversation .you .cut")).to_be_hidden()


def test_an_answer_that_ended_by_itself_was_not_cut(server: Running, live: Page) -> None:
    ended = FULL.replace("length", "stop")
    live.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=ended))
    ask(live, "Tell me of the sea.")
    expect(live.locator("#conversation .model .cut")).to_be_hidden()


def test_a_full_context_says_so(server: Running, live: Page) -> None:
    live.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=FULL))
    ask(live, "Tell me of the sea.")
    expect(live.locator("#conversation .model .cut")).to_have_text("… cut off after 7 tokens: the context is full")


def test_a_conversation_outlasts_a_reload(server: Running, live: Page) -> None:
    live.route("**/v1/chat/completions", go_on)
    live.locator("#playground summary").click()
    live.fill("#chat-system", STORY)
    ask(live, "Tell me of the sea.", tokens="8")
    before = live.inner_text("#conversation")
    live.reload()
    expect(live.locator("#connection")).to_have_text("Live")
    assert live.inner_text("#conversation") == before
    assert "cut off after 8 tokens" in before
    assert (live.input_value("#chat-system"), live.input_value("#chat-tokens")) == (STORY, "8")
    with live.expect_request("**/v1/chat/completions") as asked:
        ask(live, "And of the house?")
    roles = [message["role"] for message in asked.value.post_data_json["messages"]]
    assert roles == ["system", "user", "assistant", "user"]
    live.click("#chat-clear")
    live.reload()
    expect(live.locator("#conversation li")).to_have_count(0)


def test_what_was_said_until_a_reload_is_kept(server: Running, live: Page) -> None:
    live.route("**/v1/chat/completions", go_on)
    live.fill("#chat-message", "Tell me everything.")
    with unhurried(server.llm):
        live.click("#chat-send")
        expect(live.locator("#conversation .said").nth(1)).not_to_be_empty()
        live.reload()
        server.wait_until_idle()
    expect(live.locator("#conversation .said").nth(1)).not_to_be_empty()
    expect(live.locator("#conversation .model .note")).to_have_text("stopped")
    expect(live.locator("#chat-send")).to_be_enabled()


def test_what_is_kept_and_cannot_be_read_is_no_hindrance(server: Running, live: Page) -> None:
    for kept in ("no JSON", "null", '{"turns": 3}', '{"turns": [{"role": "none"}], "settings": {}}'):
        live.evaluate("(kept) => sessionStorage.setItem('pagoda-conversation', kept)", kept)
        live.reload()
        expect(live.locator("#connection")).to_have_text("Live")
        expect(live.locator("#conversation li")).to_have_count(0)


def test_the_chosen_model_stays_when_the_server_comes_back(llm: LLM, page: Page) -> None:
    with running(llm, served_model_name=("one", "two")) as server:
        open_live(page, server.url)
        page.locator("#playground summary").click()
        page.select_option("#chat-model", "two")
        port = int(server.url.rsplit(":", 1)[1])
        server.service.drain()
    expect(page.locator("#connection")).to_have_text(re.compile("Connection lost at"))
    with running(llm, port=port, served_model_name=("one", "two")):
        with page.expect_response("**/v1/models"):
            expect(page.locator("#connection")).to_have_text("Live")
        expect(page.locator("#chat-model")).to_have_value("two")
        page.close()
