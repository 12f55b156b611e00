"""What is to be compiled, as text: the same for the same form, however it was given."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any, NamedTuple

from pagoda.errors import StructuredOutputError
from pagoda.sampling_params import StructuredOutputs
from pagoda.structured.schema import enforceable

# Many agents' tools together have less; what is longer costs more to send around than it is worth.
MAX_SOURCE_LENGTH = 256 << 10
MAX_MESSAGE_LENGTH = 300
# Between the parts of JSON: a space, or a new line with its indentation. Without a limit a weak model writes only that.
WHITESPACE = r" |\r?\n[ \t]{0,20}"


class Source(NamedTuple):
    kind: str
    text: str

    @property
    def digest(self) -> bytes:
        return sha256(f"{self.kind}\0{self.text}".encode(errors="surrogatepass")).digest()


def source_of(wanted: StructuredOutputs) -> Source:
    """Raises StructuredOutputError for what is no schema, and for what is too long."""
    source = Source(wanted.kind, _text(wanted))
    if len(source.text) > MAX_SOURCE_LENGTH:
        raise StructuredOutputError(
            f"{source.kind} has {len(source.text)} characters, of at most {MAX_SOURCE_LENGTH}; ask for a simpler form."
        )
    return source


def _text(wanted: StructuredOutputs) -> str:
    if wanted.json is not None:
        return _schema(wanted.json)
    if wanted.choice is not None:
        return "start: " + " | ".join(json.dumps(text) for text in wanted.choice)
    return wanted.regex or wanted.grammar or '{"type": "object"}'


def read_schema(given: Any) -> dict[str, Any]:
    """Raises StructuredOutputError for what is no JSON object, nor the text of one."""
    try:
        schema = json.loads(given) if isinstance(given, str) else dict(given)
    except (TypeError, ValueError, RecursionError) as error:
        raise StructuredOutputError(f"json is not a JSON schema: {error}.") from error
    if not isinstance(schema, dict):
        raise StructuredOutputError("json is not a JSON schema: give an object.")
    return schema


def _schema(given: Any) -> str:
    schema = read_schema(given)
    try:
        return json.dumps(enforceable(schema))
    except (TypeError, ValueError, RecursionError) as error:
        raise StructuredOutputError(f"json is not a JSON schema: {error}.") from error


def one_line(message: str) -> str:
    """What llguidance says, which may be a page."""
    return " ".join(message.split())[:MAX_MESSAGE_LENGTH].removesuffix(".") + "."
