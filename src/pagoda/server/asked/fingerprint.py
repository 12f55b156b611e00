"""Finds where a prompt parts from an earlier one, by digests of its sections: no text is kept."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from hashlib import blake2b
from typing import Any, NamedTuple

from pagoda.sampling_params import SamplingParams
from pagoda.server.answered.latest import Latest
from pagoda.server.asked.conversation import Conversation, ReadConversation, Turn

MOST_REMEMBERED = 16384
MOST_REMEMBERED_NBYTES = 64 << 20
DIGEST_NBYTES = 64  # of each, with what Python needs for it


class Section(StrEnum):
    """The sections of a prompt, in the order in which prompts are read."""

    MODEL = "model"
    CACHE_KEY = "cache_key"
    TOOLS = "tools"
    SYSTEM = "system"
    MESSAGES = "messages"
    EFFORT = "effort"
    SETTINGS = "settings"


@dataclass(frozen=True)
class Divergence:
    """The first section that differs; for messages, `message` is the index of the first that does.

    It `is_compacted` if later ones stand nearer to the front than before.
    """

    section: Section
    message: int | None = None
    is_compacted: bool = False


@dataclass(frozen=True)
class Fingerprint:
    """Digests of a prompt's sections, and how many tokens it had.

    `settings` are those that a prompt does not show but that may change how it is rendered.
    """

    sections: Mapping[Section, bytes]
    messages: tuple[bytes, ...]
    num_tokens: int = 0

    @classmethod
    def of(
        cls, conversation: Conversation, *, model: str, cache_key: object = None, settings: object = None
    ) -> Fingerprint:
        system = [turn for turn in conversation.turns if turn.role == "system"]
        sections = {
            Section.MODEL: _digest(model),
            Section.CACHE_KEY: _digest(cache_key),
            Section.TOOLS: _digest(conversation.tools),
            Section.SYSTEM: _digest([plain(turn) for turn in system]),
            Section.EFFORT: _digest([conversation.thinking, conversation.effort]),
            Section.SETTINGS: _digest(settings),
        }
        others = (turn for turn in conversation.turns if turn.role != "system")
        return cls(sections, tuple(_digest(plain(turn)) for turn in others))

    def with_tokens(self, num_tokens: int) -> Fingerprint:
        return replace(self, num_tokens=num_tokens)

    def divergence(self, earlier: Fingerprint) -> Divergence | None:
        """What keeps this prompt from going on where the earlier one ended; None if nothing does."""
        for section in (Section.MODEL, Section.CACHE_KEY, Section.TOOLS, Section.SYSTEM):
            if self.sections[section] != earlier.sections[section]:
                return Divergence(section)
        pairs = zip(self.messages, earlier.messages, strict=False)
        first = next((index for index, (mine, theirs) in enumerate(pairs) if mine != theirs), None)
        if first is None and len(self.messages) < len(earlier.messages):
            first = len(self.messages)
        if first is not None:
            return Divergence(Section.MESSAGES, first, self._is_compacted(earlier, first))
        for section in (Section.EFFORT, Section.SETTINGS):
            if self.sections[section] != earlier.sections[section]:
                return Divergence(section)
        return None

    def _is_compacted(self, earlier: Fingerprint, first: int) -> bool:
        """Whether a message from the index `first` on was further back in the earlier prompt."""
        places = {digest: place for place, digest in enumerate(earlier.messages)}
        later = enumerate(self.messages[first:], start=first)
        return any(places.get(digest, -1) > place for place, digest in later)


class ReadBody(NamedTuple):
    """A body that has been read, with a fingerprint to compare its prompt with others."""

    conversation: Conversation
    params: SamplingParams
    read: ReadConversation
    fingerprint: Fingerprint


class History:
    """The fingerprints of late answers, by tenant and id."""

    def __init__(self) -> None:
        self._fingerprints = Latest[Fingerprint](MOST_REMEMBERED, MOST_REMEMBERED_NBYTES)

    def remember(self, tenant: str, answer_id: str, fingerprint: Fingerprint) -> None:
        nbytes = DIGEST_NBYTES * (len(fingerprint.sections) + len(fingerprint.messages))
        self._fingerprints.put(tenant, answer_id, fingerprint, nbytes)

    def find(self, tenant: str, answer_id: str) -> Fingerprint | None:
        return self._fingerprints.find(tenant, answer_id)


def missed_tokens(earlier: Fingerprint, num_prompt_tokens: int, num_read: int) -> int:
    """How many more would have been read, had the prompt gone on where the earlier one ended."""
    return max(min(earlier.num_tokens, num_prompt_tokens) - 1 - num_read, 0)


def plain(turn: Turn) -> list[Any]:
    """What a turn says, without marks."""
    return [turn.role, [part.text for part in turn.parts], dict(turn.more)]


def _digest(value: object | Iterable[object]) -> bytes:
    text = json.dumps(value, sort_keys=True, default=repr)
    return blake2b(text.encode(), digest_size=16).digest()
