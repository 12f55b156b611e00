"""A conversation as token ids that only ever grow, so that each turn finds all earlier ones in the cache.

Knows messages, a tokenizer and what renders its chat template. What the model generated stays as the very tokens it
generated: text that is decoded and tokenized again may come back as other tokens, and would miss the cache from there
on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pagoda.tokenizing import encode

Message = dict[str, str]

# What follows a message where there is no chat template.
LINE_ENDS = {"system": "\n", "user": "", "assistant": "\n"}


class Conversation:
    """Messages so far, and the tokens of those that the model has seen.

    `template` renders them. Without one the model continues plain text: an answer goes on where the question ended,
    then a new line.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: Callable[[list[Message]], str] | None,
        end_token_ids: frozenset[int] = frozenset(),
        system: str | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._end_token_ids = end_token_ids
        self._messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self._text = ""
        self._tokens: list[int] = []

    def ask(self, text: str) -> list[int]:
        """The prompt for an answer to `text`; nothing is kept before `answered`."""
        return self._tokenize(self._render(text))

    def answered(self, question: str, answer: str, token_ids: Sequence[int], is_cut: bool = False) -> None:
        """The model answered with `token_ids`, which read `answer`; `is_cut` if the text ends before the tokens do."""
        rendered = self._render(question)
        tokens = self._tokenize(rendered) + [token for token in token_ids if token not in self._end_token_ids]
        self._messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        self._text, self._tokens = ("", []) if is_cut else (rendered + answer, tokens)

    def _render(self, text: str) -> str:
        """The whole conversation up to where the assistant answers `text`."""
        messages = [*self._messages, {"role": "user", "content": text}]
        if self._template is None:
            return "".join(message["content"] + LINE_ENDS[message["role"]] for message in messages)
        return self._template(messages)

    def _tokenize(self, rendered: str) -> list[int]:
        """Tokens of `rendered`: those seen before as they were, and the rest from the tokenizer.

        A template that rewrites earlier turns (some drop old reasoning) makes it all new.
        """
        if self._tokens and rendered.startswith(self._text):
            added = rendered[len(self._text) :]
            return self._tokens + list(encode(self._tokenizer, added, add_special_tokens=False).input_ids)
        return list(encode(self._tokenizer, rendered, add_special_tokens=self._template is None).input_ids)
