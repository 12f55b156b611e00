"""What one connection may not do: send without end, take its time without end, read nothing, ask without waiting."""

from __future__ import annotations

import json
import time

import pytest

from pagoda import LLM
from pagoda.server.entrance import connection
from pagoda.server.entrance.arrival import FREE_PIECES, MOST_FIELDS, MOST_HEAD_NBYTES
from pagoda.server.entrance.connection import MOST_PIPELINED
from server.raw import Client, head, post, status
from server.running import MODEL, Running, running, unhurried, wait_until

SHORT = {"model": MODEL, "prompt": "The sea was", "max_tokens": 2}
LONG = SHORT | {"max_tokens": 3000, "ignore_eos": True}
HEALTH = head("GET", "/health")
LAST_HEALTH = head("GET", "/health", "Connection: close")
CHUNKED = head("POST", "/v1/completions", "Content-Type: application/json", "Transfer-Encoding: chunked")
MOST_TAKEN = 32 << 20  # of what has no end; buffers of the system take some megabytes


@pytest.fixture(scope="module")
def impatient(llm: LLM):
    """A server that waits for nobody."""
    with running(llm, receive_timeout_seconds=0.3, send_timeout_seconds=0.3, keep_alive_timeout_seconds=1) as server:
        yield server


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (b"GET / HTTP/1.1\r\n", b"X-i: i\r\n" * 1000),
        (b"GET / HTTP/1.1\r\nX-i: ", b"i" * 10_000),
        (b"GET / HTTP/1.1\r\n", b"i" * 10_000),
        (b"GET /", b"i" * 10_000),
        (HEALTH + b"GET / HTTP/1.1\r\n", b"X-i: i\r\n" * 1000),
        (HEALTH + b"GET / HTTP/1.1\r\nX-i: ", b"i" * 10_000),
        (CHUNKED + b"2\r\n{}\r\n0\r\n", b"X-i: i\r\n" * 1000),
        (CHUNKED + b"2\r\n{}\r\n0\r\nX-i: ", b"i" * 10_000),
        (CHUNKED + b"2;", b"i" * 10_000),
    ],
    ids=["headers", "value", "name", "path", "second-headers", "second-value", "trailers", "trailer", "extension"],
)
def test_headers_without_end_are_refused(server: Running, start: bytes, more: bytes) -> None:
    with Client(server.url) as client:
        client.send(start)
        assert client.send_until_ended(more, MOST_TAKEN) < MOST_TAKEN
        answer = client.receive()
    if answer:  # it is lost where the client was still sending
        assert b" 431 " in answer
        assert b"send " in answer
    assert server.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        ([f"X-i: {'i' * (MOST_HEAD_NBYTES - 200)}"], 200),
        ([f"X-i: {'i' * (MOST_HEAD_NBYTES + 1)}"], 431),
        (["X-i: i"] * (MOST_FIELDS - 10), 200),
        (["X-i: i"] * (MOST_FIELDS + 1), 431),
    ],
)
def test_headers_have_a_limit_in_all(server: Running, lines: list[str], wanted: int) -> None:
    with Client(server.url) as client:
        client.send(head("GET", "/health", "Connection: close", *lines))
        answer = client.receive()
    assert status(answer) == wanted
    if wanted == 431:
        assert json.loads(answer.split(b"\r\n\r\n")[1])["error"]["message"].endswith(("send less.", "send fewer."))


def test_what_is_no_request_is_answered_late(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends it again and again would keep the event loop busy."""
    with Client(server.url) as client:
        client.send(b"nonsense\r\n\r\n")
        assert status(client.receive()) == 400
    monkeypatch.setattr(connection, "REFUSAL_SECONDS", 3600)
    with Client(server.url) as client:
        client.send(b"nonsense\r\n\r\n")
        assert server.get("/health").status_code == 200
        assert not client.has_received(within_seconds=0.2)


def test_requests_one_after_the_other_have_limits_of_their_own(server: Running) -> None:
    padded = head("GET", "/health", f"X-i: {'i' * 20_000}")
    with Client(server.url) as client:
        for _ in range(6):
            client.send(padded)
            assert status(client.receive_some()) == 200
        client.send(post("/v1/completions", SHORT | {"prompt": "x" * 200_000}) + padded)
        assert status(client.receive_some()) == 400
        client.send(LAST_HEALTH)
        assert b" 431 " not in client.receive()


def test_trailers_are_no_headers(server: Running) -> None:
    content = json.dumps(SHORT).encode()
    chunks = b"%x\r\n%s\r\n0\r\nX-Request-Timeout: nonsense\r\n\r\n" % (len(content), content)
    with Client(server.url) as client:
        client.send(CHUNKED + chunks)
        assert status(client.receive_some()) == 200


def test_bodies_do_not_come_in_crumbs(server: Running) -> None:
    with Client(server.url) as client:
        client.send(CHUNKED)
        assert client.send_until_ended(b"1\r\n \r\n" * 1000, MOST_TAKEN) < MOST_TAKEN
    content = json.dumps(SHORT).encode().ljust(FREE_PIECES // 2)
    with Client(server.url) as client:
        client.send(CHUNKED + b"".join(b"1\r\n%c\r\n" % each for each in content) + b"0\r\n\r\n")
        assert status(client.receive_some()) == 200


def test_what_is_no_http_is_told_so(server: Running) -> None:
    with Client(server.url) as client:
        client.send(b"HELLO\r\n\r\n")
        assert status(client.receive()) == 400


def test_some_requests_may_come_before_their_answers(server: Running) -> None:
    with Client(server.url) as client:
        client.send(HEALTH * (MOST_PIPELINED - 1) + LAST_HEALTH)
        assert client.receive().count(b" 200 OK") == MOST_PIPELINED


def test_requests_do_not_gather_while_one_is_answered(server: Running) -> None:
    with unhurried(server.llm), Client(server.url) as client:
        client.send(post("/v1/completions", LONG))
        assert client.send_until_ended(HEALTH * 1000, MOST_TAKEN) < MOST_TAKEN
        assert client.receive() == b""
        server.wait_until_idle()


def test_a_client_that_goes_is_noticed_though_it_has_asked_more(server: Running) -> None:
    with unhurried(server.llm):
        with Client(server.url) as client:
            client.send(post("/v1/completions", LONG) + HEALTH)
            wait_until(lambda: server.service.in_flight)
        server.wait_until_idle()


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (b"", b""),
        (b"\r\n", b"\r\n"),
        (b"GET / HTTP/1.1\r\n", b"X-i: i\r\n"),
        (HEALTH + b"GET", b""),
        (head("POST", "/v1/completions", "Content-Type: application/json", "Content-Length: 90000") + b"{", b" "),
        (CHUNKED, b""),
    ],
    ids=["nothing", "lines", "headers", "second-request", "body", "chunks"],
)
def test_nobody_is_waited_for_without_end(impatient: Running, start: bytes, more: bytes) -> None:
    with Client(impatient.url) as client:
        client.send(start)
        for _ in range(20):
            if not (more and client.send_until_ended(more, 1)):
                break
            time.sleep(0.05)
        assert b" 408 " in client.receive()


def test_what_nobody_wants_is_not_read_without_end(impatient: Running) -> None:
    """The request is refused before its body has come."""
    with Client(impatient.url) as client:
        client.send(head("POST", "/nothing", "Transfer-Encoding: chunked"))
        for _ in range(1000):
            if not client.send_until_ended(b"1000\r\n" + bytes(0x1000) + b"\r\n", 1):
                break
            time.sleep(0.005)
        answer = client.receive()
        assert not answer or status(answer) == 404


def test_an_idle_connection_is_closed(impatient: Running) -> None:
    with Client(impatient.url) as client:
        client.send(HEALTH)
        answer = client.receive()
        assert (status(answer), answer.count(b"HTTP/1.1")) == (200, 1)


def test_a_body_that_comes_after_its_answer_leaves_no_connection_behind(impatient: Running) -> None:
    with Client(impatient.url) as client:
        client.send(head("POST", "/nothing", "Content-Length: 2"))
        assert status(client.receive_some()) == 404
        client.send(b"{}")
        client.receive()
    wait_until(lambda: not len(impatient.server.connections))


def test_a_long_answer_outlasts_all_limits_on_what_is_sent(impatient: Running) -> None:
    with unhurried(impatient.llm), Client(impatient.url) as client:
        client.send(post("/v1/completions", LONG | {"max_tokens": 30, "stream": True}, "Connection: close"))
        assert client.receive().count(b"data: ") > 10


def test_who_does_not_read_is_left(impatient: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "LEAST_READ_NBYTES_PER_SECOND", 1 << 30)
    body = LONG | {"n": 32, "stream": True, "logprobs": 20}
    with Client(impatient.url, receive_nbytes=4096) as client:
        client.send(post("/v1/completions", body))
        wait_until(lambda: impatient.service.in_flight)
        impatient.wait_until_idle()
        assert b"[DONE]" not in client.receive()


@pytest.mark.parametrize("lines", [(), ("Host: localhost", "Host: localhost"), ("X-Host: localhost",)])
@pytest.mark.parametrize("path", ["/", "/v1/models", "/nowhere"])
def test_a_request_names_its_host_once(server: Running, path: str, lines: tuple[str, ...]) -> None:
    with Client(server.url) as client:
        client.send("\r\n".join([f"GET {path} HTTP/1.1", *lines, "", ""]).encode())
        answer = client.receive()
    assert status(answer) == 400
    assert b"the header Host" in answer
