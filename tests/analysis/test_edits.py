"""What makes one text another, as people write both, and what only looks like it."""

from __future__ import annotations

import json

import pytest

from pagoda.analysis.difference import Edit, num_common
from pagoda.analysis.edits import edit_kind

DOCUMENTS = ["The sea was calm and blue.", "The lamp was lit at dusk.", "A ship lay on the rocks."]

NO_IDS = [
    ("Call getUserDataFromApi.", "Call getOrderListFromDb."),
    ("Call facade1.", "Call decade2."),
    ("Call base64ToUtf8String.", "Call base64ToUtf16Bytes."),
    ("Call getUserDataFromApi2.", "Call getOrderListFromDb2."),
]
ORDERS = [
    ('Speak of ["a", "b", "c"].', 'Speak of ["c", "a", "b"].'),
    ('[{"id": 1}, {"id": 2}]', '[{"id": 2}, {"id": 1}]'),
    ('[{"id": "8fa91c2b"}, {"id": "71bc03de"}]', '[{"id": "71bc03de"}, {"id": "8fa91c2b"}]'),
    ('{"a": {"enum": ["x", "y"]}, "b": 1}', '{"a": {"enum": ["y", "x"]}, "b": 1}'),
    ("[[1, 2], [3, 4]]", "[[4, 3], [1, 2]]"),
    ("\n".join([*DOCUMENTS, "Where is it?"]), "\n".join([*DOCUMENTS[::-1], "And when was that?"])),
    (" ".join([*DOCUMENTS, "Where is it?"]), " ".join([*DOCUMENTS[::-1], "And when was that?"])),
    ("Documents: " + "\n\n".join(DOCUMENTS) + "\nWhy?", "Documents: " + "\n\n".join(DOCUMENTS[::-1]) + "\nWho?"),
    (f"<doc>{'</doc><doc>'.join(DOCUMENTS)}</doc> Why?", f"<doc>{'</doc><doc>'.join(DOCUMENTS[::-1])}</doc> Who?"),
    ("文档：海很平静很蓝色很美丽。灯在黄昏时分点亮。问题一", "文档：灯在黄昏时分点亮。海很平静很蓝色很美丽。问题二"),  # noqa: RUF001
    ("Speak of ['a', 'b', 'c'] here.", "Speak of ['c', 'a', 'b'] there."),
    ("Speak of {'ships', 'tides'}.", "Speak of {'tides', 'ships'}."),
    ("ships,tides,lamps", "lamps,ships,tides"),
    ("Speak of ships, tides, lamps. Where is it?", "Speak of tides, lamps, ships. And when was that?"),
    (
        "[1] The log of 2026-11-26.\n[2] The log of 2026-11-27.\nWhy?",
        "[1] The log of 2026-11-27.\n[2] The log of 2026-11-26.\nWho?",
    ),
]
SAME_JSON = [
    ("json_whitespace", '{"a": [1, 2]}', '{"a":[1,2]}'),
    ("json_whitespace", '{"a": [], "b": 1}', '{"a": [],\n"b": 1}'),
    ("json_key_order", '{"a": 1.5, "b": 2}', '{"b": 2, "a": 1.5}'),
    ("json_key_order", '{\n "high": 40000,\n "low": 90000\n}', '{\n "low": 90000,\n "high": 40000\n}'),
    ("json_encoding", '{"v": 1.0}', '{"v": 1}'),
    ("json_encoding", '{"v": 1e3, "w": 2}', '{"v": 1000, "w": 2}'),
    ("json_encoding", '{"v": "\\u00f6"}', '{"v": "ö"}'),
    ("invisible_characters", "The sea\u200f was calm and blue.", "The sea was calm and blue."),
    ("invisible_characters", "The \u2067sea\u2069 was calm and blue.", "The sea was calm and blue."),
    ("whitespace", "- [1] The sea was calm.", "- [1]The sea was calm."),
]
NO_SAME_JSON = [
    ('[{"id": 1}]', '[{"id": 1}, {"id": 2}]'),
    ('{"rows": [{"id": 1}]}', '{"rows": [{"id": 1}, {"id": 2}]}'),
    ('{"type": "object", "properties": {"a": {}}}', '{"type": "object", "properties": {"a": {}}, "required": ["a"]}'),
    ('{"properties": {"a": {}}}', '{"properties": {"a": {}, "b": {}}}'),
    ("See source [1].", "See source [1],"),
    ("items: [] done", "items: [], done"),
    ("- [1] a", "- [1]b"),
    ('{"a": 1}\nfirst', '{"a": 1}; second'),
    ('{"v": 1}', '{"v": true}'),
    ("[0.1]", "[0.10000000000000000001]"),
    ("[0.1, 1e999]", "[0.1, 2e999]"),
    ("[1, 1, 2]", "[1, 2, 2]"),
    ("ok, done.\nit fails.\nok, done.", "it fails.\nok, done."),
    ("[" * 900 + "1" + "]" * 900, "[" * 900 + "2" + "]" * 900),
]


def kind(earlier: str, later: str) -> str | None:
    return edit_kind(Edit(earlier, later, num_common(earlier, later)))


@pytest.mark.parametrize(("earlier", "later"), NO_IDS)
def test_names_in_camel_case_are_no_ids(earlier: str, later: str) -> None:
    assert kind(earlier, later) is None


def test_capitals_among_digits_are_an_id() -> None:
    assert kind("Key xKqZb7TmRwPeL.", "Key aQwZt4BnYyUiO.") == "random_id"


@pytest.mark.parametrize(("earlier", "later"), ORDERS)
def test_entries_and_documents_come_in_another_order(earlier: str, later: str) -> None:
    assert kind(earlier, later) == "order_changed"


@pytest.mark.parametrize(("cause", "earlier", "later"), SAME_JSON)
def test_the_same_in_another_form_is_known(cause: str, earlier: str, later: str) -> None:
    assert kind(earlier, later) == kind(later, earlier) == cause


@pytest.mark.parametrize(("earlier", "later"), NO_SAME_JSON)
def test_what_has_grown_or_has_another_value_is_not_the_same(earlier: str, later: str) -> None:
    assert kind(earlier, later) is kind(later, earlier) is None


def test_numbers_beyond_all_bounds_are_read_past() -> None:
    assert kind("[1e9999999999999999999, 4]", "[1e9999999999999999999, 5]") is None


def test_json_is_found_within_text() -> None:
    value = {"high": 4, "low": [9]}
    assert (
        kind(f"It says {json.dumps(value)}. Why?", f"It says {json.dumps(value, indent=1)}. Who?") == "json_whitespace"
    )
