"""A chat template that does too much costs its own request an error, and the others nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.running import MODEL, running

CHAT = {"model": MODEL, "max_tokens": 1, "messages": [{"role": "user", "content": "Hi"}]}
# Well-behaved but where a variable asks for something else.
TEMPLATE = """
{%- if bad == "memory" %}{{ 'a' * (2 * 10 ** 9) }}{% endif %}
{%- if bad == "time" %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{% endif %}
{%- if bad == "length" %}{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}{% endif %}
{%- if bad == "no" %}{{ raise_exception('not this') }}{% endif %}
{%- for message in messages %}{{ message.content }}{% endfor %}
"""


@pytest.fixture(scope="module")
def server(llm, tmp_path_factory):
    path: Path = tmp_path_factory.mktemp("template") / "template.jinja"
    path.write_text(TEMPLATE)
    with running(llm, chat_template=path) as server:
        yield server


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("memory", "too much memory"),
        ("time", "took longer than"),
        ("length", "writes too much"),
        ("no", "refuses this conversation: not this"),
    ],
)
def test_it_is_an_error_of_the_request(server, bad, said):
    response = server.post("/v1/chat/completions", CHAT | {"chat_template_kwargs": {"bad": bad}})
    assert response.status_code == 400
    error = response.json()["error"]
    assert said in error["message"]
    assert error["param"] == "messages"
    assert server.post("/v1/chat/completions", CHAT).status_code == 200


def test_variables_that_are_arguments_are_refused(server):
    response = server.post("/v1/chat/completions", CHAT | {"chat_template_kwargs": {"messages": []}})
    assert response.status_code == 400
    assert "chat_template_kwargs has messages" in response.json()["error"]["message"]
