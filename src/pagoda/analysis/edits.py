"""What kind of edit makes one text another, where they part: each kind is a question about the two texts alone.

The kinds are those that people do not mean to make: times, ids and counters, form of text and of JSON. Knows neither
prompts nor their sections.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator

from pagoda.analysis.dates import TIME, is_time
from pagoda.analysis.difference import Edit, num_common
from pagoda.analysis.json_edits import (
    has_other_entry_order,
    has_other_json_form,
    has_other_key_order,
    has_other_whitespace,
)

LEAST_AGREEMENT_CHARACTERS = 16
MOST_WORD_CHARACTERS = 256
KEYWORD_CHARACTERS = 32
LEAST_ID_DIGITS = 8
LEAST_PIECE_CHARACTERS = 8  # what is shorter stands anywhere
LEAST_WORD_LETTERS = 3  # in about, of names in camel case

PIECE_START = re.compile(r"[\s>\u3001\u3002\uff0c\uff1a]")
SENTENCE_END = re.compile(r"\n|[.!?;](?=\s)|</|[\u3002\uff01\uff1b\uff1f]")
PIECE_ENDS = (SENTENCE_END, re.compile(r"[\])}\n]"))
ENTRY = re.compile(r"[^\s,;|]+")
AROUND_ENTRY = ".()[]{}\"'"
WORD = re.compile(r"[A-Za-z0-9]+(?:[-_][A-Za-z0-9]+)*")
RUN = re.compile(r"\d+|[A-Z]*[a-z]+|[A-Z]+")
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
        **dict.fromkeys("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"),  # directions
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
    """Spaces that do not break or have no width, and marks of direction."""
    return _agrees(edit, lambda text: text.translate(INVISIBLE))


def has_typographic_characters(edit: Edit) -> bool:
    """Quotes and dashes as editors set them."""
    return _agrees(edit, lambda text: text.translate(TYPOGRAPHIC))


def has_other_time(edit: Edit) -> bool:
    """A date or a time of day in both, not the same."""
    return any(True for _ in _pairs(TIME, edit, is_time))


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
    """The same words or entries, in all, or in the line or list where the texts part, as sets give them."""
    pieces = ((_piece(edit.earlier, edit.place, end), _piece(edit.later, edit.place, end)) for end in PIECE_ENDS)
    return _has_other_words(edit.earlier, edit.later) or any(_has_other_words(*pair) for pair in pieces)


def has_swapped_pieces(edit: Edit) -> bool:
    """What either has where they part stands further on in the other, as searches give documents."""
    pieces = _piece(edit.earlier, edit.place, SENTENCE_END), _piece(edit.later, edit.place, SENTENCE_END)
    if min(map(len, pieces)) < LEAST_PIECE_CHARACTERS or pieces[0] == pieces[1]:
        return False
    before, after = edit.earlier[edit.place :], edit.later[edit.place :]
    return all(piece in text for piece, text in zip(pieces, (after, before), strict=True)) and all(
        edit.earlier.count(piece) == edit.later.count(piece) for piece in pieces
    )


# What is the same in another form is that for certain, so those questions come first.
EDITS: tuple[tuple[str, Callable[[Edit], bool]], ...] = (
    ("json_whitespace", has_other_whitespace),
    ("json_key_order", has_other_key_order),
    ("json_encoding", has_other_json_form),
    ("order_changed", has_other_entry_order),
    ("order_changed", has_swapped_pieces),
    ("timestamp", has_other_time),
    ("random_id", has_other_id),
    ("counter", has_other_count),
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


def _has_other_words(earlier: str, later: str) -> bool:
    before, after = ([word.strip(AROUND_ENTRY) for word in ENTRY.findall(text)] for text in (earlier, later))
    return before != after and sorted(before) == sorted(after)


def _piece(text: str, place: int, piece_end: re.Pattern[str]) -> str:
    """The rest of the sentence or line around `place`, from a word's beginning on."""
    low = max(place - MOST_WORD_CHARACTERS, 0)
    start = max((match.end() for match in PIECE_START.finditer(text, low, place)), default=low)
    end = piece_end.search(text, place)
    return text[start : end.start() if end else len(text)].strip(" ,;.")


def _agrees(edit: Edit, form: Callable[[str], str]) -> bool:
    """Whether the texts go on together, in this form, from where they part."""
    earlier, later, before = form(edit.earlier), form(edit.later), len(form(edit.earlier[: edit.place]))
    shared = num_common(earlier, later)
    is_over = shared == min(len(earlier), len(later))
    return shared > before and (is_over or shared - before >= LEAST_AGREEMENT_CHARACTERS)


def _compatible(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def _pairs(
    pattern: re.Pattern[str], edit: Edit, accepts: Callable[[re.Match[str]], bool] = bool
) -> Iterator[tuple[str, str]]:
    """What matches in both texts from the same place on, over the place where they part, and is not the same."""
    found = _matches(pattern, edit.later, edit.place, accepts)
    for start, earlier in _matches(pattern, edit.earlier, edit.place, accepts).items():
        if start in found and found[start] != earlier:
            yield earlier, found[start]


def _starts(pattern: re.Pattern[str], edit: Edit) -> list[int]:
    """Where such pairs begin."""
    found = _matches(pattern, edit.later, edit.place)
    own = _matches(pattern, edit.earlier, edit.place)
    return [start for start, text in own.items() if start in found and found[start] != text]


def _matches(
    pattern: re.Pattern[str], text: str, place: int, accepts: Callable[[re.Match[str]], bool] = bool
) -> dict[int, str]:
    """By where they begin; nothing that is looked for is long."""
    low, high = max(place - MOST_WORD_CHARACTERS, 0), place + MOST_WORD_CHARACTERS
    found = pattern.finditer(text, low, high)
    return {match.start(): match.group() for match in found if match.start() <= place <= match.end() and accepts(match)}


def _is_random(word: str) -> bool:
    """Letters and digits in turn, or many digits; behind a prefix, fewer do."""
    *prefixes, _ = pieces = re.split(r"[-_]", word)
    least = 4 if prefixes else 6
    return any(len(piece) >= least and _is_mixed(piece) for piece in pieces)


def _is_mixed(piece: str) -> bool:
    num_digits = sum(map(str.isdigit, piece))
    if num_digits == len(piece):
        return num_digits >= LEAST_ID_DIGITS
    if HEX.fullmatch(piece) and num_digits >= 2:
        return True
    runs = RUN.findall(piece)
    if len(runs) < 3 or num_digits < (2 if len(runs) == 3 else 1):
        return False
    is_of_one_case = piece.islower() or piece.isupper()
    return num_digits >= 2 if is_of_one_case else len(piece) < LEAST_WORD_LETTERS * len(runs)


def _is_counted(text: str, start: int) -> bool:
    return COUNTED.search(text[max(start - KEYWORD_CHARACTERS, 0) : start]) is not None
