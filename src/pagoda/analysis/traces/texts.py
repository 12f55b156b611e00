"""Rows that have the prompts themselves: text, token ids, chat messages, or whole conversations.

A conversation that ends with an answer is asked turn by turn, each answer after all that was said before it; one that
ends with a question is one request. Takes names from OpenAI's batch files, ShareGPT and plain lists of prompts. Whoever
has a tokenizer makes tokens of them (`Tokens`).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Protocol

from pagoda.analysis.traces.fields import OUTPUT_LENGTHS, LineError, Row, length, seconds, tenant
from pagoda.analysis.traces.messages import Message, Tool, front_of, read_messages, tools_of
from pagoda.analysis.traces.trace import TracedRequest
from pagoda.cache.prefix.keys import TOKEN_TYPE
from pagoda.checks import is_whole, shown
from pagoda.errors import PagodaError

CONVERSATIONS = ("messages", "conversations", "conversation")
TEXTS = ("prompt", "text", "instruction", "input", "question")
ANSWERS = ("completion", "response", "output", "answer")
MOST_TOKEN_ID = 2**31 - 1


class Tokens(Protocol):
    """Makes tokens of text, as a server of some model does."""

    def of_text(self, text: str) -> list[int]:
        """Of a prompt that is text."""

    def of_chat(self, messages: Sequence[Message], tools: Sequence[Tool]) -> list[int]:
        """Of messages that the model is to answer, and tools that it may call for that.

        Raises a PagodaError for what a template refuses.
        """

    def of_answer(self, text: str) -> list[int]:
        """Of what a model wrote."""


def has_text(row: Row) -> bool:
    """Whether a row is of this kind."""
    return any(name in _inner(row) for name in (*CONVERSATIONS, *TEXTS))


class TextReader:
    """Makes requests of rows with the tokens of `tokens`."""

    def __init__(self, tokens: Tokens, timestamps_per_second: float) -> None:
        self._tokens = tokens
        self._per_second = timestamps_per_second

    def read(self, line: int, row: Row) -> list[TracedRequest]:
        inner = _inner(row)
        wanted = length(inner, OUTPUT_LENGTHS)
        arrival, owner = seconds(row, self._per_second), tenant(row) or tenant(inner)
        found = []
        for prompt, answer in self._asked(inner):
            if not prompt:
                raise LineError("its prompt is empty")
            num_output_tokens = wanted or 0 if answer is None else len(answer)
            units = array(TOKEN_TYPE, prompt)
            # The last token of an answer is never computed.
            sequence = units + array(TOKEN_TYPE, answer[:-1]) if answer else units
            found.append(TracedRequest(line, len(prompt), num_output_tokens, units, sequence, arrival, owner))
        if not found:
            raise LineError("nobody asks anything in it")
        return found

    def _asked(self, row: Row) -> Iterator[tuple[list[int], list[int] | None]]:
        """Prompts and what was answered, None if that is not known."""
        try:
            front, tools = front_of(row), tools_of(row)
            name = next((name for name in CONVERSATIONS if row.get(name)), None)
            if name is not None:
                yield from self._turns([*front, *read_messages(name, row[name])], tools, row)
                return
            yield self._prompt(front, tools, row), self._answer(row)
        except PagodaError as error:
            raise LineError(str(error)) from error

    def _turns(
        self, messages: list[Message], tools: Sequence[Tool], row: Row
    ) -> Iterator[tuple[list[int], list[int] | None]]:
        if messages[-1]["role"] != "assistant":
            yield self._tokens.of_chat(messages, tools), self._answer(row)
            return
        for index, message in enumerate(messages):
            if message["role"] == "assistant" and index:
                yield self._tokens.of_chat(messages[:index], tools), self._tokens.of_answer(message["content"])

    def _prompt(self, front: list[Message], tools: Sequence[Tool], row: Row) -> list[int]:
        """Of a row without messages: a chat of one question if there is anything before that."""
        name = next((name for name in TEXTS if name in row), None)
        if name is None:
            raise LineError("it has neither a prompt nor messages")
        value = row[name]
        if isinstance(value, list) and all(is_whole(each) and 0 <= each <= MOST_TOKEN_ID for each in value):
            if front or tools:
                raise LineError(f"{name} is token ids, and there are instructions or tools, whose place nobody knows")
            return [*value]
        if isinstance(value, list) and name == "input":  # of OpenAI's Responses
            return self._tokens.of_chat([*front, *read_messages(name, value)], tools)
        if not isinstance(value, str):
            raise LineError(f"{name} is {shown(value)}; it must be text or token ids")
        text = _with_input(name, row)
        if front or tools:
            return self._tokens.of_chat([*front, {"role": "user", "content": text}], tools)
        return self._tokens.of_text(text)

    def _answer(self, row: Row) -> list[int] | None:
        text = next((row[name] for name in ANSWERS if isinstance(row.get(name), str)), None)
        return None if text is None else self._tokens.of_answer(text)


def _inner(row: Row) -> Row:
    """What a line of a batch file sends."""
    body = row.get("body")
    return body if isinstance(body, dict) else row


def _with_input(name: str, row: Row) -> str:
    """The text in the field `name`; what an instruction is about comes after it."""
    about = row.get("input") if name == "instruction" else None
    return f"{row[name]}\n\n{about}" if about and isinstance(about, str) else str(row[name])
