"""Log lines: one for each request, whatever a client has put into it."""

from __future__ import annotations

import json
import logging
import time

import httpx2
import pytest

from pagoda.server.logs import JsonFormatter, TextFormatter
from server.running import MODEL, Running

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
