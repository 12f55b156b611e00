"""Replies are read as thoughts, text and calls; what is none of these is text, as the model wrote it."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagoda.server.replies.dialects import DIALECTS, GLM, HERMES, LLAMA3, MISTRAL, XML, Dialect, find_dialect
from pagoda.server.replies.pieces import Arguments, CallEnd, CallStart, Text, Thought, ToolCall, blocks_of, joined
from pagoda.server.replies.reader import ReplyReader, Terms
from pagoda.server.replies.style import ReplyStyle
from pagoda.server.replies.thoughts import KNOWN, find_thoughts, has_opened
from server.replies.families import read

TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": {"properties": {"place": {"type": "string"}}}}}
]
TERMS = Terms(tools=TOOLS)
WEATHER = ToolCall("weather", '{"place": "Dover"}')
AS_JSON = '{"name": "weather", "arguments": {"place": "Dover"}}'
AS_XML = "<function=weather>\n<parameter=place>\nDover\n</parameter>\n</function>"
THINK = KNOWN[0]


def hermes(arguments: str) -> str:
    return f'<tool_call>{{"name": "weather", "arguments": {arguments}}}</tool_call>'


def odd(text: str) -> ToolCall:
    return ToolCall("weather", json.dumps({"place": text}))


def say(text: str) -> list[Text]:
    return [Text(text)]


REPLIES: list[tuple[Dialect, str, list[Any]]] = [
    (HERMES, f"Let me see.<tool_call>\n{AS_JSON}\n</tool_call>", [Text("Let me see."), WEATHER]),
    (HERMES, f"\n<tool_call>{AS_JSON}</tool_call>\n<tool_call>{AS_JSON}</tool_call>\n", [WEATHER, WEATHER]),
    (HERMES, f"<tool_call>{AS_JSON}</tool_call> It rains.", [WEATHER, Text(" It rains.")]),
    (HERMES, f"a<tool_call>{AS_JSON}</tool_call>b<tool_call>{AS_JSON}", [Text("a"), WEATHER, Text("b"), WEATHER]),
    (HERMES, f"<tool_call>{AS_JSON}\n{AS_JSON}</tool_call>", [WEATHER, WEATHER]),
    (HERMES, f"<tool_call>[{AS_JSON}, {AS_JSON}]</tool_call>", [WEATHER, WEATHER]),
    (HERMES, f"<tool_call>{AS_JSON}<tool_call>{AS_JSON}</tool_call>", [WEATHER, WEATHER]),
    (HERMES, f"<tool_call>{AS_JSON} and on</tool_call>.", [WEATHER, Text("and on.")]),
    (HERMES, f"<tool_call>{AS_XML}</tool_call>", [WEATHER]),
    (HERMES, "<tool_call>nonsense</tool_call> and on", say("<tool_call>nonsense</tool_call> and on")),
    (HERMES, f"<tool_call>x<tool_call>{AS_JSON}</tool_call>", [Text("<tool_call>x"), WEATHER]),
    (HERMES, hermes('{"place": "</tool_call>"}'), [odd("</tool_call>")]),
    (HERMES, hermes('{"place": "a\nb"}'), [odd("a\nb")]),
    (HERMES, hermes('{"place": "}{<tool_call>{"}'), [odd("}{<tool_call>{")]),
    (HERMES, hermes('"{\\"place\\": \\"Deal\\"}"'), [odd("Deal")]),
    (HERMES, hermes('"x"'), say(hermes('"x"'))),
    (HERMES, hermes("[5]"), say(hermes("[5]"))),
    (HERMES, hermes("null"), [ToolCall("weather", "{}")]),
    (HERMES, hermes('""'), [ToolCall("weather", "{}")]),
    (HERMES, '<tool_call>{"arguments": {"place": "Dover"}, "name": "weather"}</tool_call>', [WEATHER]),
    (HERMES, f'<tool_call>{{"type": "function", "function": {AS_JSON}}}</tool_call>', [WEATHER]),
    (HERMES, '<tool_call>{"name": 5, "arguments": {}}', say('<tool_call>{"name": 5, "arguments": {}}')),
    (HERMES, "a < b <tool", say("a < b <tool")),
    (HERMES, " \n", say(" \n")),
    (XML, f"So.\n<tool_call>\n{AS_XML}\n</tool_call>", [Text("So.\n"), WEATHER]),
    (XML, f"{AS_XML}\n{AS_XML}", [WEATHER, WEATHER]),
    (XML, f"<tool_call>\n{AS_XML}\n{AS_XML}</tool_call>", [WEATHER, WEATHER]),
    (XML, f"<tool_call>{AS_JSON}</tool_call>", [WEATHER]),
    (XML, AS_XML.replace("Dover", "a</parameter>b</function>"), [odd("a</parameter>b</function>")]),
    (XML, AS_XML.replace("</function>", "</tool_call>"), [WEATHER]),
    (XML, "<function=weather></function>", [ToolCall("weather", "{}")]),
    (XML, "<function= and so on", say("<function= and so on")),
    (GLM, "<tool_call>weather</tool_call>", [ToolCall("weather", "{}")]),
    (GLM, "<tool_call>rain</tool_call>", say("<tool_call>rain</tool_call>")),
    (MISTRAL, f"[TOOL_CALLS] [{AS_JSON}, {AS_JSON}]", [WEATHER, WEATHER]),
    (MISTRAL, f"[TOOL_CALLS] [{AS_JSON}] [TOOL_CALLS] [{AS_JSON}]", [WEATHER, WEATHER]),
    (MISTRAL, f"[{AS_JSON}, {AS_JSON}]", [WEATHER, WEATHER]),
    (MISTRAL, '[TOOL_CALLS]weather{"place": "Dover"}', [WEATHER]),
    (MISTRAL, "[TOOL_CALLS]weather[ARGS]", [ToolCall("weather", "{}")]),
    (MISTRAL, "[TOOL is not", say("[TOOL is not")),
    (MISTRAL, "[TOOL_CALLS] is not", say("[TOOL_CALLS] is not")),
    (MISTRAL, "[" * 5000, say("[" * 5000)),
    (LLAMA3, '{"name": "weather", "parameters": {"place": "Dover"}}', [WEATHER]),
    (LLAMA3, f"{AS_JSON}; {AS_JSON}", [WEATHER, WEATHER]),
    (LLAMA3, f"{AS_JSON} It rains.", [WEATHER, Text("It rains.")]),
    (LLAMA3, f"<|python_tag|>{AS_JSON}; {AS_JSON}", [WEATHER, WEATHER]),
    (LLAMA3, "Just words {really}.", say("Just words {really}.")),
    (HERMES, f"{AS_JSON}\n{AS_JSON}", [WEATHER, WEATHER]),
    (HERMES, f"{AS_JSON}\nThat is all.", say(f"{AS_JSON}\nThat is all.")),
    (HERMES, '{"colour": "red"}', say('{"colour": "red"}')),
    (HERMES, '{"name": ["weather"], "arguments": {}}', say('{"name": ["weather"], "arguments": {}}')),
    (HERMES, '{"name": {}, "function": 5}', say('{"name": {}, "function": 5}')),
    (HERMES, '```python\n{"name": 1}\n```', say('```python\n{"name": 1}\n```')),
]


@pytest.mark.parametrize(("dialect", "text", "blocks"), REPLIES)
def test_replies_are_read(dialect: Dialect, text: str, blocks: list[Any]) -> None:
    assert read(text, ReplyStyle(dialect), TERMS) == blocks
    assert read(text, ReplyStyle(dialect), TERMS, size=1) == blocks


@given(st.sampled_from(REPLIES), st.lists(st.integers(0, 120), max_size=6), st.booleans())
def test_however_a_reply_is_cut_into_pieces_it_is_the_same(case: tuple, cuts: list[int], is_whole: bool) -> None:
    dialect, text, blocks = case
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    reader = ReplyReader(ReplyStyle(dialect), TERMS, is_whole)
    pieces = [piece for start, stop in pairwise(places) for piece in reader.push(text[start:stop])]
    assert blocks_of([*pieces, *reader.push("", is_last=True)]) == blocks


@given(st.sampled_from(DIALECTS), st.text(), st.integers(1, 9))
def test_what_has_no_marks_is_text(dialect: Dialect, text: str, size: int) -> None:
    if not any(mark in text for mark in (*dialect.starts, *dialect.marks, " to=")):
        assert read(text, ReplyStyle(dialect, THINK), TERMS, size) == ([Text(text)] if text else [])


FRAGMENTS = (
    *sorted({mark for dialect in DIALECTS for mark in (*dialect.starts, *dialect.marks)}),
    *("<function=weather>", "<parameter=place>", "</parameter>", "</function>", "```json\n", "```", "</think>"),
    *(
        AS_JSON,
        '{"name": "weather", "arguments": ',
        '{"place": "',
        '"}',
        "}",
        "[",
        "]",
        "weather",
        "functions.weather:0",
    ),
    *("function", "analysis", "commentary to=functions.weather json", "Fog.", " ", "\n", "<", "{", '"', "\\"),
)


@given(st.sampled_from(DIALECTS), st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join), st.booleans())
def test_any_markup_is_read_alike_however_it_comes(dialect: Dialect, text: str, is_cut: bool) -> None:
    style, size = ReplyStyle(dialect, THINK), len(text) + 1
    blocks = read(text, style, TERMS, size, is_cut)
    assert read(text, style, TERMS, 1, is_cut) == read(text, style, TERMS, 3, is_cut) == blocks
    for call in read(text, style, TERMS, None, is_cut):
        if isinstance(call, ToolCall):
            assert isinstance(json.loads(call.arguments), dict)


def test_arguments_are_given_as_they_are_written() -> None:
    reader = ReplyReader(ReplyStyle(HERMES), TERMS)
    pieces = [
        reader.push(each) for each in ("<tool_call>\n", '{"name": "wea', 'ther", "arguments": ', '{"pl', 'ace": "Do')
    ]
    assert pieces[:2] == [[], []]
    assert [type(piece) for each in pieces[2:] for piece in each] == [CallStart, Arguments, Arguments]
    assert reader.push('ver"}}') == [Arguments('ver"}'), CallEnd(is_whole=True)]


def test_a_call_that_breaks_off_after_some_of_it_was_given_ends_there() -> None:
    text = hermes('{"place": "Dover", or so}')
    reader = ReplyReader(ReplyStyle(HERMES), TERMS)
    start, arguments, end, rest = joined([*reader.push(text[:50]), *reader.push(text[50:])])
    assert isinstance(start, CallStart)
    assert (arguments, end) == (Arguments('{"place": "Dover", '), CallEnd(is_whole=False))
    assert rest == Text("or so}}")
    assert reader.num_calls == 0
    assert read(text, ReplyStyle(HERMES), TERMS) == say(text)


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_reply_that_is_cut_in_a_call_has_the_whole_ones(is_whole: bool) -> None:
    text = f"Well.\n<tool_call>{AS_JSON}</tool_call>\n<tool_call>{AS_JSON}"[:-10]
    reader = ReplyReader(ReplyStyle(HERMES), TERMS, is_whole)
    pieces = [*reader.push(text), *reader.push("", is_last=True, is_cut=True)]
    assert blocks_of(pieces) == [Text("Well.\n"), WEATHER]
    assert reader.num_calls == 1
    assert is_whole or pieces[-1] == CallEnd(is_whole=False)


def test_calls_beyond_the_most_are_left_out() -> None:
    terms = Terms(tools=TOOLS, most_calls=1)
    text = f"<tool_call>{AS_JSON}</tool_call>" * 2
    reader = ReplyReader(ReplyStyle(HERMES), terms)
    pieces = [piece for each in text for piece in reader.push(each)]
    assert blocks_of([*pieces, *reader.push("", is_last=True)]) == [WEATHER]
    assert sum(isinstance(piece, CallStart) for piece in pieces) == reader.num_calls == 1


def test_without_tools_everything_is_text() -> None:
    for dialect in DIALECTS:
        assert read(AS_JSON, ReplyStyle(dialect), Terms()) == say(AS_JSON)
    text = f"<tool_call>{AS_JSON}</tool_call>"
    assert (
        read(text, ReplyStyle(HERMES), Terms())
        == read(text, ReplyStyle(HERMES), Terms(TOOLS, is_form=True))
        == say(text)
    )


def test_marks_that_are_special_tokens_are_never_shown() -> None:
    style = ReplyStyle(LLAMA3, hidden=("<|python_tag|>",))
    assert read("<|python_tag|>print(5)", style, TERMS) == say("print(5)")
    assert read("<|python_tag|>print(5)", style, Terms(), size=1) == say("print(5)")


@pytest.mark.parametrize(
    ("text", "is_thinking", "blocks"),
    [
        ("<think>\nFog?\n</think>\n\nFog.", False, [Thought("Fog?"), Text("Fog.")]),
        ("Fog?\n</think>\n\nFog.", True, [Thought("Fog?"), Text("Fog.")]),
        ("\n<think>Fog?\n\nRain?</think>", False, [Thought("Fog?\n\nRain?")]),
        ("Fog?\n", True, [Thought("Fog?")]),
        ("<think></think>Fog.", False, [Text("Fog.")]),
        ("<think>\n\n</think>\n\n", False, []),
        (f"Fog?</think>\n<tool_call>{AS_JSON}</tool_call>", True, [Thought("Fog?"), WEATHER]),
        (
            f"<tool_call>{AS_JSON}</tool_call></think>{AS_JSON}",
            True,
            [Thought(f"<tool_call>{AS_JSON}</tool_call>"), WEATHER],
        ),
        ("Use <think> tags.", False, [Text("Use <think> tags.")]),
    ],
)
def test_thoughts_come_apart(text: str, is_thinking: bool, blocks: list[Any]) -> None:
    style = ReplyStyle(HERMES, THINK, is_thinking)
    assert read(text, style, TERMS) == read(text, style, TERMS, size=1) == blocks


def test_a_special_token_that_begins_calls_ends_a_thought() -> None:
    style = ReplyStyle(MISTRAL, KNOWN[1], is_thinking=True, hidden=("[TOOL_CALLS]",))
    text = f"Fog?[TOOL_CALLS] [{AS_JSON}]"
    assert read(text, style, TERMS) == read(text, style, TERMS, size=1) == [Thought("Fog?"), WEATHER]
    assert read(text, ReplyStyle(MISTRAL, KNOWN[1], is_thinking=True), TERMS) == [Thought(text)]


@pytest.mark.parametrize("size", [None, 1])
def test_prose_about_marks_is_no_call(size: int | None) -> None:
    for text in ("Use `<function=weather>` tags.", "The tag <tool_call>weather is one."):
        assert read(text, ReplyStyle(find_dialect("<function=<parameter=")), TERMS, size) == say(text)


@pytest.mark.parametrize("size", [None, 1])
def test_a_template_of_single_calls_gets_one(size: int | None) -> None:
    calls = f"{AS_JSON}; {AS_JSON}"
    style = ReplyStyle(find_dialect("<|python_tag|>"), is_single=True)
    assert read(calls, style, TERMS, size) == [WEATHER]


@pytest.mark.parametrize("size", [None, 1])
def test_numbers_that_no_json_can_say_are_text(size: int | None) -> None:
    text = "<tool_call><function=weather><parameter=n>1e999</parameter></function></tool_call>"
    style = ReplyStyle(find_dialect("<function=<parameter="))
    assert read(text, style, TERMS, size) == [ToolCall("weather", '{"n": "1e999"}')]


def test_replies_of_a_form_have_no_thoughts() -> None:
    style = ReplyStyle(HERMES, THINK, is_thinking=True)
    assert read('{"a": 1}', style, Terms(is_form=True)) == say('{"a": 1}')
    assert read(AS_JSON, style, Terms(TOOLS, is_forced=True, is_form=True)) == [WEATHER]


HARMONY_TEXT = (
    "<|channel|>analysis<|message|>Fog?<|end|><|start|>assistant<|channel|>analysis<|message|>Rain?<|end|>"
    "<|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
    "<|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
    '{"place": "Dover"}<|call|>'
    "<|start|>assistant<|channel|>final<|message|>Fog.<|return|>"
)


@pytest.mark.parametrize("size", [None, 1, 4])
def test_channels_are_thoughts_text_and_calls(size: int | None) -> None:
    style = ReplyStyle(find_dialect("<|channel|><|message|>"))
    thought, look, fog = Thought("Fog?\nRain?"), Text("I look."), Text("Fog.")
    assert read(HARMONY_TEXT, style, TERMS, size) == [thought, look, WEATHER, fog]
    assert read(HARMONY_TEXT, style, Terms(), size) == [thought, Text('I look.\n{"place": "Dover"}\nFog.')]
    assert read("No channels.", style, TERMS, size) == say("No channels.")


@pytest.mark.parametrize(
    ("template", "dialect"),
    [
        ("{% for t in tools %}<tool_call>{% endfor %}", HERMES),
        ("{{ tools }} [TOOL_CALLS]", MISTRAL),
        ("{{ tools }} <|python_tag|>", LLAMA3),
        ("{{ tools }} <|eom_id|>", LLAMA3),
        ("{{ tools }} <tool_call><function= <parameter=", XML),
        ("{{ tools }} <tool_call> <arg_key>", GLM),
        ("{{ tools }}", None),
    ],
)
def test_the_dialect_is_known_by_the_template(template: str, dialect: Dialect | None) -> None:
    assert find_dialect(template) is dialect


def test_thoughts_are_known_by_the_template_and_the_prompt() -> None:
    assert find_thoughts("{{ '<think>\n' }} {{ content.split('</think>')[-1] }}") == THINK
    assert find_thoughts("[THINK] [/THINK]") == KNOWN[1]
    assert find_thoughts("<think>") is None
    assert has_opened(THINK, "<|assistant|><think>\n")
    assert not has_opened(THINK, "<|assistant|><think>\n\n</think>\n\n")
