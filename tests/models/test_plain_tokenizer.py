"""Tokenizers without torch and transformers: the ids of every kind are those of transformers' own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from models.tokenizers import replace, tokenizer_json
from pagoda.chat.options import ChatOptions
from pagoda.chat.renderer import ChatRenderer
from pagoda.errors import ConfigError, CorruptCheckpointError, RequestError, UnsupportedModelError
from pagoda.llm import EMBEDDED_MODEL
from pagoda.models.plain_tokenizer import PlainTokenizer, load_plain_tokenizer
from pagoda.models.tokenizer import load_tokenizer
from pagoda.models.tokenizer_description import describe
from pagoda.tokenizing import encode
from tokenizer_kinds import KINDS, SAMPLE

TEXTS = (
    *SAMPLE,
    *("", " ", "  two  spaces ", "\n\n\ttab", "<end>", "a<user> b <end>", "<unk>", "\ufffd\x00", "stop" * 200),
    "def f(x):\n    return {'a': x + 1}  # 中文 à é 🌶 1234567",
)
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def ids(tokenizer, text):
    return [list(encode(tokenizer, text, add_special_tokens=special).input_ids) for special in (True, False)]


@pytest.fixture(scope="module")
def embedded():
    return load_plain_tokenizer(EMBEDDED_MODEL)


@pytest.fixture(scope="module")
def of_transformers():
    return load_tokenizer(EMBEDDED_MODEL)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"ignoring_bytes"}))
@pytest.mark.parametrize("splits_special_tokens", [False, True])
def test_every_kind_gives_the_same_ids(kind, splits_special_tokens):
    tokenizer = KINDS[kind]().tokenizer
    tokenizer.split_special_tokens = splits_special_tokens
    plain = PlainTokenizer(describe(tokenizer))
    assert [ids(plain, text) for text in TEXTS] == [ids(tokenizer, text) for text in TEXTS]
    assert plain.special_tokens_map == tokenizer.special_tokens_map


def test_settings_that_add_cut_and_fill(tmp_path):
    """Tokens around a text come along; what would cut or fill it is without effect, as it is in transformers."""
    raw = Tokenizer(models.WordLevel({"[UNK]": 0, "pages": 1, "in": 2}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.enable_padding(length=8)
    raw.enable_truncation(2)
    made = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]", bos_token="<s>", add_bos_token=True)
    made.save_pretrained(tmp_path)
    tokenizer, plain = load_tokenizer(tmp_path), load_plain_tokenizer(tmp_path)
    assert ids(plain, "pages in pages") == ids(tokenizer, "pages in pages") == [[3, 1, 2, 1], [1, 2, 1]]


def test_a_directory_gives_what_transformers_makes_of_it(embedded, of_transformers):
    assert [ids(embedded, text) for text in TEXTS] == [ids(of_transformers, text) for text in TEXTS]
    assert embedded.special_tokens_map == of_transformers.special_tokens_map


@pytest.mark.parametrize("options", [{}, {"add_generation_prompt": False}, {"chat_template": "{{ messages }}"}])
def test_conversations_become_the_same_text(embedded, of_transformers, options):
    messages = [{"role": "user", "content": "Pages?"}, {"role": "assistant", "content": "In tiers."}]
    with_torch, without = ChatRenderer(of_transformers, 1000), ChatRenderer(embedded, 1000)
    try:
        texts = [each.render(messages, ChatOptions(**options)) for each in (with_torch, without)]
    finally:
        with_torch.close()
        without.close()
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    "templates", [None, "one", {"default": "two"}, {"default": "two", "tool_use": "three"}, {"x": "four"}]
)
@pytest.mark.parametrize("wanted", [None, "x", "{{ own }}", ""])
@pytest.mark.parametrize("tools", [None, [TOOL]])
def test_templates_are_chosen_as_transformers_does(templates, wanted, tools):
    tokenizer = KINDS["byte_level"]().tokenizer
    tokenizer.chat_template = templates

    def chosen(each):
        try:
            return each.get_chat_template(wanted, tools=tools)
        except ValueError:
            return None

    assert chosen(PlainTokenizer(describe(tokenizer))) == chosen(tokenizer)


def test_what_is_a_program_is_refused():
    with pytest.raises(UnsupportedModelError, match="ByT5Tokenizer is a program of transformers"):
        describe(ByT5Tokenizer(extra_ids=0))


def test_errors_of_the_files_are_those_of_the_tokenizer(tmp_path):
    assert load_plain_tokenizer(tmp_path) is None
    with pytest.raises(ConfigError, match="tokenizer is a list"):
        load_plain_tokenizer([])
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_json(decoder=replace("aa", "a" * 1000))))
    with pytest.raises(CorruptCheckpointError) as expected:
        load_tokenizer(tmp_path)
    with pytest.raises(CorruptCheckpointError) as found:
        load_plain_tokenizer(tmp_path)
    assert str(found.value) == str(expected.value)


def test_a_panic_is_an_error_of_the_request():
    raw = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex("(a+)+$"), "isolated")
    plain = PlainTokenizer(describe(PreTrainedTokenizerFast(tokenizer_object=raw)))
    with pytest.raises(RequestError, match="fails at this text"):
        encode(plain, 40 * "a" + "b")


def test_it_needs_neither_torch_nor_transformers():
    program = f"""
import sys
from pagoda.chat.options import ChatOptions
from pagoda.chat.renderer import ChatRenderer
from pagoda.models.plain_tokenizer import load_plain_tokenizer
from pagoda.tokenizing import encode
tokenizer = load_plain_tokenizer({str(EMBEDDED_MODEL)!r})
renderer = ChatRenderer(tokenizer, 1000)
text = renderer.render([{{"role": "user", "content": "Pages?"}}], ChatOptions())
assert encode(tokenizer, text, add_special_tokens=False).input_ids
renderer.close()
sys.exit(bool({{"torch", "transformers"}} & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
