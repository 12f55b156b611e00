"""What a session file says before its pages, as JSON: what they are of, and the conversation that they hold.

Others may have written it, so whatever is read is bounded before it is parsed, and checked after. Knows no files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pagoda.cache.prefix.names import Identity
from pagoda.errors import SessionError
from pagoda.json_shape import HEAVY, json_shapes

TOKENS_DTYPE = np.dtype("<i4")
MOST_DESCRIPTION_NBYTES = 1 << 20
MOST_CONVERSATION_NBYTES = 1 << 26  # without its tokens
MOST_WEIGHT = 1 << 20
MOST_DEPTH = 32
MOST_NAME_CHARACTERS = 200
MOST_TOKENS = 1 << 31
MOST_RESUME_POINTS = 16
MOST_CREATED_MS = 1 << 47  # in the year 6429
MOST_SHOWN_CHARACTERS = 80


@dataclass(frozen=True)
class Description:
    """What the pages of a session are of, and what it is called. Nobody needs a key to read it.

    `model` is what people call the model, `encoder_digest` (hexadecimal) what the encoder of the model reads. The
    conversation can be resumed after so many tokens, in order, as `resume_points` says.
    """

    identity: Identity
    model: str
    created_ms: int
    name: str = ""
    encoder_digest: str = ""
    num_encoder_tokens: int = 0
    resume_points: tuple[int, ...] = ()

    @property
    def num_held_tokens(self) -> int:
        """So many tokens need not be computed again."""
        return max(self.resume_points, default=0)

    def check_is_of(self, identity: Identity) -> None:
        """Raise SessionError, with both values of the first field that differs, unless `identity` is the same."""
        here, there = identity._asdict(), self.identity._asdict()
        for field in Identity._fields:
            if here[field] != there[field]:
                raise SessionError(
                    f"The pages of this session are of something else: their {field} is {_shown(there[field])}, and "
                    f"here it is {_shown(here[field])}. Load it where it was saved, or save it again here."
                )


class Written(NamedTuple):
    """The first `num_tokens` are those in which a text was written that has this `digest` (hexadecimal).

    The text may be cut into other tokens, of which no page is held.
    """

    digest: str
    num_tokens: int


@dataclass(frozen=True)
class Conversation:
    """The tokens of a session, int32, and what its user says of them: a title, messages as chat APIs have them."""

    tokens: NDArray[np.int32]
    title: str = ""
    messages: list[Any] | None = None
    written: Written | None = None


def description_json(description: Description) -> bytes:
    """Raises SessionError for what could not be read again."""
    identity = description.identity
    told = {
        "identity": identity._asdict() | {"digest": identity.digest.hex()},
        "model": description.model,
        "created_ms": description.created_ms,
        "name": description.name,
        "encoder_digest": description.encoder_digest,
        "num_encoder_tokens": description.num_encoder_tokens,
        "resume_points": description.resume_points,
    }
    written = _written(told)
    read_description(written)
    return written


def read_description(content: bytes) -> Description:
    """What `description_json` has made. Raises SessionError for anything else."""
    told = _parsed(content, MOST_DESCRIPTION_NBYTES)
    identity = _identity(told.get("identity"))
    digest = told.get("encoder_digest")
    if not (isinstance(digest, str) and len(digest) <= 2 * 32 and _is_hexadecimal(digest)):
        raise _wrong("encoder_digest")
    return Description(
        identity=identity,
        model=_line(told, "model"),
        created_ms=_number(told, "created_ms", MOST_CREATED_MS),
        name=_line(told, "name"),
        encoder_digest=digest,
        num_encoder_tokens=_number(told, "num_encoder_tokens", MOST_TOKENS),
        resume_points=_resume_points(told.get("resume_points")),
    )


def conversation_bytes(conversation: Conversation) -> bytes:
    """Raises SessionError for what could not be read again."""
    told = {"title": conversation.title, "messages": conversation.messages, "written": conversation.written}
    written = _written(told) + conversation.tokens.astype(TOKENS_DTYPE).tobytes()
    read_conversation(written, len(conversation.tokens))
    return written


def read_conversation(content: bytes, num_tokens: int) -> Conversation:
    """What `conversation_bytes` has made. Raises SessionError for anything else."""
    told_nbytes = len(content) - num_tokens * TOKENS_DTYPE.itemsize
    if told_nbytes < 0:
        raise SessionError("This session is damaged: it is too short for its tokens.")
    tokens = np.frombuffer(content, TOKENS_DTYPE, offset=told_nbytes).astype(np.int32)
    if num_tokens and int(tokens.min()) < 0:
        raise SessionError("This session is damaged: a token of it is no token.")
    told = _parsed(content[:told_nbytes], MOST_CONVERSATION_NBYTES)
    messages = told.get("messages")
    if not (messages is None or (isinstance(messages, list) and all(isinstance(each, dict) for each in messages))):
        raise _wrong("messages")
    return Conversation(tokens, _line(told, "title"), messages, _read_written(told.get("written"), num_tokens))


def _written(told: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(told, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise SessionError(f"This session cannot be written as JSON: {error}; give it plain values.") from error


def _parsed(content: bytes, most_nbytes: int) -> dict[str, Any]:
    if len(content) > most_nbytes:
        raise SessionError(f"What this session says of itself takes {len(content):,} bytes; {most_nbytes:,} may be.")
    for weight, depth in json_shapes(content):
        if weight > MOST_WEIGHT or depth > MOST_DEPTH:
            limit = f"{MOST_WEIGHT // HEAVY:,} values, or ones nested {MOST_DEPTH} deep"
            raise SessionError(f"What this session says of itself has more than {limit}.")
    if re.search(rb"\\u[dD]", content.replace(rb"\\", b"")):
        raise SessionError("This session is damaged: it spells characters that nobody writes so.")  # half ones
    try:
        told = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise SessionError(f"This session is damaged: what it says of itself is no JSON ({error}).") from error
    if not isinstance(told, dict):
        raise _wrong("description")
    return told


def _identity(told: Any) -> Identity:
    if not isinstance(told, dict):
        raise _wrong("identity")
    texts = [field for field in Identity._fields if field != "page_tokens"]
    for field in texts:
        if not (isinstance(told.get(field), str) and told[field].isprintable()):
            raise _wrong(field)
    identity = Identity(**{field: told[field] for field in texts}, page_tokens=_number(told, "page_tokens", 1 << 31))
    if told.get("digest") != identity.digest.hex():
        raise _wrong("digest")
    return identity


def _line(told: Mapping[str, Any], field: str) -> str:
    """A text that may be shown in a terminal."""
    text = told.get(field)
    if not (isinstance(text, str) and text.isprintable() and len(text) <= MOST_NAME_CHARACTERS):
        raise SessionError(
            f"The {field} of this session is no line of at most {MOST_NAME_CHARACTERS} characters; give it another one."
        )
    return text


def _number(told: Mapping[str, Any], field: str, end: int) -> int:
    number = told.get(field)
    if not (type(number) is int and 0 <= number < end):
        raise _wrong(field)
    return number


def _read_written(told: Any, num_tokens: int) -> Written | None:
    if told is None:
        return None
    pair = told if isinstance(told, list) and len(told) == 2 else [None, None]
    written = Written(*pair)
    is_digest = isinstance(written.digest, str) and len(written.digest) <= 64 and _is_hexadecimal(written.digest)
    if not (is_digest and type(written.num_tokens) is int and 0 <= written.num_tokens <= num_tokens):
        raise _wrong("written")
    return written


def _resume_points(told: Any) -> tuple[int, ...]:
    points = told if isinstance(told, list) and len(told) <= MOST_RESUME_POINTS else [None]
    if not all(type(point) is int and 0 <= point < MOST_TOKENS for point in points):
        raise _wrong("resume_points")
    return tuple(points)


def _is_hexadecimal(text: str) -> bool:
    return text.isascii() and all(each in "0123456789abcdef" for each in text)


def _wrong(field: str) -> SessionError:
    return SessionError(f"This session is damaged: its {field} is missing or wrong.")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= MOST_SHOWN_CHARACTERS else f"{text[:MOST_SHOWN_CHARACTERS]}..."
