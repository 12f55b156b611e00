"""Where the pieces of a rendered conversation are found."""

from __future__ import annotations

from time import monotonic

import pytest

from pagoda.analysis.prompt import SectionKind
from pagoda.server.asked.conversation import Conversation, Part, Turn
from pagoda.server.asked.outline import outline

TOOL = {"type": "function", "function": {"name": "tides", "parameters": {}}}


def conversation(*turns: tuple[str, str], tools: tuple = ()) -> Conversation:
    return Conversation(tuple(Turn(role, (Part(text),)) for role, text in turns), tools)


def pieces(asked: Conversation, text: str) -> list[tuple[str, int | None, str]]:
    return [(str(each.kind), each.message, text[each.start : each.end]) for each in outline(asked, text)]


def test_messages_are_found_in_order_where_they_stand_by_themselves():
    asked = conversation(("system", "Be brief."), ("user", "user"), ("assistant", "s"), ("user", "user"))
    text = "<|system|>Be brief.<|user_turn|>user<|assistant|>s<|user_turn|>user<|assistant|>"
    assert pieces(asked, text) == [
        ("system", 0, "Be brief."),
        ("message", 1, "user"),
        ("message", 2, "s"),
        ("message", 3, "user"),
    ]


@pytest.mark.parametrize(
    ("content", "shown"),
    [(" Hello. \n", "Hello."), ("<think>So?</think>\n\nHello.", "Hello."), ("Hello.", "Hello.")],
)
def test_what_a_template_takes_away_around_a_message_is_none_of_it(content, shown):
    asked = conversation(("user", "Hi."), ("assistant", content))
    assert pieces(asked, f"[user]Hi.[assistant]{shown}[end]")[1] == ("message", 1, shown)


def test_what_is_left_out_is_found_nowhere():
    asked = conversation(("user", "One."), ("assistant", ""), ("tool", "Gone."), ("user", "Two."))
    assert [message for _, message, _ in pieces(asked, "[user]One.[user]Two.")] == [0, 3]


def test_tools_are_where_their_names_are_and_no_message_is():
    asked = conversation(("system", "Ask for tides."), ("user", "When?"), tools=(TOOL,))
    text = '[system]Ask for tides.\nYou have:\n{"name": "tides"}\n[user]When?'
    found = pieces(asked, text)
    assert found[1] == (SectionKind.TOOLS, None, '{"name": "tides"}\n[user]')
    assert [kind for kind, _, _ in found] == ["system", "tools", "message"]
    assert len(pieces(asked, "[system]Ask for tides.[user]When?")) == 2


def test_a_conversation_that_is_found_nowhere_takes_no_time():
    turns = tuple(("user", "a") for _ in range(16_000))
    asked = conversation(*turns, tools=tuple({"function": {"name": "a"}} for _ in range(1000)))
    start = monotonic()
    assert outline(asked, "ba" * 500_000) != ()
    assert monotonic() - start < 5
