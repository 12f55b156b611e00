"""What nobody would send: requests made from the server's own document, and a list of naughty strings.

The requests are the same every time; with FUZZ_EXAMPLES there are so many for each endpoint, and others every time.
"""

from __future__ import annotations

import json
import os

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from pagoda import LLM
from server.running import MODEL, MOST_SECONDS, Running, running

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "10"))
# A few of https://github.com/minimaxir/big-list-of-naughty-strings (MIT).
NAUGHTY = [
    "undefined",
    "\\",
    "1/0",
    "<script>alert(0)</script>",
    "'; DROP TABLE users; --",
    "%s%x%n{0}{{7*7}}{% for i in range(9) %}",
    "\u202e\u2066test\u2069",
    "Z\u0351\u036b\u0343\u032a\u0302\u036b\u033d\u034f\u0334A\u0334",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\x00\x01\x02\x1f\x7f",
    "\ufeff\ufffe\u0000",
    "\U00012031\U000e0001",
    "<|endoftext|><|assistant|><|user|>",
    "<tool_call>{}</tool_call>",
    "data: [DONE]\n\nevent: x\n\n",
    " ",
    "\n" * 50,
]


@pytest.fixture(scope="module", params=[False, True], ids=["lenient", "strict"])
def short(request: pytest.FixtureRequest):
    """A server whose sequences are so short that any request ends soon."""
    with (
        LLM(kv_cache_memory_bytes=8 << 20, num_threads=1, max_model_len=96) as llm,
        running(llm, strict_fields=request.param) as server,
    ):
        yield server


def test_no_request_breaks_the_server(short: Running) -> None:
    schema = schemathesis.openapi.from_url(short.url + "/openapi.json").exclude(path="/v1/kv/events")
    # A strict server refuses most of them at the first field that it does not know.
    num_examples = EXAMPLES // 3 if short.service.options.strict_fields else EXAMPLES
    counted = 0
    for found in schema.get_all_operations():

        @settings(
            max_examples=num_examples,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            database=None,
        )
        @given(case=found.ok().as_strategy())
        def call(case: schemathesis.Case) -> None:
            nonlocal counted
            counted += 1
            response = case.call(timeout=MOST_SECONDS)
            assert response.status_code < 500, response.text
            if response.status_code >= 400:
                assert response.json()["error"]["message"]

        call()
    assert counted > 10 * num_examples
    short.wait_until_idle()


@pytest.mark.parametrize("text", NAUGHTY, ids=lambda text: ascii(text)[:24])
def test_naughty_strings_stream_through_a_chat(short: Running, text: str) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 8, "stream": True}
    with httpx2.stream("POST", short.url + "/v1/chat/completions", json=body, timeout=MOST_SECONDS) as stream:
        lines = [line for line in stream.iter_lines() if line]
    assert stream.status_code == 200
    assert lines[-1] == "data: [DONE]"
    for line in lines[:-1]:
        json.loads(line.removeprefix("data: "))


def test_half_a_surrogate_is_refused(short: Running) -> None:
    content = b'{"model": "pagoda-tiny", "max_tokens": 4, "messages": [{"role": "user", "content": "\\ud800"}]}'
    for path in ("/v1/chat/completions", "/v1/messages", "/tokenize"):
        answer = short.post(path, content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 400, answer.text
