"""Finds which part of a rendered conversation each piece of its text is, without rendering it again.

Messages are looked for by their words, in order. What a template leaves out, or writes in other words, is found nowhere
and counts as the template's own; nothing but places is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pagoda.analysis.prompt import Section, SectionKind

# Beyond them a text is one that nobody has written to be read.
MOST_LEFT_OUT = 64
MOST_TRIES = 64
MOST_TOOLS = 4

if TYPE_CHECKING:
    from pagoda.server.asked.conversation import Conversation, Turn


def outline(conversation: Conversation, text: str) -> tuple[Section, ...]:
    """The sections of `text`, in order."""
    found: list[Section] = []
    start, num_left_out = 0, 0
    for index, turn in enumerate(conversation.turns):
        section = _message(text, start, index, turn) if num_left_out < MOST_LEFT_OUT else None
        if section is None:
            num_left_out += 1
        else:
            found.append(section)
            start = section.end
    tools = _tools(conversation, text, found)
    return tuple(found) if tools is None else tuple(sorted([*found, tools], key=lambda section: section.start))


def _message(text: str, start: int, index: int, turn: Turn) -> Section | None:
    """Templates may take away spaces around a content, and what was thought before it."""
    content = "\n".join(part.text for part in turn.parts)
    kind = SectionKind.SYSTEM if turn.role == "system" else SectionKind.MESSAGE
    for words in (content, content.strip(), content.rpartition("</think>")[2].strip()):
        place = _find(text, words, start) if words else -1
        if place >= 0:
            return Section(kind, place, place + len(words), index, turn.role)
    return None


def _find(text: str, words: str, start: int) -> int:
    """Where `words` stand by themselves, not as a part of longer ones: names of roles are words too."""
    place = start - 1
    for _ in range(MOST_TRIES):
        place = text.find(words, place + 1)
        if place < 0 or _stands_alone(text, place, words):
            return place
    return -1


def _stands_alone(text: str, place: int, words: str) -> bool:
    before, after = text[max(place - 1, 0) : place], text[place + len(words) : place + len(words) + 1]
    return not (before.isalnum() and words[0].isalnum()) and not (after.isalnum() and words[-1].isalnum())


def _tools(conversation: Conversation, text: str, messages: Sequence[Section]) -> Section | None:
    """From the line that names the first tool to the end of what lies between the messages around it."""
    for tool in conversation.tools[:MOST_TOOLS]:
        place = _find_outside(text, _name(tool), messages)
        if place >= 0:
            before = max((each.end for each in messages if each.end <= place), default=0)
            start = max(text.rfind("\n", 0, place) + 1, before)
            end = min((each.start for each in messages if each.start >= place), default=len(text))
            return Section(SectionKind.TOOLS, start, end)
    return None


def _find_outside(text: str, name: str, messages: Sequence[Section]) -> int:
    """Where `name` stands in no message; -1 if that is nowhere."""
    place = text.find(name)
    for _ in range(MOST_TRIES):
        inside = next((each for each in messages if each.start <= place < each.end), None)
        if inside is None:
            return place
        place = text.find(name, inside.end)
    return -1


def _name(tool: Any) -> str:
    return str(tool["function"]["name"])
