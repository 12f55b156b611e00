"""Reads what people write for `kv_compression`, `context_full`, `memory_full`: a word, or a policy with parameters."""

from __future__ import annotations

from dataclasses import fields
from enum import StrEnum
from functools import lru_cache
from typing import TypeVar, get_type_hints

from pagoda.cache.compression.base import Policy
from pagoda.cache.compression.streaming import Streaming
from pagoda.checks import shown
from pagoda.errors import ConfigError
from pagoda.registry import lookup, names

MOST_LENGTH = 200
NONE = "none"
EXAMPLE = "snapkv:tokens=1024,window=32"
STOP = "stop"
TRUNCATE = "truncate_oldest"
Kind = TypeVar("Kind")


class MemoryFull(StrEnum):
    """What becomes of a running sequence whose pages others need."""

    PREEMPT = "preempt"  # it waits until there are pages again
    DEMOTE = "demote"  # so it does, and tiers take what is held of it
    REJECT = "reject"  # it ends
    COMPRESS = "compress"  # it goes on with some of its tokens


@lru_cache(maxsize=256)
def policy_when_full(text: str, max_tokens: int, unit: int) -> Policy | None:
    """What `context_full` asks for where a sequence may have `max_tokens`, in steps of `unit`; None for "stop".

    Half of the oldest tokens go with "truncate_oldest". Raises ConfigError, which says what there is.
    """
    if text == STOP:
        return None
    if text == TRUNCATE:
        kept = max(max_tokens // 2 // unit, 1) * unit
        return Streaming(tokens=kept, sinks=0, every=max(max_tokens // unit * unit - kept, unit))
    if text.partition(":")[0] != "streaming":
        raise ConfigError(
            f"context_full is {shown(text)}; give {STOP}, {TRUNCATE}, or streaming with a budget, as in "
            "streaming:tokens=1024: with others queries would look farther back than the model's context."
        )
    policy = _read("context_full", text)
    if policy.after is not None:
        raise ConfigError(f"context_full is {shown(text)}; leave out after: it holds once the context is full.")
    return policy


@lru_cache(maxsize=256)
def when_memory_is_full(text: str) -> tuple[MemoryFull, Policy | None]:
    """What `memory_full` asks for, and the policy of those that are compressed then.

    Raises ConfigError, which says what there is.
    """
    if text in (MemoryFull.PREEMPT, MemoryFull.DEMOTE, MemoryFull.REJECT):
        return MemoryFull(text), None
    if text.partition(":")[0] not in names("compression"):
        raise ConfigError(
            f"memory_full is {shown(text)}; give preempt, demote, reject, or a policy with a budget, as in {EXAMPLE}."
        )
    policy = _read("memory_full", text)
    if policy.after is not None:
        raise ConfigError(f"memory_full is {shown(text)}; leave out after: it holds once pages are short.")
    reason = _obstacle_to_begin(policy)
    if reason is not None:
        raise ConfigError(
            f"memory_full is {shown(text)}; {policy.name} {reason}, so it cannot begin at any time: give another "
            "policy, such as snapkv, tova, morphkv or knorm."
        )
    return MemoryFull.COMPRESS, policy


@lru_cache(maxsize=256)
def policy_of(text: str) -> Policy | None:
    """The policy of "snapkv:tokens=1024,window=32"; None for "none". Raises ConfigError, which says what there is."""
    if text == NONE:
        return None
    return _read("kv_compression", text)


def _obstacle_to_begin(policy: Policy) -> str | None:
    """Why sequences cannot be compressed by it at any time."""
    if policy.num_sinks is not None:
        return "keeps whole pages"
    if policy.observer is not None:
        return "needs the queries of all tokens"
    return None if policy.repeated_tokens is None else "has the prompt repeated, which takes pages"


def _read(option: str, text: str) -> Policy:
    if len(text) > MOST_LENGTH:
        raise ConfigError(f"{option} has {len(text):,} characters; give at most {MOST_LENGTH}, as in {EXAMPLE}.")
    name, _, parameters = text.partition(":")
    try:
        return _policy(name, parameters)
    except ConfigError as error:
        raise ConfigError(f"{option} is {shown(text)}: {error}") from None


def _policy(name: str, parameters: str) -> Policy:
    if name not in names("compression"):
        raise ConfigError(f"give none, or {', '.join(names('compression'))} with a budget, as in {EXAMPLE}.")
    kind: type[Policy] = lookup("compression", name)
    return read_parameters(kind, name, parameters)


def read_parameters(kind: type[Kind], name: str, parameters: str) -> Kind:
    """One of `kind`, a dataclass that people call `name`, with "tokens=1024,window=32". Raises ConfigError."""
    types = {each.name: get_type_hints(kind)[each.name] for each in fields(kind)}  # type: ignore[arg-type]
    given: dict[str, object] = {}
    for part in filter(None, parameters.split(",")):
        parameter, equals, value = (each.strip() for each in part.partition("="))
        if parameter not in types or not equals or parameter in given:
            raise ConfigError(f"{name} takes each of these once: {', '.join(f'{each}=...' for each in types)}.")
        given[parameter] = _number(parameter, value, types[parameter])
    return kind(**given)


def _number(parameter: str, value: str, wanted: object) -> object:
    kind = next(each for each in (int, float, str) if wanted == each or each in getattr(wanted, "__args__", ()))
    try:
        return kind(value)
    except ValueError:
        raise ConfigError(f"{parameter} takes {'a whole number' if kind is int else 'a number'}.") from None
