"""Which tokenizers are sure to do no harm, and which vocabularies none has."""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path

import pytest

import pagoda
from models.tokenizers import BPE, TEXT, replace, sequence, split, template, token, tokenizer_json
from pagoda.errors import CorruptCheckpointError
from pagoda.models.tokenizer_file import KNOWN_PATTERNS, check_growth, check_vocabulary, is_plain

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
UNIGRAM = {"type": "Unigram", "unk_id": 0, "byte_fallback": False, "vocab": [["u", 0.0], ["a", -1.0]]}
WORD_PIECE = {"type": "WordPiece", "unk_token": "u", "max_input_chars_per_word": 100, "vocab": {"u": 0}}


def table(*replacements: bytes) -> dict[str, str]:
    text = (8).to_bytes(4, "little") + bytes(8) + b"".join(each + b"\0" for each in replacements)
    return {"type": "Precompiled", "precompiled_charsmap": b64encode(text).decode()}


def test_the_embedded_one_is_plain():
    file = Path(pagoda.__file__).parent / "assets" / "tiny" / "tokenizer.json"
    assert is_plain(json.loads(file.read_text("utf-8")))


def test_expressions_of_known_families_are_known():
    assert {LLAMA_3, LLAMA_3.replace("{1,3}", ""), O200K} <= KNOWN_PATTERNS


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"normalizer": {"type": "NFC"}},
        {"normalizer": sequence("normalizers", {"type": "Prepend", "prepend": "▁"}, replace(" ", "▁"))},
        {"normalizer": sequence("normalizers", table("ﷺ".encode()), replace(" {2,}", "▁", "Regex"))},
        {"pre_tokenizer": split(LLAMA_3)},
        {"pre_tokenizer": sequence("pretokenizers", split(r"\p{N}{1,3}"), split(r"[一-龥]+"), {"type": "ByteLevel"})},
        {"pre_tokenizer": split(r"\d")},
        {"decoder": sequence("decoders", replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"})},
        {"post_processor": template({"SpecialToken": {"id": "s", "type_id": 0}}, TEXT, s=[1])},
        {"post_processor": sequence("processors", {"type": "ByteLevel"}, template(TEXT))},
        {"model": UNIGRAM},
        {"model": WORD_PIECE},
        {"added_tokens": [token("<s>")]},
    ],
)
def test_plain_ones(parts):
    assert is_plain(tokenizer_json(**parts))


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": sequence("normalizers", *[replace("a", "a" * 3)] * 3)},
        {"normalizer": sequence("normalizers", sequence("normalizers", replace("a", "a" * 1000)))},
        {"normalizer": replace("", "a")},
        {"normalizer": replace("a*", "a", "Regex")},
        {"normalizer": {"type": "Prepend", "prepend": "a" * 1000}},
        {"normalizer": table(b"a" * 1000)},
        {"normalizer": {"type": "Unheard"}},
        {"pre_tokenizer": split("(a+)+$")},
        {"pre_tokenizer": split("a+c")},
        {"pre_tokenizer": sequence("pretokenizers", split(r"\d"), split(r"(\w+\s?)*$"))},
        {"pre_tokenizer": {"type": "Unheard"}},
        {"decoder": sequence("decoders", *[replace("a", "a" * 1000)] * 4)},
        {"post_processor": template(TEXT, TEXT)},
        {"post_processor": template(*[{"SpecialToken": {"id": "s", "type_id": 0}}] * 100, TEXT, s=[1])},
        {"post_processor": template({"SpecialToken": {"id": "s", "type_id": 0}}, TEXT, s=[1] * 1000)},
        {"model": WORD_PIECE | {"max_input_chars_per_word": 10**9}},
        {"model": UNIGRAM | {"vocab": [["u", 0.0], ["a" * 5000, -1.0]]}},
        {"model": {"vocab": {"a": 0}}},
        {"model": 5},
        {"pre_tokenizer": [5]},
        {"added_tokens": 5},
    ],
)
def test_doubtful_ones(parts):
    assert not is_plain(tokenizer_json(**parts))


@pytest.mark.parametrize(
    "parts",
    [
        {"model": BPE | {"vocab": {"a": 0, "b": (1 << 32) - 1}, "merges": []}},
        {"added_tokens": [token("<s>", id=1 << 30)]},
        {"model": BPE | {"vocab": {"a": 0, "b" * 100_000: 1}, "merges": []}},
        {"model": UNIGRAM | {"vocab": [["a" * 100_000, 0.0]]}},
        {"added_tokens": [token("<" * 100_000)]},
    ],
)
def test_vocabularies_that_none_has(parts):
    with pytest.raises(CorruptCheckpointError, match="any vocabulary has"):
        check_vocabulary(tokenizer_json(**parts), "tokenizer.json")


def template(num_texts):
    texts = [{"Sequence": {"id": "A", "type_id": 0}}] * num_texts
    return {"type": "TemplateProcessing", "single": texts, "pair": [], "special_tokens": {}}


def replacing(times):
    return {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * times}


@pytest.mark.parametrize(
    "parts",
    [
        {"post_processor": template(1000)},
        {"post_processor": {"type": "Sequence", "processors": [template(40), {"type": "ByteLevel"}, template(25)]}},
        {"normalizer": {"type": "Sequence", "normalizers": [replacing(40), {"type": "NFC"}, replacing(25)]}},
    ],
)
def test_texts_that_would_grow_without_end(parts):
    with pytest.raises(CorruptCheckpointError, match="1000 times as long"):
        check_growth(tokenizer_json(**parts), "tokenizer.json")


@pytest.mark.parametrize(
    "parts",
    [
        *({"post_processor": each} for each in (None, template(0), template(2), {"type": "TemplateProcessing"}, 5)),
        {"normalizer": replacing(60)},
        {"normalizer": {"type": "Replace", "pattern": {"Regex": "(a|b)*"}, "content": "a" * 1000}},
    ],
)
def test_texts_that_may_grow(parts):
    """Or nobody knows: then it is tried."""
    check_growth(tokenizer_json(**parts), "tokenizer.json")
