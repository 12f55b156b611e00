"""Text that reads like a special token, or is one that was added, is spelled in ordinary tokens, by any tokenizer."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pagoda import LLM, FinishReason, SamplingParams, StructuredOutputs
from pagoda.errors import StructuredOutputError
from pagoda.llm import EMBEDDED_MODEL
from pagoda.structured.compiler import GrammarCompiler

SPECIAL = ("<s>", "</s>", "<|user|>", "[INST]", "<\uff5cend▁of▁turn\uff5c>")
ADDED = ("<think>", "</tool_call>", "hello_world", "  ", "[TOOL]", "é日", "lo")
TEXTS = (*SPECIAL, *ADDED, "say <s>, </s> or <think>hello_world</think>", "<|user|><|user|>")
LETTERS = sorted({letter for text in (*TEXTS, '"', "the sea") for letter in text if letter != " "})
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def with_tokens(core: Tokenizer) -> Any:
    core.add_special_tokens([AddedToken(each, normalized=False, special=True) for each in SPECIAL])
    core.add_tokens([AddedToken(each, normalized=False, special=False) for each in ADDED])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


def embedded() -> Any:
    return with_tokens(AutoTokenizer.from_pretrained(EMBEDDED_MODEL).backend_tokenizer)


def byte_level_with_a_space_before() -> Any:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(["<|user|> hello, user, say the sea"] * 5, trainer)
    return with_tokens(core)


def byte_fallback_core() -> Tokenizer:
    """As Llama 2: spaces are written by a normalizer, and letters that are no pieces in bytes."""
    pieces = ["<unk>", "<s>", "</s>", *BYTES, "▁", *"<>/|user", "us", "er", "user", "<s", "▁<"]
    merges = [("u", "s"), ("e", "r"), ("us", "er"), ("<", "s"), ("▁", "<")]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    core = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    core.decoder = decoders.Sequence(steps)
    return core


def byte_fallback() -> Any:
    return with_tokens(byte_fallback_core())


def unmarked_end() -> Any:
    """Its end is a piece like others, as far as it says."""
    return PreTrainedTokenizerFast(tokenizer_object=byte_fallback_core())


def metaspace() -> Any:
    """As T5: names of special tokens are among the pieces, and score best."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("▁", -2.0), ("▁the", -3.0)]
    core = Tokenizer(models.Unigram([*pieces, *((letter, -5.0) for letter in LETTERS if letter != "▁")], unk_id=0))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    return with_tokens(core)


KINDS = (embedded, byte_level_with_a_space_before, byte_fallback, unmarked_end, metaspace)
FORMS: dict[str, Callable[[str], StructuredOutputs]] = {
    "choice": lambda text: StructuredOutputs(choice=[text]),
    "choices": lambda text: StructuredOutputs(choice=[text, text + "!"]),
    "const": lambda text: StructuredOutputs(json={"const": text}),
    "enum": lambda text: StructuredOutputs(json={"enum": [text, text + "er"]}),
    "regex": lambda text: StructuredOutputs(regex=re.escape(text).replace(r"\ ", " ")),
    "lark": lambda text: StructuredOutputs(grammar=f"start: {json.dumps(text)}"),
}


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.__name__)
def compiled(request: pytest.FixtureRequest) -> Iterator[tuple[Any, GrammarCompiler, set[int]]]:
    """A tokenizer, a compiler for it, and the tokens that must not be in any text."""
    tokenizer = request.param()
    end = tokenizer.convert_tokens_to_ids("</s>")
    grammars = GrammarCompiler(tokenizer, len(tokenizer), frozenset({end}))
    yield tokenizer, grammars, {*tokenizer.all_special_ids, end}
    grammars.close()


def written(matcher: Any, size: int, choose: random.Random) -> list[int]:
    """Any of the outputs that a grammar allows."""
    tokens = []
    while not matcher.is_done:
        logits = torch.zeros(size)
        matcher.mask(logits)
        allowed = logits.isfinite().nonzero().flatten().tolist()
        tokens.append(choose.choice(allowed))
        matcher.push(tokens[-1])
    return tokens


def text_of(tokenizer: Any, tokens: list[int]) -> str:
    """As it goes on from another text."""
    before = tokenizer.encode("user", add_special_tokens=False)
    return tokenizer.decode(before + tokens, skip_special_tokens=True)[len(tokenizer.decode(before)) :]


@pytest.mark.parametrize("form", FORMS)
def test_forced_text_is_written_out(compiled, form):
    tokenizer, grammars, special = compiled
    choose = random.Random(form)
    is_space = "▁" not in tokenizer.decode(tokenizer.encode("▁"))  # whatever is done
    for text in (each for each in TEXTS if not (is_space and "▁" in each)):
        for _ in range(2):
            tokens = written(grammars.compile(FORMS[form](text)).new(), len(tokenizer), choose)
            if tokens[-1] in special:  # the end, where more could have followed
                assert form in ("choices", "enum")
                tokens.pop()
            assert not special & set(tokens), text
            found = text_of(tokenizer, tokens)
            wanted = json.loads(found) if form in ("const", "enum") else found
            assert wanted in (text, text + "!", text + "er"), found


def test_usual_text_is_written_as_the_tokenizer_would(compiled):
    """A model knows words by their usual tokens."""
    tokenizer, grammars, _ = compiled
    for text in ("user user", "the user says"):
        tokens = written(grammars.compile(StructuredOutputs(choice=[text])).new(), len(tokenizer), random.Random(0))
        usual = tokenizer.encode("user" + text, add_special_tokens=False)
        assert len(tokens) <= len(usual)


def test_text_that_a_tokenizer_cannot_write_is_refused():
    tokenizer = metaspace()
    grammars = GrammarCompiler(tokenizer, len(tokenizer), frozenset({2}))
    with pytest.raises(
        StructuredOutputError, match=r"choice cannot be enforced: the tokenizer has no tokens for 'ÿ▁'\.$"
    ):
        grammars.compile(StructuredOutputs(choice=["ÿ▁"]))
    grammars.close()


def test_tokens_without_bytes_of_their_own_are_refused():
    core = Tokenizer(models.WordPiece({"[UNK]": 0, "[SEP]": 1, "a": 2, "##a": 3}, unk_token="[UNK]"))
    core.decoder = decoders.WordPiece()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="[SEP]")
    grammars = GrammarCompiler(tokenizer, len(tokenizer), frozenset({1}))
    for _ in range(2):
        with pytest.raises(StructuredOutputError, match=r"This tokenizer cannot have .*WordPiece"):
            grammars.compile(StructuredOutputs(regex="a"))
    grammars.close()


def test_an_engine_writes_the_text_of_its_special_tokens():
    with LLM(kv_cache_memory_bytes=64 << 20, num_threads=1) as llm:
        for text in llm.tokenizer.all_special_tokens:
            for form, wanted in FORMS.items():
                params = SamplingParams(temperature=0, max_tokens=40, structured_outputs=wanted(text))
                output = llm.generate("Say:", params)[0].outputs[0]
                assert output.finish_reason is FinishReason.STOP
                found = json.loads(output.text) if form in ("const", "enum") else output.text
                assert found in (text, text + "!", text + "er")
