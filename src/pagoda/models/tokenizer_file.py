"""What a tokenizer.json says, and whether reading text by it is sure to be quick and small.

Knows the parts that the library of tokenizers has. Most files consist of parts that cannot do harm, which is seen here
in a millisecond; the others have to show it in a child process (`tokenizer_trial.py`). What would do harm later, where
nothing is limited, is refused: ids and pieces that no vocabulary has.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Iterable, Mapping
from math import inf, prod
from typing import Any

from pagoda.errors import CorruptCheckpointError

# Vocabularies have up to a million tokens; tables of theirs reach up to the largest id.
MAX_TOKEN_ID = 1 << 22
MAX_PIECE_LENGTH = 1 << 16
# Those that are added are all searched for at once, by a table with a row for each of their characters.
MAX_ADDED = 1 << 16
# How many times longer a text may become, in bytes, by what a file says; a space becomes three bytes in many.
MAX_GROWTH = 16.0
# What is certain to grow more than any tokenizer lets it is not even tried.
MAX_CERTAIN_GROWTH = 64.0
# The longest replacement for a character in sentencepiece's own rules has 54 bytes.
MAX_REPLACEMENT_NBYTES = 128
# The model by pieces of words looks for the longest at every character, those by likelihood for every length.
MAX_WORD_LENGTH = 256
MAX_SEARCHED_LENGTH = 1024
# Of the tokens around a text.
MAX_SURROUNDING = 64

# One class of characters, some times: every character is looked at once.
PLAIN_CLASS = re.compile(
    r"(\\p\{\^?\w+\}|\\[dDsSwWnrt]|\[\^?([^\[\]&\\]|\\p\{\w+\}|\\[dswnrt])+\]|[\w ▁])(\{\d,?\d?\}|\+)?"
)
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
# Expressions of well-known families. A character that one alternative runs over in vain another one takes.
KNOWN_PATTERNS = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    *(
        rf"'(?:[sdmt]|ll|ve|re)| ?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"
        for digits in (r" ?\p{N}+", r"\p{N}")
    ),
    *(
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
        for digits in (r"\p{N}", r"\p{N}{1,3}")
    ),
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}",
    *(
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{tail}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{tail}|{digits}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
        for tail in ("", f"{_CONTRACTIONS}?")
        for digits in (r"\p{N}", r"\p{N}{1,3}")
    ),
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    " {2,}",
    r"\s{2,}|[\n\r\t]",
    r"[0-9][0-9][0-9]",
    r"\r\n",
}

PLAIN_NORMALIZERS = {
    *("BertNormalizer", "ByteLevel", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Strip", "StripAccents")
}
PLAIN_PRE_TOKENIZERS = {
    *("BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Digits", "Metaspace", "Punctuation", "UnicodeScripts"),
    *("Whitespace", "WhitespaceSplit"),
}
PLAIN_DECODERS = {"BPEDecoder", "ByteFallback", "ByteLevel", "CTC", "Fuse", "Metaspace", "Strip", "WordPiece"}
PLAIN_POST_PROCESSORS = {"BertProcessing", "ByteLevel", "RobertaProcessing"}
# Where a part that is made of others keeps them.
SEQUENCES = ("normalizers", "pretokenizers", "decoders", "processors")


def check_vocabulary(values: Mapping[str, Any], name: str) -> None:
    """Refuse ids and pieces that no vocabulary has. `name` is that of the file."""
    added = [token for token in values.get("added_tokens") or () if isinstance(token, dict)]
    pieces = _pieces(values)
    ids = (pieces or {}).values() if isinstance(pieces, dict) else ()
    check_token_ids([*ids, *(token.get("id") for token in added)], name)
    longest = max(map(len, [*_texts(pieces), *_texts(token.get("content") for token in added)]), default=0)
    if longest > MAX_PIECE_LENGTH:
        raise CorruptCheckpointError(f"{name} has a token of {longest} characters, longer than any vocabulary has.")


def check_growth(values: Mapping[str, Any], name: str) -> None:
    """Refuse what is certain to make every text, or one of the right characters, many times as long."""
    try:
        templates = [each for each in _parts(values.get("post_processor")) if each["type"] == "TemplateProcessing"]
        replacing = _growth(values.get("normalizer"), PLAIN_NORMALIZERS)
        times = max(prod(max(1, len(_text_places(each))) for each in templates), replacing if replacing < inf else 1)
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError):
        return  # it is not what it should be, which the library will say
    if times > MAX_CERTAIN_GROWTH:
        raise CorruptCheckpointError(f"{name} makes texts {times:.0f} times as long, more than any tokenizer does.")


def check_token_ids(ids: Iterable[Any], name: str) -> None:
    largest = max((token for token in ids if isinstance(token, int)), default=0)
    if largest > MAX_TOKEN_ID:
        raise CorruptCheckpointError(f"{name} has a token with the id {largest}, larger than any vocabulary has.")


def is_plain(values: Mapping[str, Any]) -> bool:
    """Whether every part of a tokenizer.json is one that takes time and memory in proportion to the text."""
    try:
        return (
            _growth(values.get("normalizer"), PLAIN_NORMALIZERS) <= MAX_GROWTH
            and all(map(_splits_plainly, _parts(values.get("pre_tokenizer"))))
            and _growth(values.get("decoder"), PLAIN_DECODERS) <= MAX_GROWTH
            and all(map(_surrounds_plainly, _parts(values.get("post_processor"))))
            and _is_plain_model(values["model"])
            and len(values.get("added_tokens") or ()) <= MAX_ADDED
        )
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError):
        return False  # it is not what it should be, which the library will say


def _pieces(values: Mapping[str, Any]) -> Any:
    model = values.get("model")
    return model.get("vocab") if isinstance(model, dict) else None


def _texts(pieces: Any) -> Iterable[str]:
    """The pieces of a vocabulary: names of ids, or pairs of piece and score."""
    firsts = (piece[0] if isinstance(piece, list) and piece else piece for piece in pieces or ())
    return (piece for piece in firsts if isinstance(piece, str))


def _parts(part: Any) -> list[dict[str, Any]]:
    """A part, or those that it is a sequence of."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    return [each for name in SEQUENCES for inner in part.get(name, ()) for each in _parts(inner)]


def _growth(part: Any, plain: set[str]) -> float:
    """How many times longer a text may become, infinite if that is not known."""
    return prod(1.0 if each["type"] in plain else _GROWTHS.get(each["type"], _unknown)(each) for each in _parts(part))


def _replacing(part: Mapping[str, Any]) -> float:
    nbytes = len(part["content"].encode())
    ((kind, pattern),) = part["pattern"].items()
    if kind == "String" and pattern:
        return max(1.0, nbytes / len(pattern.encode()))
    return max(1.0, nbytes) if kind == "Regex" and _is_plain_pattern(pattern) else inf


def _prepending(part: Mapping[str, Any]) -> float:
    return 1.0 if len(part["prepend"]) <= MAX_SURROUNDING else inf


def _by_table(part: Mapping[str, Any]) -> float:
    """Sentencepiece's replacements: the length of a table for the search, the table, and strings with zeros between."""
    table = b64decode(part["precompiled_charsmap"])
    strings = table[4 + int.from_bytes(table[:4], "little") :].split(b"\0")
    return 1.0 if max(map(len, strings), default=0) <= MAX_REPLACEMENT_NBYTES else inf


def _unknown(_: Mapping[str, Any]) -> float:
    return inf


_GROWTHS = {"Replace": _replacing, "Prepend": _prepending, "Precompiled": _by_table}


def _splits_plainly(part: Mapping[str, Any]) -> bool:
    if part["type"] != "Split":
        return part["type"] in PLAIN_PRE_TOKENIZERS
    ((kind, pattern),) = part["pattern"].items()
    return bool(pattern) and (kind == "String" or _is_plain_pattern(pattern))


def _is_plain_pattern(pattern: str) -> bool:
    return pattern in KNOWN_PATTERNS or PLAIN_CLASS.fullmatch(pattern) is not None


def _surrounds_plainly(part: Mapping[str, Any]) -> bool:
    if part["type"] != "TemplateProcessing":
        return part["type"] in PLAIN_POST_PROCESSORS
    num_ids = sum(len(token["ids"]) for token in part["special_tokens"].values())
    return len(_text_places(part)) <= 1 and len(part["single"]) * max(num_ids, 1) <= MAX_SURROUNDING


def _text_places(template: Mapping[str, Any]) -> list[Any]:
    """Where a template has the text."""
    return [each for each in template["single"] if "Sequence" in each]


def _is_plain_model(model: Mapping[str, Any]) -> bool:
    if model["type"] == "WordPiece":
        return bool(model["max_input_chars_per_word"] <= MAX_WORD_LENGTH)
    if model["type"] == "Unigram":
        return max(map(len, _texts(model["vocab"])), default=0) <= MAX_SEARCHED_LENGTH
    return model["type"] in ("BPE", "WordLevel")
