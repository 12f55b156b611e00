"""How much there is in a JSON text, counted in its bytes: as much as reading it would find."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagoda.errors import HttpError
from pagoda.server.asked import json_shape
from pagoda.server.asked.json_shape import (
    HEAVY,
    MOST_DEPTH,
    MOST_WEIGHT,
    _pieces,
    _weight,
    check_arguments,
    check_shape,
)

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.sampled_from('ab"\\[]{},:\n\u2022\ud800\U0001f600'))
VALUES = st.recursive(PLAIN | TEXTS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=40)


def weight_of(value: Any) -> int:
    """Of values as they are read. The last value of a list, and a key's value, come without a comma."""
    match value:
        case str():
            return HEAVY
        case list():
            return HEAVY + sum(map(weight_of, value)) + max(len(value) - 1, 0)
        case dict():
            inner = sum(HEAVY + weight_of(each) for each in value.values())
            return HEAVY + inner + max(len(value) - 1, 0)
        case _:
            return 0


@given(VALUES, st.booleans(), st.sampled_from([None, 1]), st.integers(2, 40))
def test_every_value_is_counted_and_no_text_is_taken_for_one(
    value: Any, is_ascii: bool, indent: int | None, piece_nbytes: int
) -> None:
    content = json.dumps(value, ensure_ascii=is_ascii, indent=indent).encode(errors="surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_shape, "PIECE_NBYTES", piece_nbytes)
        assert sum(_weight(*piece) for piece in _pieces(content)) == weight_of(value)


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("opening", ["[", '{"a":', '[[],{"b":'])
def test_what_is_too_deep_is_refused(opening: str, closed: bool) -> None:
    per_opening = opening.count("[") - opening.count("]") + opening.count("{") - opening.count("}")
    most = MOST_DEPTH // per_opening
    ends = {"[": "]", "{": "}"}
    end = "".join(ends[each] for each in reversed(opening.replace("[]", "")) if each in ends) if closed else ""
    check_shape((opening * most + "1" + end * most).encode())
    with pytest.raises(HttpError, match="nested"):
        check_shape((opening * (most + 1) + "1" + end * (most + 1)).encode())


@pytest.mark.parametrize("piece", [b"[]", b"{}", b'"a"', b'"\\\\"', b'"\\""', b'{"a":1}', b"1", b"null", b"-1.5e3"])
def test_too_many_values_of_any_kind_are_refused(piece: bytes) -> None:
    check_shape(b"[" + b",".join([piece] * 1000) + b"]")
    with pytest.raises(HttpError, match="too many values"):
        check_shape(b"[" + b",".join([piece] * (MOST_WEIGHT + 1)) + b"]")


@pytest.mark.parametrize("text", [b"1" * 1_000_000, b'"' + b"[,{" * 500_000 + b'"', b'"' + b'\\"[],' * 500_000 + b'"'])
def test_a_long_value_is_one(text: bytes) -> None:
    check_shape(b"[" + text + b"]")


def test_a_prompt_of_a_million_token_ids_is_not_too_much() -> None:
    check_shape(json.dumps({"model": "m", "prompt": [151_643] * (1 << 20), "max_tokens": 1}).encode())


def test_arguments_count_together() -> None:
    check_arguments(['{"a": [[], []]}'] * 100, "messages")
    check_arguments(["not JSON \ud800", ""], "messages")
    with pytest.raises(HttpError) as refused:
        check_arguments(["[" + "[]," * 1000 + "1]"] * 200, "messages")
    assert refused.value.param == "messages"
