"""Bounds what may be in a JSON text that clients send, before it is parsed."""

from __future__ import annotations

from collections.abc import Iterable

from pagoda.errors import HttpError
from pagoda.json_shape import HEAVY, json_shapes

MOST_WEIGHT = (1 << 20) + (1 << 16)  # a prompt of 1,048,576 token ids and what comes with it, or 139,264 of the others
MOST_DEPTH = 128


def check_shape(content: bytes) -> None:
    """Raises HttpError 400 for more values than anybody needs, or deeper ones."""
    for weight, depth in json_shapes(content):
        if weight > MOST_WEIGHT:
            raise _too_many("The body has", None)
        if depth > MOST_DEPTH:
            raise HttpError(400, f"The body is nested more than {MOST_DEPTH} deep; send a flatter one.")


def check_arguments(texts: Iterable[str], param: str) -> None:
    """Of calls, which are JSON within JSON. Raises HttpError 400 for more values than anybody needs in all of them."""
    before = 0
    for text in texts:
        weight = 0
        for weight, _ in json_shapes(text.encode(errors="replace")):
            if before + weight > MOST_WEIGHT:
                raise _too_many("The arguments of calls have", param)
        before += weight


def _too_many(subject: str, param: str | None) -> HttpError:
    return HttpError(
        400,
        f"{subject} too many values: more than {MOST_WEIGHT // HEAVY} texts, lists and objects, or {HEAVY} times as "
        "many numbers; send fewer.",
        param=param,
    )
