"""A prompt as an explanation sees it: tokens, text, and which part of the conversation each piece of the text is.

Data alone. Whoever has read a request, or has the tokens of one that a server has served, makes one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class SectionKind(StrEnum):
    """What a piece of a prompt is."""

    TOOLS = "tools"
    SYSTEM = "system"
    MESSAGE = "message"
    MARKER = "turn marker"  # what the chat template writes between the others
    GENERATION = "generation prompt"  # what it writes after the last message
    PROMPT = "prompt"  # of no conversation


@dataclass(frozen=True)
class Section:
    """The characters of a text from `start` to `end`; of a message its index and its `role`."""

    kind: SectionKind
    start: int
    end: int
    message: int | None = None
    role: str | None = None


@dataclass(frozen=True)
class Message:
    """One message in the words of chat templates; `more` are its fields beside the content."""

    role: str
    content: str
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prompt:
    """One request that has been read.

    text: what the tokens were made of, empty if that is not known. sections: pieces of it in order; what lies between
    them is the template's. settings: what else was asked for, by name (model, cache_salt, prompt_cache_key,
    reasoning_effort and others). media: digests of images and sound, in order.
    """

    token_ids: Sequence[int]
    text: str = ""
    sections: Sequence[Section] = ()
    messages: Sequence[Message] = ()
    tools: Sequence[Mapping[str, Any]] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    media: Sequence[str] = ()

    def section_at(self, place: int) -> Section:
        """What the character at `place` is a part of; what ends there counts as well, unless another one begins."""
        if not self.sections:
            kind = SectionKind.MARKER if self.messages else SectionKind.PROMPT
            return Section(kind, 0, len(self.text))
        start = 0
        for section, following in zip(self.sections, (*self.sections[1:], None), strict=True):
            if place < section.start:
                return Section(SectionKind.MARKER, start, section.start)
            if place < section.end or (place == section.end and (following is None or following.start > place)):
                return section
            start = section.end
        return Section(SectionKind.GENERATION, start, len(self.text))

    def gap_at(self, place: int) -> Section:
        """What the template has written around `place`, at which a section may begin or end."""
        if not self.sections:
            return self.section_at(place)
        before = [section.end for section in self.sections if section.end <= place]
        after = [section.start for section in self.sections if section.start >= place]
        kind = SectionKind.MARKER if after else SectionKind.GENERATION
        return Section(kind, max(before, default=0), min(after, default=len(self.text)))
