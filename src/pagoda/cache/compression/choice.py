"""Reads what people write for `kv_compression`: the name of a policy and its parameters."""

from __future__ import annotations

from dataclasses import fields
from functools import lru_cache
from typing import get_type_hints

from pagoda.cache.compression.base import Policy
from pagoda.checks import shown
from pagoda.errors import ConfigError
from pagoda.registry import lookup, names

MOST_LENGTH = 200
NONE = "none"
EXAMPLE = "snapkv:tokens=1024,window=32"


@lru_cache(maxsize=256)
def policy_of(text: str) -> Policy | None:
    """The policy of "snapkv:tokens=1024,window=32"; None for "none". Raises ConfigError, which says what there is."""
    if text == NONE:
        return None
    if len(text) > MOST_LENGTH:
        raise ConfigError(f"kv_compression has {len(text):,} characters; give at most {MOST_LENGTH}, as in {EXAMPLE}.")
    name, _, parameters = text.partition(":")
    try:
        return _policy(name, parameters)
    except ConfigError as error:
        raise ConfigError(f"kv_compression is {shown(text)}: {error}") from None


def _policy(name: str, parameters: str) -> Policy:
    if name not in names("compression"):
        raise ConfigError(f"give none, or {', '.join(names('compression'))} with a budget, as in {EXAMPLE}.")
    kind: type[Policy] = lookup("compression", name)
    types = {each.name: get_type_hints(kind)[each.name] for each in fields(kind)}
    given: dict[str, object] = {}
    for part in filter(None, parameters.split(",")):
        parameter, equals, value = (each.strip() for each in part.partition("="))
        if parameter not in types or not equals or parameter in given:
            raise ConfigError(f"{name} takes each of these once: {', '.join(f'{each}=...' for each in types)}.")
        given[parameter] = _number(parameter, value, types[parameter])
    return kind(**given)  # type: ignore[arg-type]


def _number(parameter: str, value: str, wanted: object) -> object:
    kind = next(each for each in (int, float, str) if wanted == each or each in getattr(wanted, "__args__", ()))
    try:
        return kind(value)
    except ValueError:
        raise ConfigError(f"{parameter} takes {'a whole number' if kind is int else 'a number'}.") from None
