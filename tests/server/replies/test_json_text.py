"""JSON is passed on as it is written, however it comes; what other clients could not read is mended or refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagoda.server.replies.json_text import MOST_DEPTH, Found, read_value
from pagoda.server.replies.tape import Tape

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


def read(text: str, size: int = 1) -> tuple[Found, str, str]:
    """What was found and said, and what is left."""
    tape, said = Tape(), list[str]()
    reading = read_value(tape, said.append)
    for start in range(0, len(text), size):
        tape.text += text[start : start + size]
        try:
            next(reading)
        except StopIteration as end:
            return end.value, "".join(said), text[tape.place :]
    tape.is_last = True
    with pytest.raises(StopIteration) as end:
        next(reading)
    return end.value.value, "".join(said), text[tape.place :]


@given(values, st.integers(1, 9), st.booleans(), st.sampled_from([None, 2]))
def test_json_is_said_with_blanks_of_our_own(value: object, size: int, is_ascii: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=is_ascii, indent=indent)
    assert read(text, size) == (Found.WHOLE, json.dumps(value, ensure_ascii=is_ascii), "")


@given(values.filter(lambda value: isinstance(value, (str, list, dict))), st.text(), st.integers(1, 9))
def test_it_ends_where_the_value_ends(value: object, more: str, size: int) -> None:
    text = json.dumps(value)
    assert read(text + more, size)[:2] == (Found.WHOLE, text)


@given(values.map(json.dumps), st.integers(1, 9), st.data())
def test_a_beginning_is_cut(text: str, size: int, data: st.DataObject) -> None:
    beginning = text[: data.draw(st.integers(0, len(text) - 1))]
    found, said, _ = read(beginning, size)
    assert found is Found.CUT or (found is Found.WHOLE and text[0] not in '"[{')
    assert text.startswith(said)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"t": "a\nb\tc\x01"}', {"t": "a\nb\tc\x01"}),
        (r'"\d+ \. C:\Users \x41 \u12"', r"\d+ \. C:\Users \x41 \u12"),
        (r'"\ud83d\ude42 \u00e9 \" \\"', '🙂 é " \\'),
        (r'["\ud83d", "\ude42 \ud83d\n", "\ud83d\ud83d\ude42"]', ["\ufffd", "\ufffd \ufffd\n", "\ufffd🙂"]),
        ("[True, False, None,]", [True, False, None]),
        ('{"a": [1, ], }', {"a": [1]}),
        ('"</tool_call>"', "</tool_call>"),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 3, 99])
def test_strings_are_mended(text: str, value: object, size: int) -> None:
    found, said, rest = read(text, size)
    assert (found, rest) == (Found.WHOLE, "")
    assert json.loads(said) == value


@pytest.mark.parametrize(
    "text",
    [
        *("nonsense ", "{'a': 1}", "{1: 2}", '{"a" 1}', '{"a": }', "[1 2]", "[,]", "}", "]", ","),
        *("{]", '["a"}', "NaN ", "Infinity ", "true1 ", "01 ", "+1 ", "1. ", "1e9999 ", "9" * 5000 + " ", "[" * 5000),
    ],
)
def test_what_is_no_json_is_refused(text: str) -> None:
    assert read(text)[0] is Found.WRONG
    assert read(text, 7)[0] is Found.WRONG


def test_values_may_be_nested_to_a_depth() -> None:
    text = "[" * MOST_DEPTH + "]" * MOST_DEPTH
    assert read(text) == (Found.WHOLE, text, "")
    assert read(f"[{text}]")[0] is Found.WRONG
