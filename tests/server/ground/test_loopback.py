"""A server without keys answers this machine's programs, and no web page that a browser on it looks at."""

from __future__ import annotations

import socket

import httpx2
import pytest

from pagoda import LLM
from server.running import Running, running

PATHS = ("/health", "/metrics", "/v1/kv/tree", "/v1/messages")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "evil.example:8000"},
        {"host": "localhost.evil.example"},
        {"host": "127.0.0.1.evil.example"},
        {"host": "localhost@evil.example"},
        {"host": "192.168.0.7:8000"},
        {"host": "[2001:db8::1]:8000"},
        {"host": ""},
        {"origin": "https://evil.example"},
        {"origin": "http://localhost.evil.example:8000"},
        {"origin": "null"},
        {"host": "localhost", "origin": "http://evil.example"},
    ],
)
def test_other_names_are_refused(server: Running, path: str, headers: dict[str, str]) -> None:
    answer = server.get(path, headers=headers)
    assert answer.status_code == 403
    error = answer.json()["error"]
    assert error["type"] == "permission_error"
    wrong = "host" if headers.get("host", "localhost") != "localhost" else "origin"
    assert f"the header {wrong} " in error["message"]
    assert answer.headers["request-id" if path == "/v1/messages" else "x-request-id"].startswith("req_")


def test_a_page_cannot_empty_the_cache(server: Running) -> None:
    server.post("/v1/kv/pin", {"model": "pagoda-tiny", "prompt": "The sea was calm. " * 8, "ttl_seconds": 60})
    before = server.llm.cache_stats()
    assert server.post("/reset_prefix_cache", headers={"origin": "https://evil.example"}).status_code == 403
    assert server.post("/reset_prefix_cache", headers={"host": "evil.example"}).status_code == 403
    assert server.llm.cache_stats().groups == before.groups


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": "localhost"},
        {"host": "LOCALHOST:8000"},
        {"host": "127.0.0.1:1"},
        {"host": "127.8.8.8"},
        {"host": "[::1]:8000"},
        {"host": "[::1]"},
        {"origin": "http://localhost:3000"},
        {"origin": "http://127.0.0.1:8000"},
        {"origin": "https://[::1]:8000"},
    ],
)
def test_names_of_this_machine_are_answered(server: Running, headers: dict[str, str]) -> None:
    assert server.get("/v1/kv/tree", headers=headers).status_code == 200


OPEN = {"host": "0.0.0.0", "allow_no_api_key": True, "allowed_origins": ("https://chat.example",)}


@pytest.mark.parametrize("options", [{"api_key": ("key",)}, OPEN])
def test_who_serves_others_may_have_any_name(llm: LLM, options: dict) -> None:
    with running(llm, **options) as server:
        headers = {"host": "inference.example", "origin": "https://chat.example", "x-api-key": "key"}
        assert server.get("/v1/models", headers=headers).status_code == 200


def test_a_request_without_a_host_is_no_browsers(server: Running) -> None:
    """Probes of load balancers come by HTTP/1.0."""
    url = httpx2.URL(server.url)
    with socket.create_connection((url.host, url.port), timeout=10) as connection:
        connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        assert connection.recv(4096).split(b" ")[1] == b"200"
