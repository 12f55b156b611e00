"""How much there is in a JSON text, found before it is read: every value in it costs time and memory.

Works on bytes as a whole, so it takes a small part of the time that reading takes. A text that is no JSON may have any
shape; whoever reads it stops where it is none, and no value comes before that which was not counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

from pagoda.errors import HttpError

# Texts (keys too), lists and objects weigh as much as so many numbers: about the time that they take.
HEAVY = 8
MOST_WEIGHT = (1 << 20) + (1 << 16)  # a prompt of 1,048,576 token ids and what comes with it, or 139,264 of the others
MOST_DEPTH = 128

STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
NOT_BRACKETS = bytes(set(range(256)) - STEPS.keys())


def check_shape(content: bytes) -> None:
    """Raises HttpError 400 for more values than anybody needs, or deeper ones."""
    weight, brackets = _measured(content)
    if weight > MOST_WEIGHT:
        raise _too_many("The body has", None)
    if max(accumulate(map(STEPS.__getitem__, brackets)), default=0) > MOST_DEPTH:
        raise HttpError(400, f"The body is nested more than {MOST_DEPTH} deep; send a flatter one.")


def check_arguments(texts: Iterable[str], param: str) -> None:
    """Of calls, which are JSON within JSON. Raises HttpError 400 for more values than anybody needs in all of them."""
    weight = 0
    for text in texts:
        weight += _measured(text.encode(errors="replace"))[0]
        if weight > MOST_WEIGHT:
            raise _too_many("The arguments of calls have", param)


def _measured(content: bytes) -> tuple[int, bytes]:
    """The weight of all values, at least if that is too much, and all brackets."""
    if b"\\" in content:
        content = content.replace(b"\\\\", b"").replace(b'\\"', b"")
    weight = HEAVY * (content.count(b'"') // 2)
    if weight > MOST_WEIGHT:
        return weight, b""
    rest = b"".join(content.split(b'"')[::2])
    brackets = rest.translate(None, NOT_BRACKETS)
    return weight + HEAVY * (len(brackets) // 2) + rest.count(b","), brackets


def _too_many(subject: str, param: str | None) -> HttpError:
    return HttpError(
        400,
        f"{subject} too many values: more than {MOST_WEIGHT // HEAVY} texts, lists and objects, or {HEAVY} times as "
        "many numbers; send fewer.",
        param=param,
    )
