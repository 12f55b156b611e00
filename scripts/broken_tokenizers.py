"""Ways to break the tokenizer of a checkpoint: its parts, vocabulary and settings, and the chat template."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from broken_values import any_value, change, shown

PATTERNS = (
    *("(a+)+$", "(a|a)*$", r"(\w+\s?)*$", "a*a*c", "a+c", "", "(", r"\p{L}+|\s+", "[", "a{1,99999}", "(?<=a)b", "."),
)
REPLACED = ("a", " ", "▁", "")
CHARACTER_TABLES = ("AAAA", "BAAAAP////8=", "x", "")
IDS = (0, 1, 2**22, 2**32 - 1, 2**32, 10**6, -1, "x", 1.5)
PIECES = ("", "b" * 100_000, "x", " ")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
TEXT = {"Sequence": {"id": "A", "type_id": 0}}
PADDING = {"direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "a"}
TRUNCATION = {"direction": "Right", "strategy": "LongestFirst", "stride": 0}
PARTS = ("normalizer", "pre_tokenizer", "decoder", "post_processor", "added_tokens", "padding", "truncation", "model")
SETTINGS = (
    *("tokenizer_class", "tokenizer_file", "vocab_file", "added_tokens_decoder", "extra_special_tokens", "init_inputs"),
    *("auto_map", "bos_token", "eos_token", "chat_template", "model_max_length", "add_bos_token", "backend"),
    *("fast_tokenizer_files", "post_processor", "tokenizer_padding", "split_special_tokens", "padding_side"),
)
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "vocab_file", "x")
TEMPLATES = (
    *("", "{{", "{% for %}", "{{ messages[5].content }}", "{{ raise_exception('no') }}", "{{ 1/0 }}", "\ud800"),
    *("{{ messages.__class__ }}", "{{ ''.__class__.__mro__ }}", "{% include 'x' %}", "{{ undefined.x }}"),
    *("{{ messages }}" * 1000, "{{ 'a' * (2*10**9) }}", "{% for i in range(10**9) %}{% endfor %}"),
    *("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{% set x = 'a' * 10**5 %}{{ x * 10**5 }}"),
)


def anything(directory: Path, random: Random) -> str:
    return change(directory / "tokenizer.json", random, PARTS)


def parts(directory: Path, random: Random) -> str:
    """Parts that do harm, or look as if."""
    file = directory / "tokenizer.json"
    values = json.loads(file.read_text())
    part, value = random.choice((_normalizer, _pre_tokenizer, _decoder, _post_processor, _length))(random)
    file.write_text(json.dumps(values | {part: value}))
    return f"tokenizer.json: {part} = {shown(value)}"


def _normalizer(random: Random) -> tuple[str, Any]:
    by_pattern = {"type": "Replace", "pattern": {"Regex": random.choice(PATTERNS)}, "content": "aa"}
    by_table = {"type": "Precompiled", "precompiled_charsmap": random.choice(CHARACTER_TABLES)}
    replaced = {"type": "Sequence", "normalizers": [_replace(random)] * random.choice((1, 2, 4))}
    return "normalizer", random.choice((by_pattern, by_table, replaced))


def _replace(random: Random) -> dict[str, Any]:
    content = "a" * random.choice((0, 1, 3, 1000))
    return {"type": "Replace", "pattern": {"String": random.choice(REPLACED)}, "content": content}


def _pre_tokenizer(random: Random) -> tuple[str, Any]:
    pattern, is_inverted = random.choice(PATTERNS), random.random() < 0.2
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": is_inverted}
    several = {"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel", "use_regex": True}]}
    return "pre_tokenizer", random.choice((split, several))


def _decoder(random: Random) -> tuple[str, Any]:
    return "decoder", {"type": "Sequence", "decoders": [_replace(random)] * random.choice((1, 2, 4))}


def _post_processor(random: Random) -> tuple[str, Any]:
    texts = [TEXT] * random.choice((0, 1, 2, 1000))
    return "post_processor", {"type": "TemplateProcessing", "single": texts, "pair": [], "special_tokens": {}}


def _length(random: Random) -> tuple[str, Any]:
    padding = PADDING | {"strategy": {"Fixed": 10**9}}
    return random.choice(
        (("padding", padding), ("truncation", TRUNCATION | {"max_length": random.choice((0, 1, 10**9))}))
    )


def vocabulary(directory: Path, random: Random) -> str:
    file = directory / "tokenizer.json"
    values = json.loads(file.read_text())
    pieces, id = values["model"]["vocab"], random.choice(IDS)
    name = random.choice([*pieces])
    if random.random() < 0.5:
        pieces[random.choice((name, *PIECES))] = id
    else:
        values["added_tokens"].append({"id": id, "content": name, "special": True} | dict.fromkeys(FLAGS, False))
    file.write_text(json.dumps(values))
    return f"tokenizer.json: {name!r} has the id {id}"


def settings(directory: Path, random: Random) -> str:
    return change(directory / "tokenizer_config.json", random, SETTINGS)


def special_tokens(directory: Path, random: Random) -> str:
    values = {random.choice(SPECIAL): any_value(random)}
    (directory / "special_tokens_map.json").write_text(json.dumps(values))
    return f"special_tokens_map.json: {shown(values)}"


def template(directory: Path, random: Random) -> str:
    text = random.choice(TEMPLATES)
    (directory / "chat_template.jinja").write_bytes(text.encode(errors="surrogatepass"))
    return f"chat_template.jinja: {shown(text)}"
