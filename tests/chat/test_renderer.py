"""Rendering ends within bounds, whatever the template and the conversation are, and says why."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from time import monotonic
from types import SimpleNamespace

import pytest

from pagoda.chat.options import ChatOptions
from pagoda.chat.renderer import ChatRenderer
from pagoda.errors import ChatTemplateError, EngineClosedError, RequestError, TokenizerRequiredError

MESSAGES = [{"role": "user", "content": "Hi"}]


class FakeTokenizer(SimpleNamespace):
    """What is known of a tokenizer to render: its templates and special tokens."""

    chat_template = "{{ bos_token }}{% for message in messages %}{{ message.role }}: {{ message.content }}{% endfor %}"
    special_tokens_map = {"bos_token": "<s>"}  # noqa: RUF012

    def get_chat_template(self, chat_template, tools):
        if chat_template == "missing":
            raise ValueError("there is none of that name")
        return chat_template or self.chat_template


@pytest.fixture(scope="module")
def renderer() -> Iterator[ChatRenderer]:
    renderer = ChatRenderer(FakeTokenizer(), 512, seconds=0.5)
    yield renderer
    renderer.close()


def test_a_conversation_is_rendered(renderer):
    assert renderer.render(MESSAGES, ChatOptions()) == "<s>user: Hi"


def test_another_template_and_more_variables(renderer):
    options = ChatOptions(
        chat_template="{{ messages[0].content + mood }}{{ tools[0].name }}{{ bos_token }}{{ add_generation_prompt }}",
        chat_template_kwargs={"mood": "!", "bos_token": "<b>"},
        tools=[{"name": "f"}],
        add_generation_prompt=False,
    )
    assert renderer.render(MESSAGES, options) == "Hi!f<b>False"


def test_the_last_message_goes_on(renderer):
    options = ChatOptions(
        chat_template="{% for m in messages %}{{ m.content }}.{% endfor %}",
        continue_final_message=True,
        add_generation_prompt=False,
    )
    assert renderer.render([*MESSAGES, {"role": "assistant", "content": "Well"}], options) == "Hi.Well"


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'a' * (2 * 10 ** 9) }}",
        "{{ 'a' | center(10 ** 9) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '{:>1000000000}'.format(1) }}",
        "{{ ([0] * 10 ** 9) | length }}",
        "{{ 10 ** (10 ** 8) }}",
        "{{ messages | tojson(indent=10 ** 9) }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
        "{% macro again(x) %}{{ again(x) }}{% endmacro %}{{ again(1) }}",
        "{{ " + "(" * 10_000 + ")" * 10_000 + " }}",
        "{% set all = namespace(v=['a']) %}{% for i in range(60) %}{% set all.v = all.v + all.v %}{% endfor %}",
        "{{ range(10 ** 8) | list }}",
    ],
)
def test_a_template_that_does_too_much_is_ended(renderer, template):
    start = monotonic()
    with pytest.raises(ChatTemplateError, match=r"[Cc]hat template"):
        renderer.render(MESSAGES, ChatOptions(chat_template=template))
    assert monotonic() - start < 30
    assert renderer.render(MESSAGES, ChatOptions()) == "<s>user: Hi"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('System first!') }}", "refuses this conversation: System first!"),
        ("{% if %}", "fails at this conversation with TemplateSyntaxError"),
        ("{{ a.b }}", "fails at this conversation with UndefinedError: 'a' is undefined"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages + 1 }}", "TypeError"),
        ("{{ cycler.__init__.__globals__ }}", "SecurityError"),
        ("missing", "No chat template can be chosen: there is none of that name"),
    ],
)
def test_what_a_template_raises_is_said(renderer, template, said):
    with pytest.raises(ChatTemplateError) as caught:
        renderer.render(MESSAGES, ChatOptions(chat_template=template))
    assert said in str(caught.value)


class Role(StrEnum):
    USER = "user"


def test_a_template_sees_plain_values_alone(renderer):
    assert renderer.render([{"role": Role.USER, "content": "Hi", "n": True}], ChatOptions()) == "<s>user: Hi"
    with pytest.raises(ChatTemplateError, match="has a object; give"):
        renderer.render([{"role": "user", "content": object()}], ChatOptions())


def test_a_conversation_beyond_all_bounds_is_refused(renderer):
    with pytest.raises(ChatTemplateError, match="more than 1048576 characters"):
        renderer.render([{"role": "user", "content": "a" * 2_000_000}], ChatOptions())
    nested = []
    for _ in range(10_000):
        nested = [nested]
    with pytest.raises(ChatTemplateError, match="nested too deeply"):
        renderer.render([{"role": "user", "content": "a", "n": nested}], ChatOptions())
    with pytest.raises(ChatTemplateError, match="more than 1048576 characters"):
        renderer.render([{"role": "user", "content": "a", "n": 1 << 2_000_000}], ChatOptions())


def test_tools_need_a_template_that_takes_them(renderer):
    with pytest.raises(ChatTemplateError, match="takes no tools"):
        renderer.render(MESSAGES, ChatOptions(tools=[{"name": "f"}]))


def test_without_a_template_there_is_nothing_to_render():
    for tokenizer in (None, FakeTokenizer(chat_template=None)):
        renderer = ChatRenderer(tokenizer, 512)
        assert not renderer.has_template
        with pytest.raises(TokenizerRequiredError, match="no chat template"):
            renderer.render(MESSAGES, ChatOptions())


def test_a_conversation_that_takes_long_holds_up_no_other():
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    renderer = ChatRenderer(FakeTokenizer(), 512, seconds=600)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(renderer.render, MESSAGES, ChatOptions(chat_template=endless))
        assert renderer.render(MESSAGES, ChatOptions()) == "<s>user: Hi"
        assert not slow.done()
        renderer.close()
        with pytest.raises(EngineClosedError):
            slow.result()


def test_a_closed_renderer_says_so():
    renderer = ChatRenderer(FakeTokenizer(), 512)
    renderer.close()
    with pytest.raises(EngineClosedError):
        renderer.render(MESSAGES, ChatOptions())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"chat_template": 3}, "chat_template is 3; give"),
        ({"add_generation_prompt": "no"}, "add_generation_prompt is 'no'"),
        ({"continue_final_message": None}, "continue_final_message is None"),
        ({"continue_final_message": True}, "set add_generation_prompt=False"),
        ({"tools": {"name": "f"}}, "give a list of tools"),
        ({"tools": [print]}, "give a list of tools"),
        ({"chat_template_kwargs": "a"}, "give a dictionary"),
        ({"chat_template_kwargs": {1: 2}}, "give a dictionary"),
        ({"chat_template_kwargs": {"messages": []}}, "has messages, which is an argument of its own"),
    ],
)
def test_options_that_are_none_are_refused(options, said):
    with pytest.raises(RequestError) as caught:
        ChatOptions(**options)
    assert said in str(caught.value)
