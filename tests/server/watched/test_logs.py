"""Log lines: one for each request, whatever a client has put into it."""

from __future__ import annotations

import io
import json
import logging
import threading
import time

import httpx2
import pytest

from pagoda.server.watched import logs
from pagoda.server.watched.logs import Background, JsonFormatter, TextFormatter
from server.running import MODEL, MOST_SECONDS, Running

HELLO = [{"role": "user", "content": "Hello"}]


def logged(formatter: logging.Formatter, path: str) -> str:
    record = logging.LogRecord("pagoda.access", logging.INFO, "", 0, "request", None, None)
    record.fields = {"request_id": "req_1", "path": path, "status": 200}
    return formatter.format(record)


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/v1/models", "/v1/models"),
        ("/v1/models/Qwen2.5-0.5B_é", "/v1/models/Qwen2.5-0.5B_é"),
        ("/x\nINFO: forged", r"'/x\nINFO: forged'"),
        ("/x\r\u2028\x1b[2J\x85", r"'/x\r\u2028\x1b[2J\x85'"),
        ("/x status=500", "'/x status=500'"),
        ("/x\\n'\"", r"""'/x\\n\'"'"""),
        ("\u202ex", r"'\u202ex'"),
    ],
)
def test_a_value_stays_one_value_of_one_line(path: str, shown: str) -> None:
    assert logged(TextFormatter(), path) == f"INFO: request request_id=req_1 path={shown} status=200"
    line = logged(JsonFormatter(), path)
    assert "\n" not in line
    assert json.loads(line)["path"] == path


def test_a_path_forges_no_line(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pagoda.access")
    httpx2.get(server.url + "/x%0aINFO:%20forged")
    deadline = time.monotonic() + 10
    while not caplog.records:  # it is written after the answer
        assert time.monotonic() < deadline, "nothing was logged"
        time.sleep(0.005)
    (record,) = caplog.records
    assert record.fields["path"] == "/x\nINFO: forged"
    assert "\n" not in TextFormatter().format(record)


class Stalled(io.StringIO):
    """A pipe whose reader stands still until `goes_on`."""

    def __init__(self) -> None:
        super().__init__()
        self.goes_on = threading.Event()

    def write(self, text: str) -> int:
        assert self.goes_on.wait(MOST_SECONDS)
        return super().write(text)


def test_nobody_waits_for_lines_to_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MOST_LINES", 10)
    monkeypatch.setattr(logs, "FLUSH_SECONDS", 0.01)
    stream = Stalled()
    handler = Background(stream)
    for number in range(100):
        handler.emit(logging.LogRecord("", logging.INFO, "", 0, "line %d", (number,), None))
    handler.flush()
    stream.goes_on.set()
    monkeypatch.setattr(logs, "FLUSH_SECONDS", MOST_SECONDS)
    handler.flush()
    lines = stream.getvalue().splitlines()
    assert lines == [f"line {number}" for number in range(len(lines))]
    assert 10 <= len(lines) <= 12


@pytest.mark.parametrize(
    ("path", "header"), [("/v1/messages/count_tokens", "request-id"), ("/tokenize", "x-request-id")]
)
def test_a_failure_has_the_id_that_the_log_has(
    server: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, path: str, header: str
) -> None:
    def fail(name: str) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(server.service, "check_model", fail)
    body = {"model": MODEL, "prompt": "x"} if path == "/tokenize" else {"model": MODEL, "messages": HELLO}
    answer = server.post(path, body)
    (request_id,) = answer.headers.get_list(header)
    assert answer.status_code == 500
    assert f"Request {request_id} failed" in caplog.messages
    assert server.post(path, body, headers={"x-request-id": "mine"}).headers[header] == "mine"


def fields_of(caplog: pytest.LogCaptureFixture, path: str) -> dict:
    """Of the line of the only request to `path`, which is written after the answer."""
    deadline = time.monotonic() + MOST_SECONDS
    while time.monotonic() < deadline:
        found = [each.fields for each in caplog.records if getattr(each, "fields", {}).get("path") == path]
        if found:
            return found[0]
        time.sleep(0.005)
    raise AssertionError("nothing was logged")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_a_line_counts_tokens(server: Running, caplog: pytest.LogCaptureFixture, path: str, stream: bool) -> None:
    body = {"model": MODEL, "messages": HELLO, "max_tokens": 3, "temperature": 0}
    server.post(path, body)
    caplog.set_level(logging.INFO, "pagoda.access")
    assert server.post(path, {**body, "stream": stream}).status_code == 200
    fields = fields_of(caplog, path)
    assert fields["prompt_tokens"] > fields["cached_tokens"] > 0
    assert 0 < fields["generated_tokens"] <= 3
    assert "reason" not in fields


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        ("/v1/chat/completions", {"model": MODEL, "messages": HELLO, "max_tokens": "x"}, "max_tokens: "),
        ("/v1/messages", {"model": "other", "messages": HELLO, "max_tokens": 1}, "The model 'other' is not served"),
        ("/nowhere", {}, "There is nothing at /nowhere."),
    ],
)
def test_a_refusal_says_why(
    server: Running, caplog: pytest.LogCaptureFixture, path: str, body: dict, reason: str
) -> None:
    caplog.set_level(logging.INFO, "pagoda.access")
    server.post(path, body)
    fields = fields_of(caplog, path)
    assert fields["reason"].startswith(reason)
    assert "prompt_tokens" not in fields


def test_a_refusal_at_the_gate_says_why(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pagoda.access")
    server.get("/v1/models", headers={"origin": "https://evil.example"})
    assert "--allowed-origins" in fields_of(caplog, "/v1/models")["reason"]
