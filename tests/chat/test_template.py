"""Templates read as they do in transformers, to the letter."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from pagoda.chat.template import OutputTooLongError, Rendering, Templates

TEMPLATES = {
    "plain": "{% for message in messages %}<|{{ message.role }}|>{{ message['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    "trimming": "{{ bos_token }}{%- for message in messages -%}\n[{{ message.role }}] {{ message.content | trim }}\n"
    "{%- if not loop.last %}{{ '\\n' }}{% endif %}{%- endfor %}{% if add_generation_prompt %} [assistant]{% endif %}",
    "blocks": """
    {%- macro shown(tool) %}
        {{- tool | tojson(indent=2) }}
    {% endmacro %}
    {%- if tools %}
        {%- for tool in tools %}
        {{ shown(tool.function) }}
        {%- endfor %}
    {%- endif %}
    {%- set state = namespace(system=false, last=-1) %}
    {%- for message in messages %}
        {%- if message.role == "system" %}{% set state.system = true %}{% continue %}{% endif %}
        {%- if loop.index0 > 5 %}{% break %}{% endif %}
        {%- set state.last = loop.index0 %}
        {%- if message.role == "assistant" %}
{% generation %}{{ message.content }}{% set hidden = "x" %}{% for call in message.tool_calls or [] %}
{{ call.function | tojson }}{% endfor %}{% endgeneration %}
        {%- else %}
{{ message.role }}: {{ message.content }}
        {%- endif %}{{ hidden }}
    {%- endfor %}
{{ state.system }} {{ state.last }} {{ dict(a=1) }} {{ dict.fromkeys(["b"]) }} {{ documents is none }}
""",
    "thoughts": "{% for message in messages %}{{ message.role }}{% if message.reasoning_content is defined %}"
    "({{ message.reasoning_content }}/{{ message.thinking }}){% endif %}{{ message | length }}"
    "{{ message.content }}{% endfor %}{{ enable_thinking | default('unset') }}",
    "dates": "{{ strftime_now('%d %b %Y') }}{{ strftime_now(format='%Y') }}{{ messages[0].content }}",
}
CONVERSATION = [
    {"role": "system", "content": "Be brief. "},
    {"role": "user", "content": "Höfe & <b>\n"},
    {
        "role": "assistant",
        "content": "",
        "reasoning": "hm",
        "tool_calls": [{"type": "function", "function": {"name": "find", "arguments": {"k": [1.5, None, "ü"]}}}],
    },
    {"role": "tool", "content": "12", "tool_call_id": None},
    {"role": "assistant", "content": " It is 12.  "},
]
TOOLS = [{"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {}}}}]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def rendering(template: str, messages: list[dict[str, Any]], mark: str | None = None, **variables: Any) -> Rendering:
    given = {"documents": None, "tools": None, "add_generation_prompt": False, **SPECIAL, **variables}
    now = datetime.now().isoformat()  # noqa: DTZ005 - as transformers shows it
    return Rendering(template, messages, given, mark, now, 10_000)


def ours(template: str, messages: list[dict[str, Any]], mark: str | None = None, **variables: Any) -> str:
    return Templates(None).render(rendering(template, messages, mark, **variables))


def theirs(template: str, messages: list[dict[str, Any]], **variables: Any) -> str:
    kept = [{name: value for name, value in message.items() if value is not None} for message in messages]
    [text], _ = render_jinja_template([kept], chat_template=template, **SPECIAL, **variables)
    return text


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("variables", [{}, {"tools": TOOLS}, {"add_generation_prompt": True, "enable_thinking": False}])
def test_the_text_is_that_of_transformers(template, variables):
    assert ours(template, CONVERSATION, **variables) == theirs(template, CONVERSATION, **variables)


@settings(max_examples=50)
@given(
    template=st.sampled_from(list(TEMPLATES.values())),
    messages=st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["system", "user", "assistant"])},
            optional={"content": st.text(max_size=5), "thinking": st.none() | st.text(max_size=3)},
        ),
        min_size=1,
        max_size=8,
    ),
)
def test_the_text_of_any_messages_is_that_of_transformers(template, messages):
    assert ours(template, messages) == theirs(template, messages)


@pytest.mark.parametrize("name", ["plain", "trimming", "thoughts"])
@pytest.mark.parametrize("content", ["It is", "It is ", " It is \n ", ""])
def test_the_last_message_goes_on_as_in_transformers(name, content):
    messages = [*CONVERSATION, {"role": "assistant", "content": content}]
    expected = theirs(TEMPLATES[name], messages, continue_final_message=True)
    assert ours(TEMPLATES[name], messages, mark="0123456789abcdef") == expected


def test_a_template_that_leaves_out_the_last_message_cannot_go_on_with_it():
    with pytest.raises(TemplateError, match="leaves out"):
        ours("{% for message in messages[:-1] %}{{ message.content }}{% endfor %}", CONVERSATION, mark="0123")


def test_a_template_may_refuse():
    with pytest.raises(TemplateError, match="no system"):
        ours("{{ raise_exception('no system here') }}", CONVERSATION)


@pytest.mark.parametrize(
    "template",
    ["{{ namespace(_a=1) }}", "{% set n = namespace() %}{% set n._a = 1 %}", "{{ dict.__class__ }}{{ a.b }}"],
)
def test_what_python_itself_reads_is_out_of_reach(template):
    with pytest.raises(TemplateError):
        ours(template, CONVERSATION)


def test_a_template_that_writes_too_much_is_stopped():
    with pytest.raises(OutputTooLongError):
        ours("{% for i in range(100000) %}{{ 'a' * 1000 }}{% endfor %}", CONVERSATION)


def test_variables_may_have_any_name():
    assert ours("{{ self_ }}{{ context }}", [], self_="a", context="b", self="c") == "ab"
