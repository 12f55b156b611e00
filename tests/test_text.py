"""Streaming text: whole characters only, no part of a stop string, and in the end exactly what the tokens say."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pagoda.text import REPLACEMENT, TextStream

# Letters and words, then accents composed and combined, CJK, an emoji, a joined one, a flag, a ligature, Thai.
PIECES = (
    "a",
    "b",
    "stop",
    " ",
    "\n",
    "é",
    "e\u0301",
    "漢字",
    "한",
    "🙂",
    "👩\u200d🚀",
    "\U0001f1eb\U0001f1f7",
    "ﬁ",
    "ำ",
)
texts = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=20).map("".join),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters=REPLACEMENT), max_size=20),
)


class SmallTokenizer:
    """A byte-level BPE tokenizer so small that most characters take several tokens; `decode` is as in transformers."""

    eos_token_id = 0

    def __init__(self):
        self._core = Tokenizer(models.BPE())
        self._core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._core.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=300,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=["<end>"],
            show_progress=False,
        )
        self._core.train_from_iterator(["stop stop a b ab stopping 🙂 漢字 the end"], trainer)
        self.vocab_size = self._core.get_vocab_size()

    def encode(self, text):
        return self._core.encode(text).ids

    def decode(self, tokens, skip_special_tokens, clean_up_tokenization_spaces):
        assert not clean_up_tokenization_spaces
        return self._core.decode(tokens, skip_special_tokens)


@pytest.fixture(scope="module")
def tokenizer():
    return SmallTokenizer()


def run(stream, tokens):
    """What `take` returns after each token until a stop string, and at the end."""
    taken = []
    for token in tokens:
        matched = stream.push(token)
        taken.append(stream.take())
        if matched is not None:
            break
    stream.finish()
    taken.append(stream.take())
    return taken


class TestWholeText:
    @settings(max_examples=80)
    @given(prompt=texts, text=texts)
    def test_the_parts_add_up_to_the_text(self, tokenizer, prompt, text):
        stream = TextStream(tokenizer, tokenizer.encode(prompt))
        assert "".join(run(stream, tokenizer.encode(text))) == text == stream.text

    @settings(max_examples=80)
    @given(prompt=texts, text=texts)
    def test_a_character_appears_whole_or_not_at_all(self, tokenizer, prompt, text):
        stream = TextStream(tokenizer, tokenizer.encode(prompt))
        assert not any(REPLACEMENT in part for part in run(stream, tokenizer.encode(text)))

    @settings(max_examples=80)
    @given(prompt=texts, data=st.data())
    def test_any_tokens_add_up_to_what_they_decode_to(self, tokenizer, prompt, data):
        """Also those that are no text: bytes that never make a character."""
        tokens = data.draw(st.lists(st.integers(1, tokenizer.vocab_size - 1), max_size=30))
        stream = TextStream(tokenizer, tokenizer.encode(prompt))
        assert "".join(run(stream, tokens)) == tokenizer.decode(tokens, True, False)

    def test_bytes_that_never_make_a_character_show_at_the_end(self, tokenizer):
        stream = TextStream(tokenizer, [])
        assert run(stream, tokenizer.encode("né")[:-1]) == ["n", "", REPLACEMENT]

    @pytest.mark.parametrize(("skip", "expected"), [(True, "ab"), (False, "a<end>b")])
    def test_special_tokens_show_if_asked_for(self, tokenizer, skip, expected):
        stream = TextStream(tokenizer, [], skip_special_tokens=skip)
        tokens = [*tokenizer.encode("a"), tokenizer.eos_token_id, *tokenizer.encode("b")]
        assert "".join(run(stream, tokens)) == expected


def first_stop(text, stops):
    """(start, stop string) of the one that is complete first; of those that end together, the longest."""
    ends = [(text.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    return (min(ends)[0] + min(ends)[1], min(ends)[2]) if ends else None


class TestStopStrings:
    @pytest.mark.parametrize(("include", "expected"), [(False, "one "), (True, "one stop")])
    def test_text_ends_before_or_after_the_stop_string(self, tokenizer, include, expected):
        stream = TextStream(tokenizer, [], stop=["stop"], include_stop=include)
        assert "".join(run(stream, tokenizer.encode("one stop two"))) == expected == stream.text

    def test_push_names_the_stop_string(self, tokenizer):
        stream = TextStream(tokenizer, [], stop=["x", "b"])
        assert [stream.push(token) for token in tokenizer.encode("a b")][-1] == "b"

    def test_what_may_become_a_stop_string_is_held_back_and_then_released(self, tokenizer):
        stream = TextStream(tokenizer, [], stop=["xyz"])
        parts = []
        for character in "axyxq":
            assert stream.push(*tokenizer.encode(character)) is None
            parts.append(stream.take())
        assert parts == ["a", "", "", "xy", "xq"]

    def test_what_is_held_back_at_the_end_is_released(self, tokenizer):
        stream = TextStream(tokenizer, [], stop=["xyz"])
        assert run(stream, tokenizer.encode("axy"))[-1] == "xy"

    def test_stop_strings_are_not_looked_for_in_the_prompt(self, tokenizer):
        stream = TextStream(tokenizer, tokenizer.encode("stop"), stop=["stop", "pa"])
        assert "".join(run(stream, tokenizer.encode("a"))) == "a"

    def test_a_stop_string_that_comes_too_early_does_not_count_later(self, tokenizer):
        stream = TextStream(tokenizer, [], stop=["x"])
        for character in "xa":
            assert stream.push(*tokenizer.encode(character), may_stop=False) is None
        assert stream.push(*tokenizer.encode("b")) is None
        assert stream.push(*tokenizer.encode("x")) == "x"
        assert stream.take() == "xab"

    def test_a_stop_string_inside_one_token_ends_the_text_where_it_is_complete(self, tokenizer):
        token = tokenizer.encode("stop")
        assert len(token) == 1
        stream = TextStream(tokenizer, [], stop=["stop", "t"])
        assert stream.push(*token) == "t"
        assert stream.text == "s"

    @settings(max_examples=120)
    @given(
        text=st.text("abstop🙂é", max_size=30),
        stops=st.lists(st.text("abstop🙂é", min_size=1, max_size=4), min_size=1, max_size=3),
        include=st.booleans(),
    )
    def test_text_ends_at_the_first_stop_string_however_it_is_cut_into_tokens(self, tokenizer, text, stops, include):
        found = first_stop(text, stops)
        expected = text if found is None else text[: found[0]] + found[1] * include
        whole = TextStream(tokenizer, [], stops, include)
        assert "".join(run(whole, tokenizer.encode(text))) == expected
        spelled = TextStream(tokenizer, [], stops, include)
        assert "".join(run(spelled, [t for c in text for t in tokenizer.encode(c)])) == expected

    @settings(max_examples=120)
    @given(text=st.text("ab", max_size=20), stop=st.text("ab", min_size=1, max_size=5))
    def test_no_part_of_a_stop_string_is_ever_shown(self, tokenizer, text, stop):
        assume(stop in text)
        shown = "".join(run(TextStream(tokenizer, [], [stop]), tokenizer.encode(text)))
        assert shown == text[: text.find(stop)]
