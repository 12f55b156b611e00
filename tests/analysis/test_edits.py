"""What makes one text another, as people write both, and what only looks like it."""

from __future__ import annotations

import json

import pytest

from pagoda.analysis.difference import Edit, num_common
from pagoda.analysis.edits import edit_kind

DOCUMENTS = ["The sea was calm and blue.", "The lamp was lit at dusk.", "A ship lay on the rocks."]

TIMES = [
    ("今日は2026年11月26日です", "今日は2026年11月27日です"),
    ("今天是2026年11月26日，星期四", "今天是2026年11月27日，星期五"),  # noqa: RUF001
    ("今天是星期四。", "今天是星期五。"),
    ("現在は10時05分です", "現在は10時06分です"),
    ("今は10:05です", "今は10:06です"),
    ("令和8年11月26日", "令和8年11月27日"),
    ("오늘은 2026년 11월 26일입니다", "오늘은 2026년 11월 27일입니다"),
    ("Heute ist Donnerstag, der 26. November 2026.", "Heute ist Freitag, der 27. November 2026."),
    ("Nous sommes le jeudi 26 novembre 2026.", "Nous sommes le vendredi 27 novembre 2026."),
    ("Hoy es 26 de noviembre de 2026.", "Hoy es 27 de noviembre de 2026."),
    ("Hoje é quinta-feira, 26 de novembro de 2026.", "Hoje é sexta-feira, 27 de novembro de 2026."),
    ("Oggi è giovedì 26 novembre 2026.", "Oggi è venerdì 27 novembre 2026."),
    ("Сегодня 26 ноября 2026.", "Сегодня 27 ноября 2026."),
    ("Il est 21h05.", "Il est 21h06."),
    ("Es ist 10 Uhr.", "Es ist 11 Uhr."),
    ("It is November 26, 2026.", "It is December 1, 2026."),
    ("Today is Nov. 26.", "Today is Dec. 1."),
    ("Today is Thursday.", "Today is Friday."),
    ("Today is Thu.", "Today is Fri."),
    ("Thu, 26 Nov 2026 10:05:01 GMT", "Fri, 27 Nov 2026 00:05:01 GMT"),
    ("[10:05] The keeper spoke.", "[10:06] The keeper spoke."),
    ("Current time: 10:05", "Current time: 10:06"),
    ("It is now 9 AM there.", "It is now 8 AM there."),
    ('{"timestamp": 1764187750}', '{"timestamp": 1764187811}'),
    ('{"createdAt": 1764187750}', '{"createdAt": 1764187811}'),
    ("at 1764187750.25", "at 1764187811.5"),
]
NO_TIMES = [
    ("Mark 12 points.", "Mary 12 points."),
    ("Augustus 4 was there.", "Decimus 5 was there."),
    ("Novels 12 to 14", "Decent 12 to 14"),
    ("The sun is up.", "The sat nav is up."),
    ("Mon ami est parti.", "Fri bourg est loin."),
    ("Read John 3:16.", "Read John 3:17."),
    ("The vote was 12:30 in favour.", "The vote was 14:28 in favour."),
    ("The score is 12:30.", "The score is 12:45."),
    ("Top 10 films 2024", "Top 12 films 2024"),
    ("Order 1600000001", "Order 1712345678"),
    ("Order 20345678", "Order 20987654"),
    ("As John 3:16 that says.", "As John 3:17 that says."),
    ('{"format": 1600000001}', '{"format": 1712345678}'),
    ("You may 5 times", "You mar 6 times"),
    ("The ratio is 44:99 here.", "The ratio is 45:98 here."),
]
NO_IDS = [
    ("Call getUserDataFromApi.", "Call getOrderListFromDb."),
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


@pytest.mark.parametrize(("earlier", "later"), TIMES)
def test_dates_and_times_are_known_in_many_languages(earlier: str, later: str) -> None:
    assert kind(earlier, later) == "timestamp"
    assert kind(later, earlier) == "timestamp"


@pytest.mark.parametrize(("earlier", "later"), NO_TIMES)
def test_names_and_numbers_are_no_times(earlier: str, later: str) -> None:
    assert kind(earlier, later) != "timestamp"


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
