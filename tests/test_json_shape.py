"""How much there is in a JSON text, counted in its bytes: as much as reading it would find."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagoda import json_shape
from pagoda.json_shape import HEAVY, json_shapes

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


def depth_of(value: Any) -> int:
    match value:
        case list():
            return 1 + max(map(depth_of, value), default=0)
        case dict():
            return 1 + max(map(depth_of, value.values()), default=0)
        case _:
            return 0


@given(VALUES, st.booleans(), st.sampled_from([None, 1]), st.integers(2, 40))
def test_every_value_is_counted_and_no_text_is_taken_for_one(
    value: Any, is_ascii: bool, indent: int | None, piece_nbytes: int
) -> None:
    content = json.dumps(value, ensure_ascii=is_ascii, indent=indent).encode(errors="surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_shape, "PIECE_NBYTES", piece_nbytes)
        assert [*json_shapes(content)][-1] == (weight_of(value), depth_of(value))
