"""The texts of single tokens are those that they have in a text of many."""

import pytest

from pagoda.server.answered.token_text import TokenTexts
from pagoda.server.openai.projection import completion_logprobs
from tokenizer_kinds import KINDS


@pytest.fixture(scope="module")
def kinds():
    return {name: KINDS[name]() for name in ("byte_level", "llama", "gemma", "unigram", "word_piece", "word_ends")}


@pytest.mark.parametrize("name", ["byte_level", "llama", "gemma", "unigram", "word_piece", "word_ends"])
@pytest.mark.parametrize("text", ["the stop, stopping", "don't", "a  b", "naïve 字 🙂🙂", "\ufffd"])
def test_joined_they_are_the_text(kinds, name, text):
    kind = kinds[name]
    before, tokens = kind.encode("a"), kind.encode(text)
    texts = TokenTexts(kind.tokenizer)
    joined = b"".join(texts.bytes(token) for token in [*before, *tokens]).decode()
    assert joined.lstrip() == kind.decode([*before, *tokens], skip_special_tokens=False)


def test_the_bytes_of_a_character_are_told_apart(kinds):
    for name in ("byte_level", "gemma"):
        texts = TokenTexts(kinds[name].tokenizer)
        tokens = kinds[name].encode("ï")
        assert [texts.text(token) for token in tokens] == ["bytes:\\xc3", "bytes:\\xaf"]


def test_special_tokens_have_their_text(kinds):
    for kind in kinds.values():
        texts = TokenTexts(kind.tokenizer)
        assert texts.text(kind.tokenizer.eos_token_id).strip() == "<end>"


def test_a_token_beyond_the_tokenizer_has_no_text(kinds):
    assert TokenTexts(kinds["llama"].tokenizer).bytes(100_000) == b""


def test_text_that_only_looks_like_a_byte_is_text(kinds):
    kind = kinds["word_piece"]
    kind.tokenizer.add_tokens(["<0x41>"])
    [token] = kind.tokenizer.convert_tokens_to_ids(["<0x41>"])
    assert TokenTexts(kind.tokenizer).text(token) == " <0x41>"


def test_offsets_go_on_after_a_character_that_was_begun_before(kinds):
    kind = kinds["gemma"]
    tokens = kind.encode("🙂ab")
    for begun in (1, 2, 3):
        logprobs = completion_logprobs([None] * 6, tokens[begun:], TokenTexts(kind.tokenizer), 7)
        assert logprobs["text_offset"][-2:] == [8, 9]
