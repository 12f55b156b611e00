"""Dates and times of many languages, and names, verses, votes and numbers that look like them."""

from __future__ import annotations

import pytest

from pagoda.analysis.difference import Edit, num_common
from pagoda.analysis.edits import edit_kind

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
    ("Datum: Do., 26. Nov. 2026", "Datum: Fr., 27. Nov. 2026"),
    ("现在是晚上9点05分", "现在是晚上9点06分"),
    ("지금은 오후 3시 5분입니다", "지금은 오후 3시 6분입니다"),
    ("现在是下午3点。", "现在是下午4点。"),
    ("σήμερα 26 Νοεμβρίου 2026", "σήμερα 27 Νοεμβρίου 2026"),
    ("اليوم 26 نوفمبر 2026", "اليوم 27 نوفمبر 2026"),
    ("वर्तमान तिथि 26 नवंबर 2026", "वर्तमान तिथि 27 नवंबर 2026"),
    ("Week 2026-W48-4", "Week 2026-W48-5"),
    ("They voted at 12:30.", "They voted at 12:45."),
    ("Meeting 10:05", "Meeting 10:06"),
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
    ("This is version 10.10.12.", "This is version 10.10.13."),
    ("The ratio is 44:99 here.", "The ratio is 45:98 here."),
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
