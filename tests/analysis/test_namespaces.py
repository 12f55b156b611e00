"""Each part in which two servers can differ is named, with both of its values where people can read them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pagoda.analysis.explain import Reuse, explain, find
from pagoda.analysis.namespaces import (
    MOST_TOLD_CHARACTERS,
    NAMES,
    OF_MODEL,
    differing_parts,
    identity_as_json,
    identity_from_json,
)
from pagoda.analysis.prompt import Prompt
from pagoda.cache.prefix.names import Identity
from pagoda.errors import ConfigError

IDENTITY = Identity(
    model="0" * 32,
    weights="1" * 32,
    layout="full: 8 x AttentionLayout(num_kv_heads=2, key_width=64, value_width=64)",
    format="bf16",
    page_tokens=32,
    positions='[{"rope_theta": 1e4}, null]',
)
OTHERS: dict[str, Any] = {
    "model": "2" * 32,
    "weights": "3" * 32,
    "adapter": "pirate",
    "layout": "sliding 4096: 8 x AttentionLayout(num_kv_heads=2, key_width=64, value_width=64)",
    "format": "int8",
    "constants": "4" * 16,
    "page_tokens": 16,
    "positions": '[{"rope_theta": 1e6}, null]',
}
WORDS = {
    "model": "configuration of the model",
    "weights": "weights",
    "adapter": "adapter: none and pirate",
    "layout": "layout",
    "format": "format: bf16 and int8",
    "constants": "constants of the format",
    "page_tokens": "page size (tokens): 32 and 16",
    "positions": 'positions: [{"rope_theta": 1e4}, null] and [{"rope_theta": 1e6}, null]',
}


def told(identity: Identity) -> Identity:
    """As somebody else hears of it."""
    return identity_from_json(json.loads(json.dumps(identity_as_json(identity))), "a server")


def explained(earlier: Identity, later: Identity) -> dict[str, Any]:
    prompts = Prompt([1, 2, 3, 4], "a b c d"), Prompt([1, 2, 3, 4, 5], "a b c d e")
    finding = find(*prompts, 4, parts=differing_parts(told(earlier), told(later)))
    return explain(finding, Reuse(5, 0, 32)).as_json()


def test_every_part_has_a_name() -> None:
    assert {*NAMES} == {*Identity._fields} == {*OTHERS}


@pytest.mark.parametrize("field", Identity._fields)
def test_one_part_alone_is_found(field: str) -> None:
    later = IDENTITY._replace(**{field: OTHERS[field]})
    (part,) = differing_parts(told(IDENTITY), told(later))
    assert (part.field, part.earlier, part.later) == (field, str(getattr(IDENTITY, field)), str(OTHERS[field]))
    assert part.words == WORDS[field]
    found = explained(IDENTITY, later)
    assert (found["cause"], found["place"]["token"], found["reused_tokens"]) == ("other_namespace", 0, 0)
    assert found["missed_tokens"] == 4
    vendor = "model_changed" if field in OF_MODEL else "unavailable"
    assert found["vendor"] == {"openai": vendor, "anthropic": vendor}
    assert found["sentence"].endswith(f"They differ in {WORDS[field]}.")


def test_all_parts_that_differ_are_told() -> None:
    later = IDENTITY._replace(format="int8", page_tokens=16)
    assert [part.field for part in differing_parts(IDENTITY, later)] == ["format", "page_tokens"]
    found = explained(IDENTITY, later)
    assert "They differ in format: bf16 and int8; page size (tokens): 32 and 16." in found["sentence"]
    assert [(part["earlier"], part["later"]) for part in found["parts"]] == [("bf16", "int8"), ("32", "16")]


def test_where_none_differs_the_prompts_are_compared() -> None:
    assert differing_parts(told(IDENTITY), told(IDENTITY)) == ()
    found = explained(IDENTITY, IDENTITY)
    assert (found["cause"], found["parts"]) == ("continued", [])


def test_what_is_long_is_told_as_a_digest() -> None:
    long = [IDENTITY._replace(positions="1" * MOST_TOLD_CHARACTERS + end) for end in "ab"]
    (part,) = differing_parts(*map(told, long))
    assert part.field == "positions"
    assert len(part.earlier) < 48
    assert told(long[0]) == told(long[0])


def test_the_digest_is_of_all_parts() -> None:
    identities = [IDENTITY, *(IDENTITY._replace(**{field: value}) for field, value in OTHERS.items())]
    assert len({identity_as_json(each)["digest"] for each in identities}) == len(identities)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "no identity"),
        ({}, "weights"),
        ({**IDENTITY._asdict(), "format": None}, "format is missing or wrong"),
        ({**IDENTITY._asdict(), "page_tokens": "32"}, "page_tokens is missing or wrong"),
        ({**IDENTITY._asdict(), "page_tokens": True}, "page_tokens is missing or wrong"),
        ({**IDENTITY._asdict(), "page_tokens": 7}, "pages of 7 tokens"),
        ({**IDENTITY._asdict(), "page_tokens": -32}, "pages of -32 tokens"),
        ({**IDENTITY._asdict(), "page_tokens": 16 * 10**30}, "pages of 160+ tokens"),
        ({**IDENTITY._asdict(), "format": "\ud800"}, "format is missing or wrong"),
        ({**IDENTITY._asdict(), "adapter": "\x1b[31m"}, "adapter is missing or wrong"),
        ({"error": {"message": "This key may not do that; use an admin's key."}}, "no identity"),
    ],
)
def test_what_is_no_identity_is_refused(value: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        identity_from_json(value, "before.json")
    assert "before.json" in str(caught.value)
    assert "/v1/kv/identity" in str(caught.value)
