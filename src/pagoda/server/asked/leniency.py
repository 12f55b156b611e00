"""Leaves out what means nothing here and names it, or refuses it, while a body is validated.

Clients send what other servers know. What changes nothing wrong is left out, and its name goes where people see it.
Bodies say themselves what may be left out, by the validators here; without a `Leniency` as the context of a validation
none of it is, as with `--strict-fields`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import cache
from types import NoneType
from typing import Any, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

logger = logging.getLogger(__name__)

# Fields that ask for the form of an answer: a body without them refuses them, since the answer would be another one.
FORMS = frozenset(
    (
        "response_format",
        "output_format",
        "structured_outputs",
        *("guided_json", "guided_regex", "guided_choice", "guided_grammar"),
    )
)
MOST_NAMES = 32
MOST_NAME_CHARACTERS = 64
MOST_NAMES_LOGGED = 1024
HEADER = "x-pagoda-ignored"

# Kinds of content that no model of text reads. What they stand in for should be missed by whoever reads the answer.
MEDIA = frozenset(
    (
        "image",
        "image_url",
        "input_image",
        "audio",
        "input_audio",
        "file",
        "input_file",
        "document",
        "video",
        "video_url",
    )
)


class Leniency:
    """The names of what was left out of one body, in the order in which they were found."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}

    def leave_out(self, name: str) -> None:
        if len(self._names) < MOST_NAMES:
            self._names[name[:MOST_NAME_CHARACTERS]] = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._names)

    @property
    def header(self) -> str:
        """The names as a header can have them."""
        return ", ".join(ascii(name)[1:-1][:MOST_NAME_CHARACTERS] for name in self._names)


class IgnoredLog:
    """Says once of each name that it is ignored."""

    def __init__(self) -> None:
        self._logged: set[str] = set()

    def tell(self, names: tuple[str, ...]) -> None:
        fresh = [name for name in names if name not in self._logged]
        if not fresh or len(self._logged) >= MOST_NAMES_LOGGED:
            return
        self._logged.update(fresh)
        logger.warning(
            "Requests have what means nothing here, and is ignored: %s. --strict-fields refuses them.",
            ", ".join(map(ascii, fresh)),
        )


def without_unknown(kind: type[BaseModel], value: Any, leniency: Any) -> Any:
    """A body's fields but for those that `kind` does not have, and for nulls where they stand for nothing."""
    if not isinstance(leniency, Leniency) or not isinstance(value, dict):
        return value
    known, never_null = _fields(kind)
    unknown = {name for name in value.keys() - known if name not in FORMS or not value[name]}
    nulls = {name for name in never_null if name in value and value[name] is None}
    if not unknown and not nulls:
        return value
    for name in value:
        if name in unknown:
            leniency.leave_out(name)
    return {name: each for name, each in value.items() if name not in unknown and name not in nulls}


@cache
def _fields(kind: type[BaseModel]) -> tuple[frozenset[str], frozenset[str]]:
    """The names of all fields, and of those with a default that cannot be null."""
    fields = {field.alias or name: field for name, field in kind.model_fields.items()}
    never_null = {
        name
        for name, field in fields.items()
        if not field.is_required() and field.annotation is not NoneType and NoneType not in get_args(field.annotation)
    }
    return frozenset(fields), frozenset(never_null)


def _forget(value: Any, read: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    try:
        return read(value)
    except ValidationError:
        if not isinstance(info.context, Leniency) or not isinstance(value, str):
            raise
        info.context.leave_out(f"{info.field_name}={value}")
        return None


# Of a field that has no effect: words that nobody knows are forgotten. Its type must be right all the same.
FORGETTING = WrapValidator(_forget)


def _drop(value: Any, read: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    if value is None or not isinstance(info.context, Leniency):
        return read(value)
    info.context.leave_out(str(info.field_name))
    return None


# Of a field of answers that is null here, and is no part of a prompt where others gave them.
DROPPING = WrapValidator(_drop)


def skipping(*kinds: str, default: str | None = None) -> BeforeValidator:
    """Of a list, items of other types than `kinds` are skipped; `default` is the type of one that says none."""

    def skip(items: Any, info: ValidationInfo) -> Any:
        if not isinstance(info.context, Leniency) or not isinstance(items, list):
            return items
        kept = []
        for item in items:
            kind = _kind(item, default)
            if kind is None or kind in kinds:
                kept.append(item)
            else:
                info.context.leave_out(f"{info.field_name}.{kind}")
        return kept

    return BeforeValidator(skip)


def replacing(kinds: tuple[str, ...], text_of: Callable[[str], Mapping[str, Any]]) -> BeforeValidator:
    """Of a list of content, items of other types than `kinds` become what `text_of` makes of a text, or are skipped."""

    def replace(parts: Any, info: ValidationInfo) -> Any:
        if not isinstance(info.context, Leniency) or not isinstance(parts, list):
            return parts
        kept = []
        for part in parts:
            kind = _kind(part)
            if kind is None or kind in kinds:
                kept.append(part)
                continue
            text = _plain_text(part)
            if text is None:
                info.context.leave_out(f"{info.field_name}.{kind}")
                text = f"[{kind} left out: this model reads text only]" if kind in MEDIA else None
            if text is not None:
                kept.append(text_of(text))
        return kept

    return BeforeValidator(replace)


def _plain_text(part: Any) -> str | None:
    """Of what is text all the same: a part by another API's name, a document of text, what a search has found."""
    if isinstance(part, str):
        return part
    if isinstance(part, list):
        texts = [text for each in part if (text := _plain_text(each)) is not None]
        return "\n".join(texts) if texts else None
    if not isinstance(part, Mapping):
        return None
    if isinstance(part.get("text"), str):
        return str(part["text"])
    source = part.get("source")
    if isinstance(source, Mapping):
        return _plain_text(source.get({"text": "data", "content": "content"}.get(str(source.get("type")), "")))
    return _plain_text(part["content"]) if part.get("type") == "search_result" and "content" in part else None


def _kind(item: Any, default: str | None = None) -> str | None:
    """The type that an item says it is of; None if it is wrong in another way."""
    kind = item.get("type", default) if isinstance(item, Mapping) else None
    return kind if isinstance(kind, str) else None
