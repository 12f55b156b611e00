"""Which web pages may call: those of this machine and those that are named, and what a browser is told of it."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx2
import pytest
from playwright.sync_api import sync_playwright

from pagoda import LLM
from server.running import MODEL, MOST_SECONDS, Running, running

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
OWN = ("http://localhost:3000", "http://127.0.0.1:5173", "https://[::1]:8443", "http://localhost")
NAMED = "https://chat.example"
FOREIGN = ("https://evil.example", "http://localhost.evil.example", "null", "file://", "http://192.168.0.7:3000")
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def keyed(llm: LLM) -> Iterator[Running]:
    with running(llm, api_key=("secret",), allowed_origins=(NAMED, "app://obsidian.md")) as server:
        yield server


def preflight(server: Running, origin: str, path: str = "/v1/chat/completions", **more: str) -> httpx2.Response:
    headers = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-os",
        **more,
    }
    return httpx2.options(server.url + path, headers=headers, timeout=MOST_SECONDS)


@pytest.mark.parametrize("origin", OWN)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/kv/status", "/nowhere"])
def test_a_page_of_this_machine_may_ask_anything(server: Running, origin: str, path: str) -> None:
    answer = preflight(server, origin, path)
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == origin
    assert {"POST", "DELETE"} <= set(answer.headers["access-control-allow-methods"].split(", "))
    assert answer.headers["access-control-allow-headers"] == "authorization,content-type,x-stainless-os"
    assert int(answer.headers["access-control-max-age"]) > 0
    assert answer.headers["vary"] == "origin"
    assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize("origin", FOREIGN)
def test_a_page_from_elsewhere_is_told_nothing(server: Running, origin: str) -> None:
    for answer in (preflight(server, origin), server.post("/v1/chat/completions", CHAT, headers={"origin": origin})):
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers
        assert "--allowed-origins" in answer.json()["error"]["message"]
    assert not server.service.in_flight


def test_a_preflight_grants_no_more_than_names_of_headers(server: Running) -> None:
    answer = preflight(server, OWN[0], **{"access-control-request-headers": "a b;c"})
    assert answer.headers["access-control-allow-headers"] == "authorization, content-type, x-api-key"
    answer = preflight(server, OWN[0], **{"access-control-request-private-network": "true"})
    assert answer.headers["access-control-allow-private-network"] == "true"


def test_whatever_is_answered_can_be_read(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers, streams, refusals and failures."""
    headers = {"origin": OWN[0]}
    paths = {"/v1/chat/completions": CHAT, "/v1/messages": CHAT}
    answers = [server.post(path, body, headers=headers) for path, body in paths.items()]
    answers.append(server.post("/v1/chat/completions", {**CHAT, "stream": True}, headers=headers))
    answers.append(server.post("/v1/chat/completions", {**CHAT, "max_tokens": "x"}, headers=headers))
    answers.append(server.get("/nowhere", headers=headers))

    def fail(name: str) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(server.service, "check_model", fail)
    answers.append(server.post("/v1/chat/completions", CHAT, headers=headers))
    assert [answer.status_code for answer in answers] == [200, 200, 200, 400, 404, 500]
    for answer in answers:
        assert answer.headers.get_list("access-control-allow-origin") == [OWN[0]]
        exposed = answer.headers["access-control-expose-headers"].split(", ")
        assert {"x-request-id", "request-id", "x-pagoda-ignored"} <= set(exposed)


def test_with_keys_the_named_pages_may_ask(keyed: Running) -> None:
    for origin in (NAMED, "app://obsidian.md", OWN[0]):
        assert preflight(keyed, origin).status_code == 204  # it comes without a key
        answer = keyed.post("/v1/chat/completions", CHAT, headers={"origin": origin, "x-api-key": "secret"})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, origin)
        refused = keyed.post("/v1/chat/completions", CHAT, headers={"origin": origin})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, origin)
    assert preflight(keyed, "https://evil.example").status_code == 403


def test_a_key_is_enough_for_those_that_are_no_pages(keyed: Running) -> None:
    """Programs may send what they like; a browser shows the answer to no page that is not named."""
    headers = {"origin": "https://evil.example", "x-api-key": "secret", "sec-fetch-site": "cross-site"}
    answer = keyed.get("/v1/models", headers=headers)
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers


def test_any_page_may_ask_if_that_is_wanted_but_under_no_other_name(llm: LLM) -> None:
    with running(llm, allowed_origins=("*",)) as server:
        for origin in FOREIGN:
            answer = server.get("/v1/models", headers={"origin": origin, "sec-fetch-site": "cross-site"})
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, origin)
        assert server.get("/v1/models", headers={"sec-fetch-site": "cross-site"}).status_code == 200
        rebound = {"origin": "http://evil.example", "host": "evil.example"}
        assert server.get("/v1/models", headers=rebound).status_code == 403
        assert preflight(server, "http://evil.example", host="evil.example").status_code == 403


@pytest.mark.parametrize("path", ["/v1/models", "/v1/kv/events", "/metrics", "/reset_prefix_cache"])
def test_what_a_page_embeds_from_here_is_refused(server: Running, path: str) -> None:
    """As an image or a form does, without an origin."""
    method = "POST" if path == "/reset_prefix_cache" else "GET"
    answer = httpx2.request(method, server.url + path, headers={"sec-fetch-site": "cross-site"}, timeout=MOST_SECONDS)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "origin_not_allowed")


@pytest.mark.parametrize("path", ["/", "/dashboard/main.js"])
def test_a_link_leads_to_a_page(server: Running, path: str) -> None:
    assert server.get(path, headers={"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}).status_code == 200


@pytest.mark.parametrize("site", ["none", "same-origin", "same-site"])
def test_a_browser_that_asks_for_itself_is_answered(server: Running, site: str) -> None:
    assert server.get("/v1/models", headers={"sec-fetch-site": site}).status_code == 200


def test_an_open_server_does_nothing_for_pages_from_elsewhere(llm: LLM) -> None:
    with running(llm, host="0.0.0.0", allow_no_api_key=True) as server:
        headers = {"origin": "https://evil.example", "sec-fetch-site": "cross-site"}
        assert server.post("/reset_prefix_cache", headers=headers).status_code == 403
        # Browsers leave the second one out where the server is no https.
        assert server.post("/reset_prefix_cache", headers={"origin": "http://evil.example"}).status_code == 403
        own = {"origin": "http://box.example:8000", "host": "box.example:8000"}
        assert server.post("/reset_prefix_cache", headers=own).status_code == 200


SCRIPT = """async ([url, body]) => {
  const headers = {"content-type": "application/json", authorization: "Bearer x", "x-stainless-os": "Linux"};
  const sent = {method: "POST", headers, body: JSON.stringify(body)};
  const answer = await fetch(url + "/v1/chat/completions", sent);
  const refused = await fetch(url + "/v1/chat/completions", {...sent, body: "{}"});
  const stream = await fetch(url + "/v1/chat/completions", {...sent, body: JSON.stringify({...body, stream: true})});
  return {
    id: answer.headers.get("x-request-id"),
    object: (await answer.json()).object,
    error: (await refused.json()).error.param,
    streamed: (await stream.text()).endsWith("data: [DONE]\\n\\n"),
  };
}"""


class _Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>a page</title>")

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody wants to know."""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed; CHROMIUM names one")
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_browser_lets_a_page_of_another_port_call(server: Running, host: str) -> None:
    with HTTPServer(("127.0.0.1", 0), _Page) as pages, sync_playwright() as playwright:
        threading.Thread(target=pages.serve_forever, daemon=True).start()
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(f"http://{host}:{pages.server_port}/")
        found = page.evaluate(SCRIPT, [server.url, CHAT])
        browser.close()
        pages.shutdown()
    assert found.pop("id").startswith("req_")
    assert found == {"object": "chat.completion", "error": "model", "streamed": True}
