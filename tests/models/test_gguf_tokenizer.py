"""Tokenizers, chat templates and ends of answers from GGUF files, beside those of transformers."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from gguf_models import write_gguf
from pagoda import LLM, SamplingParams
from pagoda.errors import UnsupportedModelError
from pagoda.models.loader import load_model
from pagoda.models.plain_tokenizer import load_plain_tokenizer
from pagoda.models.quiet import quiet
from pagoda.models.tokenizer import load_tokenizer

TEXTS = ("the pages, in tiers", "  two\n\nlines 12345\t", "à é 中文 🌶", "<|im_start|>it's<|im_end|>", "")
TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
MERGES = ("t h", "th e", "Ġ the", "Ġ t", "p a", "g e", "pa ge", "1 2")
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")


pytestmark = pytest.mark.usefixtures("gguf_read_here")


def by_bytes(pre="qwen2", **more):
    """A vocabulary by bytes, of which the merges make tokens, too."""
    tokens = [*bytes_to_unicode().values(), *(merge.replace(" ", "") for merge in MERGES), *SPECIAL]

    def write(writer):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
        writer.add_token_merges(list(MERGES))
        writer.add_eos_token_id(tokens.index("<|im_end|>"))
        writer.add_add_bos_token(False)
        for key, value in more.items():
            getattr(writer, f"add_{key}")(value)

    return {"more": write, "vocab_size": len(tokens)}


def by_pieces(adds_start=True):
    """A vocabulary of sentencepiece."""
    words = ["▁the", "▁", "the", "th", "t", "h", "e", "a", "p", "g", "s", "pa", "ge", "page"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]

    def write(writer):
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(tokens)
        writer.add_token_scores([0.0] * 259 + [-float(len(words) - len(word)) for word in words])
        writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * len(words))
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
        writer.add_add_bos_token(adds_start)

    return {"more": write, "vocab_size": len(tokens)}


@pytest.mark.parametrize(
    ("architecture", "vocabulary"),
    [("qwen2", by_bytes()), ("llama", by_bytes("llama-bpe")), ("llama", by_pieces()), ("gemma2", by_pieces(False))],
)
def test_ids_are_those_of_transformers(tmp_path, architecture, vocabulary):
    file = write_gguf(tmp_path / "model.gguf", architecture, **vocabulary).file
    with quiet():
        theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
    for ours in (load_tokenizer(file), load_plain_tokenizer(file)):
        for text in TEXTS:
            assert ours(text).input_ids == theirs(text).input_ids, text
    mine = load_tokenizer(file)
    assert (mine.bos_token, mine.eos_token) == (theirs.bos_token, theirs.eos_token)
    for text in TEXTS:
        assert mine.decode(mine(text).input_ids) == theirs.decode(theirs(text).input_ids)


@pytest.mark.parametrize(("pre", "count"), [("gpt-2", 1), ("smollm", 2)])
def test_digits_alone(tmp_path, pre, count):
    """Transformers takes the second for the first."""
    file = write_gguf(tmp_path / "model.gguf", "llama", **by_bytes(pre)).file
    assert len(load_tokenizer(file)("12").input_ids) == count


def test_a_way_to_split_that_nobody_knows_is_refused(tmp_path):
    file = write_gguf(tmp_path / "model.gguf", "llama", **by_bytes("of-nobody")).file
    with pytest.raises(UnsupportedModelError, match=r"of-nobody.*tokenizer\.json"):
        load_tokenizer(file)


def test_a_file_without_a_tokenizer(tmp_path):
    file = write_gguf(tmp_path / "model.gguf").file
    assert load_tokenizer(file) is None
    with LLM(file, kv_cache_memory_bytes=8 << 20) as llm:
        output = llm.generate([[1, 2, 3]], SamplingParams(max_tokens=3, ignore_eos=True))
        assert len(output[0].outputs[0].token_ids) == 3


def test_a_chat_by_the_template_of_the_file(tmp_path):
    file = write_gguf(tmp_path / "model.gguf", "qwen2", **by_bytes(chat_template=TEMPLATE)).file
    with LLM(file, kv_cache_memory_bytes=8 << 20) as llm:
        prompt = llm.chat_prompt([{"role": "user", "content": "the page"}])
        assert llm.tokenizer.decode(prompt) == "<|im_start|>the page<|im_end|>"
        output = llm.chat([{"role": "user", "content": "the page"}], SamplingParams(max_tokens=4, temperature=0))
        assert output[0].outputs[0].token_ids


def test_what_ends_an_answer(tmp_path):
    """What the file says, and tokens that every model of such a name ends with."""
    written = write_gguf(tmp_path / "model.gguf", "qwen2", **by_bytes())
    tokenizer = load_tokenizer(written.file)
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert load_model(written.file).eos_token_ids == {*ends}


def test_how_to_sample(tmp_path):
    def write(writer):
        by_bytes()["more"](writer)
        writer.add_float32("general.sampling.temp", 0.5)
        writer.add_int32("general.sampling.top_k", 20)

    file = write_gguf(tmp_path / "model.gguf", "qwen2", more=write, vocab_size=by_bytes()["vocab_size"]).file
    assert load_model(file).generation.sampling == {"temperature": 0.5, "top_k": 20}


def test_files_beside_win(tmp_path):
    written = write_gguf(tmp_path / "model.gguf", "qwen2", **by_bytes(chat_template=TEMPLATE))
    other = write_gguf(tmp_path / "other.gguf", "qwen2", **by_bytes("gpt-2")).file
    load_tokenizer(other).save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("mine")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 7}))
    other.unlink()
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.chat_template == "mine"
    assert 7 in load_model(written.file).eos_token_ids
    (tmp_path / "chat_template.jinja").write_text("another")
    assert load_tokenizer(tmp_path).chat_template == "another"
