"""Bodies that say they are something else than JSON, or nothing, or that are JSON gone wrong."""

from __future__ import annotations

import codecs
import gzip
import json

import pytest

from server.running import MODEL, Running

BODY = json.dumps({"model": MODEL, "prompt": "The sea", "max_tokens": 1}).encode()
PATHS = ("/v1/completions", "/v1/messages", "/tokenize")
OTHER_KINDS = ("application/x-www-form-urlencoded", "text/plain", "text/plain;charset=UTF-8", "multipart/form-data", "")


@pytest.mark.parametrize("kind", [*OTHER_KINDS, "application/json; charset=utf-8", "application/vnd.api+json"])
def test_json_is_json_whatever_a_program_calls_it(server: Running, kind: str) -> None:
    """As `curl -d` does."""
    headers = {"content-type": kind} if kind else {}
    for before in (b" \n", codecs.BOM_UTF8):
        assert server.post("/v1/completions", content=before + BODY, headers=headers).status_code == 200


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("content", [b"model=x&prompt=y", b"hello", b'"text"'])
def test_what_is_no_json_is_told_what_to_send(server: Running, path: str, content: bytes) -> None:
    answer = server.post(path, content=content, headers={"content-type": "application/x-www-form-urlencoded"})
    assert answer.status_code == 415
    message = answer.json()["error"]["message"]
    assert "content-type application/x-www-form-urlencoded" in message
    assert "content-type: application/json" in message


@pytest.mark.parametrize("kind", OTHER_KINDS)
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://localhost:3000"},
        {"sec-fetch-site": "same-site"},
        {"referer": "http://localhost:3000/"},
    ],
)
def test_what_a_browser_sends_without_asking_first_is_no_json(
    server: Running, kind: str, headers: dict[str, str]
) -> None:
    more = {"content-type": kind} if kind else {}
    answer = server.post("/v1/completions", content=BODY, headers={**headers, **more})
    assert (answer.status_code, answer.json()["error"]["param"]) == (415, "content-type")


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, gzip"])
@pytest.mark.parametrize("path", PATHS)
def test_a_compressed_body_is_refused_in_words(server: Running, path: str, encoding: str) -> None:
    headers = {"content-type": "application/json", "content-encoding": encoding}
    answer = server.post(path, content=gzip.compress(BODY), headers=headers)
    assert answer.status_code == 415
    assert f"compressed ({encoding})" in answer.json()["error"]["message"]


def test_a_compressed_body_is_known_by_its_looks_too(server: Running) -> None:
    for headers in ({"content-type": "application/json"}, {}):
        answer = server.post("/v1/completions", content=gzip.compress(BODY), headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_encoding")


def test_a_body_that_is_as_it_is_may_say_so(server: Running) -> None:
    headers = {"content-type": "application/json", "content-encoding": "identity"}
    assert server.post("/v1/completions", content=BODY, headers=headers).status_code == 200


@pytest.mark.parametrize("size", [10, 2 << 20])
def test_wrong_json_says_where(server: Running, size: int) -> None:
    """Small bodies and large ones have readers of their own."""
    content = b'{"model": "%s",\n  "prompt": x}' % (b"m" * size)
    answer = server.post("/v1/completions", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert "not valid JSON at line 2, column 13: " in answer.json()["error"]["message"]
