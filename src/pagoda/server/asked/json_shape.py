"""Counts what is in a JSON text before it is parsed: every value in it costs time and memory.

It works on many bytes at a time and stops at what is too much, so it takes a small part of the time that parsing takes.
A text that is no JSON may have any shape; the parser stops where it is none, and no value before that was not counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate

from pagoda.errors import HttpError

# Texts (keys too), lists and objects weigh as much as so many numbers: about the time that they take.
HEAVY = 8
MOST_WEIGHT = (1 << 20) + (1 << 16)  # a prompt of 1,048,576 token ids and what comes with it, or 139,264 of the others
MOST_DEPTH = 128
PIECE_NBYTES = 64 << 10  # between two of them other threads have their turn

STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
NOT_BRACKETS = bytes(set(range(256)) - STEPS.keys())


def check_shape(content: bytes) -> None:
    """Raises HttpError 400 for more values than anybody needs, or deeper ones."""
    weight = depth = 0
    for num_texts, rest in _pieces(content):
        weight += _weight(num_texts, rest)
        if weight > MOST_WEIGHT:
            raise _too_many("The body has", None)
        depths = list(accumulate(map(STEPS.__getitem__, rest.translate(None, NOT_BRACKETS)), initial=depth))
        depth = depths[-1]
        if max(depths) > MOST_DEPTH:
            raise HttpError(400, f"The body is nested more than {MOST_DEPTH} deep; send a flatter one.")


def check_arguments(texts: Iterable[str], param: str) -> None:
    """Of calls, which are JSON within JSON. Raises HttpError 400 for more values than anybody needs in all of them."""
    weight = 0
    for text in texts:
        for num_texts, rest in _pieces(text.encode(errors="replace")):
            weight += _weight(num_texts, rest)
            if weight > MOST_WEIGHT:
                raise _too_many("The arguments of calls have", param)


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


def _too_many(subject: str, param: str | None) -> HttpError:
    return HttpError(
        400,
        f"{subject} too many values: more than {MOST_WEIGHT // HEAVY} texts, lists and objects, or {HEAVY} times as "
        "many numbers; send fewer.",
        param=param,
    )
