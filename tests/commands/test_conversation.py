"""Conversations keep their tokens: a prompt always starts with the tokens the model has seen."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pagoda.commands.conversation import Conversation, Message

END = 0


class Letters:
    """A tokenizer of single letters, and of a dot for the end token."""

    def __call__(self, text: str, add_special_tokens: bool) -> Any:
        return SimpleNamespace(input_ids=[END if letter == "." else ord(letter) for letter in text])


def render(messages: list[Message]) -> str:
    """`<question>answer.`"""
    marks = {"user": "<{}>", "assistant": "{}.", "system": "[{}]"}
    return "".join(marks[message["role"]].format(message["content"]) for message in messages)


def render_forgetfully(messages: list[Message]) -> str:
    """Earlier answers are left out."""
    return render([message for message in messages if message["role"] != "assistant"])


def letters(text: str) -> list[int]:
    return list(Letters()(text, add_special_tokens=False).input_ids)


def test_generated_tokens_are_kept_as_they_were() -> None:
    conversation = Conversation(Letters(), render, frozenset([END]), system="s")
    prompt = conversation.ask("q")
    assert prompt == letters("[s]<q>")
    conversation.answered("q", "ab", [777, END])  # one token that reads "ab"
    assert conversation.ask("r") == [*prompt, 777, *letters(".<r>")]


def test_an_answer_without_end_token_gets_one_from_the_template() -> None:
    conversation = Conversation(Letters(), render, frozenset([END]))
    conversation.answered("q", "ab", letters("ab"))
    assert conversation.ask("r") == letters("<q>ab.<r>")


def test_an_answer_cut_short_is_tokenized_again() -> None:
    conversation = Conversation(Letters(), render, frozenset([END]))
    conversation.answered("q", "a", letters("abc"), is_cut=True)
    assert conversation.ask("r") == letters("<q>a.<r>")


def test_a_template_that_rewrites_the_past_is_followed() -> None:
    conversation = Conversation(Letters(), render_forgetfully, frozenset([END]))
    conversation.answered("q", "ab", [777])
    assert conversation.ask("r") == letters("<q><r>")


def test_without_a_template_messages_are_lines() -> None:
    conversation = Conversation(Letters(), None, frozenset([END]))
    conversation.answered("q", "ab", [777])
    assert conversation.ask("r") == [*letters("q"), 777, *letters("\nr")]


def test_asking_changes_nothing() -> None:
    conversation = Conversation(Letters(), render, frozenset([END]))
    conversation.ask("lost")
    assert conversation.ask("q") == letters("<q>")
