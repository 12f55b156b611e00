"""The tokenizer of a checkpoint directory: found, absent or broken."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from pagoda.errors import CorruptCheckpointError
from pagoda.models.tokenizer import load_tokenizer


def test_a_saved_tokenizer_is_loaded(tmp_path):
    words = Tokenizer(WordLevel({"[UNK]": 0, "pages": 1, "in": 2, "tiers": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path)("pages in tiers")["input_ids"] == [1, 2, 3]


def test_a_directory_without_one_gives_none(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert load_tokenizer(tmp_path) is None


def test_a_broken_one_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CorruptCheckpointError, match="tokenizer"):
        load_tokenizer(tmp_path)
