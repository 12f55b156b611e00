"""What is too much of JSON, or too deep, is refused before it is parsed."""

from __future__ import annotations

import json

import pytest

from pagoda.errors import HttpError
from pagoda.server.asked.json_shape import MOST_DEPTH, MOST_WEIGHT, check_arguments, check_shape


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
