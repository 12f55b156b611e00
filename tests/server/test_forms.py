"""Forms of outputs that cannot be had, over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from pagoda.structured.source import MAX_SOURCE_LENGTH
from server.running import MODEL, Running

LARGE = {"type": "object", "description": "x" * MAX_SOURCE_LENGTH}
HELLO = [{"role": "user", "content": "Hello"}]
SCHEMA = {"name": "f", "schema": LARGE}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (
            "/v1/chat/completions",
            {"messages": HELLO, "response_format": {"type": "json_schema", "json_schema": SCHEMA}},
            "response_format",
        ),
        ("/v1/responses", {"input": "x", "text": {"format": {"type": "json_schema", **SCHEMA}}}, "text"),
    ],
)
def test_what_takes_long_to_compile_is_refused(server: Running, path: str, body: dict[str, Any], param: str) -> None:
    answer = server.post(path, {"model": MODEL} | body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "StructuredOutputError", param)
    assert f"of at most {MAX_SOURCE_LENGTH}" in error["message"]
