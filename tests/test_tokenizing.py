"""What a tokenizer raises is a RequestError, also what is no Exception; Ctrl-C is Ctrl-C."""

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pagoda.detokenizer import Detokenizer
from pagoda.errors import RequestError
from pagoda.tokenizing import decode, encode


@pytest.fixture(scope="module")
def panicking():
    """A tokenizer whose regular expression takes too long, and whose decoder looks beyond the end of a text."""
    raw = Tokenizer(models.WordLevel({"a": 0, " ": 1}, unk_token="a"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex("(a+)+$"), "isolated")
    raw.decoder = decoders.Strip(" ", 0, 5)
    return PreTrainedTokenizerFast(tokenizer_object=raw)


class Interrupted:
    def __call__(self, text):
        raise KeyboardInterrupt

    def decode(self, tokens, **options):
        raise KeyboardInterrupt


def test_a_panic_is_an_error_of_the_request(panicking):
    with pytest.raises(RequestError, match=r"fails at this text .*give token ids"):
        encode(panicking, 40 * "a" + "b")
    with pytest.raises(RequestError, match="fails at the text of these tokens"):
        decode(panicking, [1])
    with pytest.raises(RequestError, match="fails at the text of these tokens"):
        Detokenizer(panicking, [0]).push(1)


def test_what_else_a_tokenizer_raises_is_too(panicking):
    with pytest.raises(RequestError, match="OverflowError"):
        decode(panicking, [-1])


def test_an_interrupt_passes():
    with pytest.raises(KeyboardInterrupt):
        encode(Interrupted(), "a")
    with pytest.raises(KeyboardInterrupt):
        decode(Interrupted(), [0])
