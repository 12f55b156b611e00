"""Turns a conversation into the tokens that a model reads, through the chat template of its tokenizer.

Clients mark places in a conversation up to which its cache should be kept. Where these lie among the tokens is found by
rendering it once more with marks in the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

from pagoda.analysis.prompt import Section
from pagoda.cache.leases import Breakpoint
from pagoda.cache.session_parts import Written
from pagoda.chat.options import ChatOptions
from pagoda.chat.renderer import takes_tools
from pagoda.errors import HttpError
from pagoda.prompts import ReadPrompt
from pagoda.sampling_params import StructuredOutputs
from pagoda.server.asked.forms import check_strict
from pagoda.server.asked.opening import NO_OPENING, Opening
from pagoda.server.asked.outline import outline
from pagoda.server.asked.strict_calls import strict_form
from pagoda.server.asked.template_words import call_id_length, complete_tool, with_ids
from pagoda.server.asked.thinking import template_arguments
from pagoda.server.asked.transcripts import Known, Transcripts
from pagoda.server.backend.base import Texts
from pagoda.server.ground.messages import Scope
from pagoda.server.replies.style import ReplyStyle, style_of
from pagoda.tokenizing import encode

# Coding agents tell who is billed before their instructions, in other words in every session: no part of the prompt.
BILLING = re.compile(r"\A\s*x-anthropic-billing-header:[^\n]*\n*", re.IGNORECASE)


@dataclass(frozen=True)
class Part:
    """A piece of a message's text. What comes before its end is to be kept for `ttl_seconds`, if that is given."""

    text: str
    ttl_seconds: float | None = None


@dataclass(frozen=True)
class Turn:
    """One message. `more` are its other fields in the template's words: tool_calls, tool_call_id, name.

    What comes before its end is to be kept for `ttl_seconds`, if that is given.
    """

    role: str
    parts: tuple[Part, ...]
    more: Mapping[str, Any] = field(default_factory=dict)
    ttl_seconds: float | None = None


@dataclass(frozen=True)
class Conversation:
    """All that a chat template is given.

    `tool_ttls` marks the ends of tools, by their index. With `continues` the last turn goes on instead of a new one.
    `thinking` and `effort` are told to templates that ask for them, unless `arguments` do so.
    All of it is to be kept for `ttl_seconds`, if that is given; of the marks the last `most_marks` count. Calls of
    `strict_tools` have to fit their schemas.
    """

    turns: tuple[Turn, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    tool_ttls: Mapping[int, float] = field(default_factory=dict)
    strict_tools: frozenset[str] = frozenset()
    continues: bool = False
    adds_generation_prompt: bool = True
    arguments: Mapping[str, Any] = field(default_factory=dict)
    thinking: bool | None = None
    effort: str | None = None
    ttl_seconds: float | None = None
    most_marks: int = 4

    @property
    def ttls(self) -> list[float]:
        """Of all marks, in order."""
        found: list[float | None] = [self.tool_ttls[index] for index in sorted(self.tool_ttls)]
        for turn in self.turns:
            found += [*(part.ttl_seconds for part in turn.parts), turn.ttl_seconds]
        return [ttl for ttl in found if ttl is not None]


@dataclass(frozen=True)
class ReadConversation:
    """The prompt, and how many of its tokens come before each mark; the marks are in order.

    In `scope` the answer is remembered, for when it comes back. It has the `form`, unless another one is asked for, and
    is written in the `style` of the template. `sections` are the pieces of the prompt's text, of which a model has
    `written` what comes first.
    """

    prompt: ReadPrompt
    breakpoints: tuple[Breakpoint, ...]
    scope: Scope | None = None
    form: StructuredOutputs | None = None
    style: ReplyStyle = field(default_factory=ReplyStyle)
    sections: tuple[Section, ...] = ()
    written: Written | None = None


class ConversationReader:
    """Reads conversations for one model. `template` replaces the tokenizer's."""

    def __init__(self, texts: Texts, template: str | None = None, transcripts: Transcripts | None = None) -> None:
        self._texts = texts
        self._template = template
        self._transcripts = transcripts

    def template(self, conversation: Conversation) -> str:
        """The Jinja source. Raises TokenizerRequiredError if there is none, HttpError if it cannot show the tools."""
        template = self._texts.template(ChatOptions(chat_template=self._template, tools=conversation.tools))
        if conversation.tools and not takes_tools(template):
            raise HttpError(400, "The model's chat template takes no tools; leave them out.", param="tools")
        return template

    def read(
        self, conversation: Conversation, scope: Scope | None = None, opening: Opening = NO_OPENING
    ) -> ReadConversation:
        """What was written in `scope` keeps its tokens, and so does the `opening`, which the conversation begins with.

        Raises ChatTemplateError if the template refuses it, HttpError if it does not put the opening first.
        """
        template = self.template(conversation)
        conversation = _told(conversation, template)
        text = self._render(conversation, template, None)
        self._texts.check_text(text)
        opening.check_begins(text)
        tokenizer, has_marks = self._texts.need_tokenizer(), bool(conversation.ttls)
        turns = self._recalled(scope, text, opening)
        start, known, digest = turns[-1]
        needs_offsets = has_marks and tokenizer.is_fast
        encoded = encode(tokenizer, text[start:], add_special_tokens=False, return_offsets_mapping=needs_offsets)
        token_ids = [*known, *encoded.input_ids]
        if not token_ids:
            raise HttpError(400, "The chat template makes nothing of these messages.", param="messages")
        ends = self._mark_ends(conversation, template, text) if has_marks else []
        offsets = encoded.get("offset_mapping")
        marks = [
            (
                self._num_tokens(text, token_ids, end, turns)
                if offsets is None or end < start
                else len(known) + _num_before(offsets, end - start),
                ttl,
            )
            for end, ttl in ends
        ]
        if conversation.ttl_seconds is not None:
            marks.append((len(token_ids), conversation.ttl_seconds))
        marks += [(each.num_tokens, each.ttl_seconds) for each in opening.breakpoints]
        style = style_of(template, text, tokenizer)
        for tool in conversation.tools:
            if tool["function"]["name"] in conversation.strict_tools:
                check_strict(tool["function"].get("parameters"), "tools")
        form = strict_form(conversation.tools, conversation.strict_tools, style.dialect, tokenizer)
        sections = outline(conversation, text)
        written = Written(digest, len(known)) if known else None
        return ReadConversation(ReadPrompt(text, token_ids), _breakpoints(marks), scope, form, style, sections, written)

    def written(self, conversation: Conversation) -> str:
        """The text that the model reads. Raises ChatTemplateError if the template refuses it."""
        template = self.template(conversation)
        return self._render(_told(conversation, template), template, None)

    def _recalled(self, scope: Scope | None, text: str, opening: Opening) -> list[Known]:
        """Beginnings of `text` whose tokens are known, the shortest first."""
        first = [Known(0, ()), Known(len(opening.text or ""), opening.token_ids)]
        if scope is None or self._transcripts is None:
            return first
        tokens = list(opening.token_ids)
        recalled = self._transcripts.recall(scope, text)
        return first + [each for each in recalled if list(each.token_ids[: len(tokens)]) == tokens]

    def _mark_ends(self, conversation: Conversation, template: str, text: str) -> list[tuple[int, float]]:
        """Where in `text` each mark is, and how long what comes before is to be kept; in order."""
        marks = _Marks(len(conversation.ttls) - conversation.most_marks)
        marked = self._render(conversation, template, marks)
        ends = []
        for mark, ttl in marks.ttls.items():
            before, found, after = marked.partition(mark)
            marked = before + after
            if found:  # a template may leave a message out
                ends.append((_num_common(before, text), ttl))
        for index, turn in enumerate(conversation.turns, start=1):
            if turn.ttl_seconds is not None:
                start = replace(conversation, turns=conversation.turns[:index], adds_generation_prompt=False)
                ends.append((_num_common(self._render(start, template, None), text), turn.ttl_seconds))
        return sorted(ends)[-conversation.most_marks :]

    def _render(self, conversation: Conversation, template: str, marks: _Marks | None) -> str:
        tools = [
            _marked_tool(tool, marks.new(conversation.tool_ttls[index]))
            if marks is not None and index in conversation.tool_ttls
            else tool
            for index, tool in enumerate(complete_tool(each, template) for each in conversation.tools)
        ]
        id_length = call_id_length(template)
        messages = [with_ids(_message(turn, marks), id_length) for turn in conversation.turns]
        options = ChatOptions(
            chat_template=template,
            add_generation_prompt=conversation.adds_generation_prompt and not conversation.continues,
            continue_final_message=conversation.continues,
            tools=tools,
            chat_template_kwargs=conversation.arguments,
        )
        return self._texts.render(messages, options)

    def _num_tokens(self, text: str, token_ids: list[int], end: int, turns: Sequence[Known]) -> int:
        """How many tokens of `text` lie before the character `end`, or fewer where they are not the tokenizer's.

        The tokenizer goes on from the last of `turns` before that.
        """
        before = (turn for turn in reversed(turns) if turn.num_characters <= end)
        start, known, _ = next(turn for turn in before if token_ids[: len(turn.token_ids)] == list(turn.token_ids))
        between = encode(self._texts.need_tokenizer(), text[start:end], add_special_tokens=False).input_ids
        pairs = zip(between, token_ids[len(known) :], strict=False)
        return len(known) + next((place for place, (left, right) in enumerate(pairs) if left != right), len(between))


def instructions(parts: Sequence[Part]) -> tuple[Part, ...]:
    """A system prompt, without what is said of billing."""
    told = (replace(part, text=BILLING.sub("", part.text, count=1)) for part in parts)
    return tuple(after for before, after in zip(parts, told, strict=True) if after.text or not before.text)


def _told(conversation: Conversation, template: str) -> Conversation:
    """With what the template asks for of thinking."""
    told = template_arguments(template, conversation.thinking, conversation.effort)
    return replace(conversation, arguments={**told, **conversation.arguments})


def _num_before(offsets: Sequence[tuple[int, int]], end: int) -> int:
    """How many tokens, which stand at `offsets`, lie before the character `end`."""
    return next((index for index, (_, stop) in enumerate(offsets) if stop > end), len(offsets))


class _Marks:
    """Words that occur nowhere else, in the order in which they were put into the text, with what they stand for.

    The first `num_skipped` places get none.
    """

    def __init__(self, num_skipped: int) -> None:
        self.ttls: dict[str, float] = {}
        self._num_skipped = num_skipped

    def new(self, ttl_seconds: float) -> str:
        if self._num_skipped > 0:
            self._num_skipped -= 1
            return ""
        mark = uuid4().hex
        self.ttls[mark] = ttl_seconds
        return mark


def _message(turn: Turn, marks: _Marks | None) -> dict[str, Any]:
    """A message in the template's words, with a mark at the end of each part that has one."""
    texts = [
        part.text + marks.new(part.ttl_seconds) if marks is not None and part.ttl_seconds is not None else part.text
        for part in turn.parts
    ]
    return {"role": turn.role, "content": "\n".join(texts), **turn.more}


def _breakpoints(marks: Iterable[tuple[int, float]]) -> tuple[Breakpoint, ...]:
    """Marks in order, of several in one place the one that lasts longest."""
    longest: dict[int, float] = {}
    for num_tokens, ttl in marks:
        longest[num_tokens] = max(ttl, longest.get(num_tokens, 0.0))
    return tuple(Breakpoint(num_tokens, longest[num_tokens]) for num_tokens in sorted(longest) if num_tokens)


def _marked_tool(tool: Mapping[str, Any], mark: str) -> dict[str, Any]:
    """A tool with a mark as its last word."""
    function = dict(tool.get("function", {}))
    return {**tool, "function": {**function, "description": str(function.get("description", "")) + mark}}


def _num_common(left: str, right: str) -> int:
    """How many leading characters two texts share."""
    if right.startswith(left):
        return len(left)
    return next(
        index for index, (one, other) in enumerate(zip(left + "\0", right + "\1", strict=False)) if one != other
    )
