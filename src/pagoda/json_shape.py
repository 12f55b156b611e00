"""Counts what is in a JSON text before it is parsed: every value in it costs time and memory.

It works on many bytes at a time and whoever asks may stop at what is too much, so it takes a small part of the time
that parsing takes. A text that is no JSON may have any shape; the parser stops where it is none, and no value before
that was not counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

# Texts (keys too), lists and objects weigh as much as so many numbers: about the time that they take.
HEAVY = 8
PIECE_NBYTES = 64 << 10  # between two of them other threads have their turn

STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
NOT_BRACKETS = bytes(set(range(256)) - STEPS.keys())


class JsonShape(NamedTuple):
    """How much there is so far, in numbers, and how deep the deepest lies."""

    weight: int
    depth: int


def json_shapes(content: bytes) -> Iterator[JsonShape]:
    """After each piece of `content`; the last one is of the whole."""
    weight = depth = deepest = 0
    for num_texts, rest in _pieces(content):
        weight += _weight(num_texts, rest)
        depths = list(accumulate(map(STEPS.__getitem__, rest.translate(None, NOT_BRACKETS)), initial=depth))
        depth, deepest = depths[-1], max(deepest, *depths)
        yield JsonShape(weight, deepest)


def _weight(num_texts: int, rest: bytes) -> int:
    return HEAVY * (num_texts + rest.count(b"[") + rest.count(b"{")) + rest.count(b",")


def _pieces(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Of each piece, how many texts begin in it, and what of it is in no text."""
    is_text = False
    for piece in _cut(content):
        has_escapes = b"\\" in piece
        parts = (piece.replace(b"\\\\", b"").replace(b'\\"', b"") if has_escapes else piece).split(b'"')
        yield (len(parts) - is_text) // 2, b"".join(parts[is_text::2])
        is_text ^= len(parts) % 2 == 0


def _cut(content: bytes) -> Iterator[bytes]:
    """No backslash is parted from what it escapes."""
    start = 0
    while start < len(content):
        piece = content[start : start + PIECE_NBYTES]
        num_backslashes = len(piece) - len(piece.rstrip(b"\\"))
        if num_backslashes % 2 and len(piece) == PIECE_NBYTES:
            piece = piece[:-1]
        start += len(piece)
        yield piece
