"""Pieces of text add up to the one text of all tokens, for tokenizers of every kind and wherever the prompt ends."""

from itertools import takewhile

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pagoda.detokenizer import LONGEST_CHARACTER, REPLACEMENT, Detokenizer
from pagoda.tokenizing import special_tokens
from tokenizer_kinds import KINDS, CleaningTokenizer

# Letters, words and spaces, then accents composed and combined, CJK, emoji, joined ones, flags, ligatures, Thai,
# U+FFFD itself and the texts of special tokens.
PIECES = (
    *("a", "b", "stop", "the ", " ", "  ", "\n", ", ", ".", "don't"),
    *("é", "e\u0301", "漢字", "한", "🙂", "👩\u200d🚀", "\U0001f1eb\U0001f1f7", "ﬁ", "ำ"),
    *(REPLACEMENT, "<end>", "<user>"),
)
texts = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


@pytest.fixture(scope="module")
def kinds():
    return {name: build() for name, build in KINDS.items()}


def pieces(tokenizer, prompt, tokens, skip_special_tokens=True):
    """What each token settles, and the end."""
    detokenizer = Detokenizer(tokenizer, prompt, skip_special_tokens)
    return [*map(detokenizer.push, tokens), detokenizer.finish()]


def text_after(kind, prompt, tokens, skip_special_tokens):
    """One text of prompt and tokens but for what the prompt alone shows."""
    alone = kind.decode(prompt, skip_special_tokens)
    whole = kind.decode([*prompt, *tokens], skip_special_tokens)
    return whole[sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(alone, whole, strict=False))) :]


def check_all_cuts(kind, tokens, skip_special_tokens):
    for cut in range(len(tokens) + 1):
        prompt, rest = tokens[:cut], tokens[cut:]
        found = "".join(pieces(kind.tokenizer, prompt, rest, skip_special_tokens))
        assert found == text_after(kind, prompt, rest, skip_special_tokens), (prompt, rest)


@pytest.mark.parametrize("skips", [True, False])
@pytest.mark.parametrize("name", KINDS)
class TestEveryKind:
    @settings(max_examples=25)
    @given(text=texts)
    def test_pieces_add_up_to_one_text_at_every_cut(self, kinds, name, skips, text):
        check_all_cuts(kinds[name], kinds[name].encode(text), skips)

    @settings(max_examples=25)
    @given(data=st.data())
    def test_pieces_of_any_tokens_add_up_to_one_text_at_every_cut(self, kinds, name, skips, data):
        """Also of bytes that are no character."""
        kind = kinds[name]
        tokens = data.draw(st.lists(st.sampled_from(kind.unusual_tokens) | st.sampled_from(kind.tokens), max_size=12))
        assume(not kind.spells_replacement(tokens))
        check_all_cuts(kind, tokens, skips)

    @settings(max_examples=25)
    @given(prompt=texts, data=st.data())
    def test_all_is_shown_at_once_but_what_may_become_a_character(self, kinds, name, skips, prompt, data):
        kind = kinds[name]
        begin = kind.encode("a" + prompt + "a")
        tokens = data.draw(texts.map(kind.encode) | st.lists(st.sampled_from(kind.tokens), max_size=20))
        assume(not kind.spells_replacement(tokens))
        shown = ""
        for number, piece in enumerate(pieces(kind.tokenizer, begin, tokens, skips)[:-1], start=1):
            shown += piece
            now = text_after(kind, begin, tokens[:number], skips)
            assert now.startswith(shown)
            assert now[len(shown) :] == REPLACEMENT * len(now[len(shown) :])
            assert len(now) - len(shown) < 2 * LONGEST_CHARACTER


class TestBytes:
    """Of the tokenizers that show a run of bytes only if all of it is text."""

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("🙂".encode() * 3, ["", "", "", "🙂"] * 3 + [""]),
            ("🙂".encode()[:-1] + b"a", ["", "", "", "\ufffd\ufffd\ufffda", ""]),
            (b"\x80" + "漢字".encode(), ["", "", "", "\ufffd漢", "", "", "字", ""]),
            ("漢".encode() + b"\x80" + "字".encode(), ["", "", "漢", "", "", "", "\ufffd字", ""]),
            (b"\x80" * 5, ["", "", "", "\ufffd", "\ufffd", "\ufffd\ufffd\ufffd"]),
            ("漢".encode() + b"\x80" * 5, ["", "", "漢", "", "", "", "\ufffd", "\ufffd", "\ufffd\ufffd\ufffd"]),
            ("\ufffd漢".encode() * 2, ["", "", "\ufffd", "", "", "漢"] * 2 + [""]),
        ],
    )
    def test_each_character_is_shown_when_it_is_whole(self, kinds, text, expected):
        kind = kinds["llama"]
        assert pieces(kind.tokenizer, kind.encode("a"), [1 + byte for byte in text]) == expected

    def test_a_wrong_byte_in_a_run_costs_no_space(self, kinds):
        kind = kinds["llama"]
        tokens = [*(1 + byte for byte in "字".encode() + b"\x80"), *kind.encode("the")]
        assert "".join(pieces(kind.tokenizer, kind.encode("a"), tokens)) == "字\ufffd the"


class CountingTokenizer:
    """Counts the tokens that are decoded."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self.num_decoded = 0

    def decode(self, tokens, **options):
        self.num_decoded += len(tokens)
        return self._tokenizer.decode(tokens, **options)


class TestPrompt:
    def test_the_character_that_a_prompt_begins_is_shown_whole(self, kinds):
        tokens = kinds["byte_level"].encode("caf🌶")
        assert "".join(pieces(kinds["byte_level"].tokenizer, tokens[:-2], tokens[-2:])) == "🌶"

    def test_what_the_prompt_shows_of_it_is_not_shown_again(self, kinds):
        tokens = kinds["byte_level"].encode("caf🌶")
        rest = kinds["byte_level"].encode("stop")
        assert "".join(pieces(kinds["byte_level"].tokenizer, tokens[:-2], rest)) == "stop"
        assert pieces(kinds["byte_level"].tokenizer, tokens[:-2], []) == [""]

    @pytest.mark.parametrize("name", ["llama", "unigram", "word_piece"])
    def test_a_space_is_shown_after_any_number_of_special_tokens(self, kinds, name):
        kind = kinds[name]
        prompt = kind.encode("the end" + 40 * "<user>")
        assert "".join(pieces(kind.tokenizer, prompt, kind.encode("the"))) == " the"

    def test_a_prompt_of_special_tokens_alone_shows_nothing(self, kinds):
        kind = kinds["llama"]
        assert "".join(pieces(kind.tokenizer, kind.encode(100 * "<user>"), kind.encode("the"))) == "the"


class TestCost:
    """The same for each token, however many there are."""

    @pytest.mark.parametrize(
        ("name", "tokens"),
        [
            ("byte_level", lambda kind: kind.encode("漢字🙂") * 100),
            ("llama", lambda kind: [1 + byte for byte in "字🙂".encode()] * 150),
            ("llama", lambda kind: kind.encode("<end>") * 1000),
            ("llama", lambda kind: [1 + 0x80] * 1000),
            ("llama", lambda kind: kind.encode(REPLACEMENT)[-1:] * 1000),
            ("llama", lambda _: [5000] * 1000),
            ("byte_level", lambda kind: [kind.encode("字")[0]] * 1000),
            ("word_piece", lambda kind: kind.encode("stopping") * 200),
        ],
    )
    def test_few_tokens_are_decoded_for_each(self, kinds, name, tokens):
        counting = CountingTokenizer(kinds[name].tokenizer)
        output = tokens(kinds[name])
        pieces(counting, kinds[name].encode("a"), output)
        assert counting.num_decoded < 100 * len(output)

    def test_a_long_prompt_is_not_decoded(self, kinds):
        counting = CountingTokenizer(kinds["llama"].tokenizer)
        pieces(counting, kinds["llama"].encode("the end " * 1000), [])
        assert counting.num_decoded < 100


class TestContradictions:
    """A tokenizer that takes back what it said: text that was given out stays, and no word is lost or comes twice."""

    @given(text=st.lists(st.sampled_from(["it", "stop", "'", "s", "the", "don't", "ab"]), max_size=20).map(" ".join))
    def test_only_spaces_differ(self, kinds, text):
        odd, tokens = CleaningTokenizer(kinds["word_piece"]), kinds["word_piece"].encode(text)
        expected = odd.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert "".join(pieces(odd, [], tokens)).replace(" ", "") == expected.replace(" ", "")


@pytest.mark.parametrize("name", KINDS)
@given(text=texts, place=st.integers(0, 12))
def test_special_tokens_are_shown_one_by_one(kinds, name, text, place):
    kind = kinds[name]
    special = special_tokens(kind.tokenizer)
    shown = {token for token in special if kind.tokenizer.convert_ids_to_tokens(token) == "<end>"}
    if not shown:
        pytest.skip("no special tokens")
    tokens = kind.encode(text)
    left = [[token for token in part if token not in special - shown] for part in (tokens[:place], tokens[place:])]
    expected = pieces(kind.tokenizer, *left, skip_special_tokens=False)
    detokenizer = Detokenizer(kind.tokenizer, tokens[:place], shown=shown)
    found = [*map(detokenizer.push, tokens[place:]), detokenizer.finish()]
    assert "".join(found) == "".join(expected)
