"""Conversations in all forms that callers have; what is none is refused with words."""

import pytest

from pagoda.chat.messages import read_conversation, read_conversations
from pagoda.errors import RequestError

USER = {"role": "user", "content": "Hi"}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ([USER], [[USER]]),
        ((USER,), [[USER]]),
        ([[USER], [USER, USER]], [[USER], [USER, USER]]),
        ([(USER,)], [[USER]]),
    ],
)
def test_one_conversation_or_several(given, read):
    assert read_conversations(given) == read


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", ""),
        ([{"type": "text", "text": "a"}], "a"),
        ([{"type": "text", "text": "a"}, "b", {"type": "input_text", "text": "c"}], "a\nb\nc"),
        ([{"type": "refusal", "refusal": "no"}, {"type": "output_text", "text": ""}], "no\n"),
        ([], ""),
    ],
)
def test_parts_are_joined(content, text):
    assert read_conversation([{"role": "user", "content": content}]) == [{"role": "user", "content": text}]


def test_other_fields_are_kept_in_order():
    [read] = read_conversation([{"name": "n", "role": "tool", "tool_call_id": "1", "content": "x"}])
    assert list(read.items()) == [("name", "n"), ("role", "tool"), ("tool_call_id", "1"), ("content", "x")]


@pytest.mark.parametrize(
    ("arguments", "read"),
    [('{"a": 1}', {"a": 1}), ({"a": 1}, {"a": 1}), ("a: 1", "a: 1"), ("[1]", "[1]"), ("", {}), (" null", {})],
)
def test_calls_have_arguments_as_templates_want_them(arguments, read):
    call = CALL | {"function": {"name": "f", "arguments": arguments}}
    [message] = read_conversation([{"role": "assistant", "content": None, "tool_calls": [call]}])
    assert message["tool_calls"] == [CALL | {"function": {"name": "f", "arguments": read}}]
    assert message["content"] == ""


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("Hello", "cannot be a str; give a list of"),
        (USER, "cannot be a dict; give a list of"),
        (None, "cannot be None; give a list of"),
        (5, "cannot be a int"),
        ((message for message in [USER]), "cannot be a generator"),
        ([], "The messages are empty; give a list of"),
        ([[]], "The messages of conversation 0 are empty"),
        ([[USER], []], "The messages of conversation 1 are empty"),
        ([USER, "Hello"], "have a str among them"),
        (["Hello"], "have a str among them"),
        ([[USER], USER], "or a list of such lists"),
        ([["Hello"]], "Message 0 of conversation 0 is a str"),
        ([None], "have None among them"),
        ([{"content": "Hello"}], "Message 0 has no role"),
        ([USER, {"role": 3, "content": "Hello"}], "Message 1 has no role"),
        ([{"role": "user"}], "Message 0 has no content"),
        ([{"role": "user", "content": None}], "Message 0 has no content"),
        ([{"role": "assistant", "content": None, "tool_calls": []}], "Message 0 has no content"),
        ([{"role": "user", "content": 3}], "Message 0 has a int as its content"),
        ([{"role": "user", "content": {"text": "a"}}], "Message 0 has a dict as its content"),
        ([{"role": "user", "content": [3]}], "Message 0 has a int as a part"),
        ([{"role": "user", "content": [{"text": "a"}]}], "Message 0 has a dict as a part"),
        ([{"role": "user", "content": [{"type": "text"}]}], "part of type 'text' without text"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "part of type 'image_url'"),
        ([{"role": "assistant", "tool_calls": "f()"}], "Message 0 has a str as its tool_calls"),
        ([{"role": "assistant", "tool_calls": ["f()"]}], "Message 0 has a list as its tool_calls"),
    ],
)
def test_what_is_no_conversation_is_refused_with_words(given, said):
    with pytest.raises(RequestError) as caught:
        read_conversations(given)
    assert said in str(caught.value)
