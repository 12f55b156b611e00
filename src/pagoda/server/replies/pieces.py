"""Defines what is read in a reply: pieces as they come, and the whole blocks that they add up to.

Knows no format and no API.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby


@dataclass(frozen=True)
class Text:
    """For the reader."""

    text: str


@dataclass(frozen=True)
class Thought:
    """What the model thinks before it answers."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """A tool is called; its arguments follow."""

    name: str
    call_id: str


@dataclass(frozen=True)
class Arguments:
    """More of the JSON of the arguments of the call that has begun."""

    text: str


@dataclass(frozen=True)
class CallEnd:
    """Unless the call is whole, its arguments break off."""

    is_whole: bool


@dataclass(frozen=True)
class ToolCall:
    """`arguments` is an object in JSON, as OpenAI has it."""

    name: str
    arguments: str
    call_id: str = field(default="", compare=False)


Piece = Text | Thought | CallStart | Arguments | CallEnd
Block = Text | Thought | ToolCall


def joined(pieces: Iterable[Piece]) -> list[Piece]:
    """Neighbours that go on with one another as one."""
    result: list[Piece] = []
    for kind, group in groupby(pieces, key=type):
        parts = list(group)
        texts = "".join(part.text for part in parts if isinstance(part, Text | Thought | Arguments))
        result += parts if kind in (CallStart, CallEnd) else [kind(texts)]
    return result


def blocks_of(pieces: Iterable[Piece]) -> list[Block]:
    """Texts and thoughts, joined, and the whole calls."""
    blocks: list[Block] = []
    call, arguments = CallStart("", ""), ""
    for piece in joined(pieces):
        match piece:
            case Text() | Thought():
                blocks.append(piece)
            case CallStart():
                call, arguments = piece, ""
            case Arguments():
                arguments = piece.text
            case CallEnd(is_whole=True):
                blocks.append(ToolCall(call.name, arguments, call.call_id))
    return blocks
