"""What kind of edit makes one text another, where they part: each kind is a question about the two texts alone.

The kinds are those that people do not mean to make: times, ids and counters, form of text and of JSON. Knows neither
prompts nor their sections.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from itertools import pairwise

from pagoda.analysis.difference import Edit, num_common
from pagoda.analysis.json_edits import has_other_json_form, has_other_key_order, has_other_whitespace

LEAST_AGREEMENT_CHARACTERS = 16
MOST_WORD_CHARACTERS = 256
KEYWORD_CHARACTERS = 32
LEAST_ID_DIGITS = 8

_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_DAY = r"(?:mon|tues?|wed(?:nes)?|thu(?:rs)?|fri|sat(?:ur)?|sun)(?:day)?\b\.?"
_CLOCK = r"\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?(?:\s*[ap]\.?m\b\.?)?"
_ZONE = r"(?:\s*(?:z|utc|gmt|[a-z]{2,4}t)\b|\s*[+-]\d{2}:?\d{2})?"
_DATES = (
    r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}",
    r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}",
    r"\d{1,2}\.\d{1,2}\.\d{4}|\d{2}\.\d{2}\.\d{2}(?!\d)",
    rf"{_MONTH}\s+\d{{4}}",
    rf"{_MONTH}\s+\d{{1,2}}(?:st|nd|rd|th)?(?:,?\s+\d{{4}})?",
    rf"\d{{1,2}}(?:st|nd|rd|th)?\.?\s+(?:of\s+)?(?:{_MONTH}|[^\W\d_]+)(?:,?\s+\d{{4}})",
    rf"\d{{1,2}}[-\s]{_MONTH}[-\s]\d{{2,4}}",
    r"\d{4}年\d{1,2}月\d{1,2}日",
    r"20\d{6}(?:[t_-]?\d{4,6})?z?",
)
_DATE = "|".join(_DATES)
_SINCE = r"(?:\d+|an?)\s*(?:s|sec|min|h|d|second|minute|hour|day|week|month|year)s?\s+ago"
TIME = re.compile(
    rf"(?<![\w.])(?:(?:{_DAY}(?:,?\s+))?(?:{_DATE})(?:(?:\s*,?\s*(?:at\s+)?|t)(?:{_CLOCK}){_ZONE})?"
    rf"|(?:{_CLOCK}){_ZONE}|{_DAY}|{_SINCE}|1[5-9]\d{{8}}(?:\d{{3}}|\.\d+)?)",
    re.IGNORECASE,
)
WORD = re.compile(r"[A-Za-z0-9]+(?:[-_][A-Za-z0-9]+)*")
HEX = re.compile(r"[0-9a-f]{7,}|[0-9A-F]{7,}")
NUMBER = re.compile(r"\d+")
COUNTED = re.compile(
    r"(?:#|\b(?:no|nr|num(?:ber)?|id|seq(?:uence)?|count(?:er)?|request|session|turn|step|attempt|run|user|conversation"
    r"|ticket|nonce|seed|trace|message|call|iteration|budget|usage|used|remaining|left)|_(?:id|no|count|seq))\W{0,8}"
    r"(?:(?:is|of|no)\W+)?$",
    re.IGNORECASE,
)
INVISIBLE = str.maketrans(
    {
        **dict.fromkeys("\u00a0\u2007\u202f\u2009\u3000", " "),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufe0f\ufeff\u00ad"),
    }
)
TYPOGRAPHIC = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201a\u02bc", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u00ab\u00bb", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-"),
        "\u2026": "...",
    }
)


def has_other_line_endings(edit: Edit) -> bool:
    return _agrees(edit, lambda text: text.replace("\r\n", "\n").replace("\r", "\n"))


def has_other_unicode_form(edit: Edit) -> bool:
    """The same characters, composed or not."""
    return _agrees(edit, lambda text: unicodedata.normalize("NFC", text)) or _agrees(edit, _compatible)


def has_invisible_characters(edit: Edit) -> bool:
    """Spaces that do not break, or have no width."""
    return _agrees(edit, lambda text: text.translate(INVISIBLE))


def has_typographic_characters(edit: Edit) -> bool:
    """Quotes and dashes as editors set them."""
    return _agrees(edit, lambda text: text.translate(TYPOGRAPHIC))


def has_other_time(edit: Edit) -> bool:
    """A date or a time of day in both, not the same."""
    return any(True for _ in _pairs(TIME, edit))


def has_other_id(edit: Edit) -> bool:
    """A word in both that nobody would choose: a UUID, a digest, the key of a session."""
    return any(
        _is_random(earlier) and _is_random(later) and abs(len(earlier) - len(later)) <= 4
        for earlier, later in _pairs(WORD, edit)
    )


def has_other_count(edit: Edit) -> bool:
    """A number in both that stands where a counter or an id does."""
    return any(_is_counted(edit.earlier, start) for start in _starts(NUMBER, edit))


def ends_with_other_whitespace(edit: Edit) -> bool:
    """The same but for spaces and lines before or after all of it."""
    return edit.earlier != edit.later and edit.earlier.strip() == edit.later.strip()


def has_other_spaces(edit: Edit) -> bool:
    return _agrees(edit, lambda text: "".join(text.split()))


def has_other_case(edit: Edit) -> bool:
    return _agrees(edit, str.casefold)


def has_other_order(edit: Edit) -> bool:
    """The same words, lines or entries, as sets and searches give them."""
    earlier, later = edit.earlier.split(), edit.later.split()
    if earlier == later or len(earlier) != len(later):
        return False
    return sorted(map(_bare, earlier)) == sorted(map(_bare, later))


EDITS: tuple[tuple[str, Callable[[Edit], bool]], ...] = (
    ("timestamp", has_other_time),
    ("random_id", has_other_id),
    ("counter", has_other_count),
    ("json_whitespace", has_other_whitespace),
    ("json_key_order", has_other_key_order),
    ("json_encoding", has_other_json_form),
    ("line_endings", has_other_line_endings),
    ("trailing_whitespace", ends_with_other_whitespace),
    ("invisible_characters", has_invisible_characters),
    ("unicode_form", has_other_unicode_form),
    ("typographic_characters", has_typographic_characters),
    ("whitespace", has_other_spaces),
    ("case_changed", has_other_case),
    ("order_changed", has_other_order),
)


def edit_kind(edit: Edit) -> str | None:
    """The first of `EDITS` that it is; None if it is none of them."""
    return next((name for name, recognises in EDITS if recognises(edit)), None)


def _bare(word: str) -> str:
    """Without what stands between entries."""
    return word.strip(",;.")


def _agrees(edit: Edit, form: Callable[[str], str]) -> bool:
    """Whether the texts go on together, in this form, from where they part."""
    earlier, later, before = form(edit.earlier), form(edit.later), len(form(edit.earlier[: edit.place]))
    shared = num_common(earlier, later)
    is_over = shared == min(len(earlier), len(later))
    return shared > before and (is_over or shared - before >= LEAST_AGREEMENT_CHARACTERS)


def _compatible(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def _pairs(pattern: re.Pattern[str], edit: Edit) -> Iterator[tuple[str, str]]:
    """What matches in both texts from the same place on, over the place where they part, and is not the same."""
    found = _matches(pattern, edit.later, edit.place)
    for start, earlier in _matches(pattern, edit.earlier, edit.place).items():
        if start in found and found[start] != earlier:
            yield earlier, found[start]


def _starts(pattern: re.Pattern[str], edit: Edit) -> list[int]:
    """Where such pairs begin."""
    found = _matches(pattern, edit.later, edit.place)
    own = _matches(pattern, edit.earlier, edit.place)
    return [start for start, text in own.items() if start in found and found[start] != text]


def _matches(pattern: re.Pattern[str], text: str, place: int) -> dict[int, str]:
    """By where they begin; nothing that is looked for is long."""
    low, high = max(place - MOST_WORD_CHARACTERS, 0), place + MOST_WORD_CHARACTERS
    found = pattern.finditer(text, low, high)
    return {match.start(): match.group() for match in found if match.start() <= place <= match.end()}


def _is_random(word: str) -> bool:
    """Letters and digits in turn, many digits, or capitals where no word has them; behind a prefix, fewer do."""
    *prefixes, _ = pieces = re.split(r"[-_]", word)
    least = 4 if prefixes else 6
    return any(len(piece) >= least and _is_mixed(piece) for piece in pieces)


def _is_mixed(piece: str) -> bool:
    num_digits = sum(map(str.isdigit, piece))
    if num_digits == len(piece):
        return num_digits >= LEAST_ID_DIGITS
    if HEX.fullmatch(piece) and num_digits:
        return True
    return (num_digits >= 2 and _num_changes(piece, str.isdigit) >= 2) or _num_capitals_inside(piece) >= 3


def _num_changes(word: str, kind: Callable[[str], bool]) -> int:
    return sum(kind(left) != kind(right) for left, right in pairwise(word))


def _num_capitals_inside(word: str) -> int:
    """Capitals after small letters."""
    return sum(left.islower() and right.isupper() for left, right in pairwise(word))


def _is_counted(text: str, start: int) -> bool:
    return COUNTED.search(text[max(start - KEYWORD_CHARACTERS, 0) : start]) is not None
