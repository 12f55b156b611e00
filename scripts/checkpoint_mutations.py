"""Ways to break the files of a checkpoint, at random: the same ones for the same generator.

Each kind takes a directory and a `random.Random` and changes files in it; it returns what it did, in words.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

Mutation = Callable[[Path, Random], str]

LARGE = (10**4, 10**5, 10**6, 10**7, 10**9, 10**12, 2**31, 2**31 - 1, 2**63, 2**64, -(2**63))
SMALL = (-1, 0, 1, 2, 3, 7, 64, 1000)
ODD: tuple[Any, ...] = (
    *(None, True, False, 0.5, -0.5, 1e7, 1e308, float("nan"), float("inf"), -float("inf")),
    *("", "x", "10", "10000000", "../x", "/dev/zero", "a" * 10_000, "\0", "\ud800", "load", "auto", "float8_e4m3fn"),
    *([], {}, [None], [[]], [[1, 2], [3]], ["x"], {"x": 1}, {"0": None}, [1.5], [-1], [10**9], [True]),
)
STEERING = (
    *("auto_map", "transformers_weights", "configuration_files", "attn_implementation", "experts_implementation"),
    *("fusion_config", "quantization_config", "_name_or_path", "num_labels", "id2label", "torch_dtype", "dtype"),
    *("to_dict", "get_text_config", "attribute_map", "sub_configs", "__class__", "__dict__", "is_encoder_decoder"),
    *(
        "text_config",
        "per_layer_config",
        "layer_types",
        "sliding_window",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
    ),
    *("num_experts", "num_hidden_layers", "max_position_embeddings", "head_dim", "tokenizer_class", "pretraining_tp"),
    *("return_dict", "output_attentions", "use_cache", "chunk_size_feed_forward", "tie_word_embeddings", "model_type"),
)
MODEL_TYPES = (
    "llama",
    "gpt2",
    "gemma3",
    "t5",
    "whisper",
    "mamba",
    "deepseek_v3",
    "vit",
    "clip",
    "encoder-decoder",
    "xlm",
    "blt",
)
PATTERNS = (
    "(a+)+$",
    "(a|a)*$",
    r"(\w+\s?)*$",
    "a*a*c",
    "a+c",
    "",
    "(",
    r"\p{L}+|\s+",
    "[",
    "a{1,99999}",
    "(?<=a)b",
    ".",
)
GENERATION = (
    *("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens", "min_length", "min_new_tokens"),
    *(
        "eos_token_id",
        "bos_token_id",
        "pad_token_id",
        "decoder_start_token_id",
        "forced_bos_token_id",
        "forced_eos_token_id",
    ),
    *("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "no_repeat_ngram_size", "num_beams", "do_sample"),
    *("penalty_alpha", "guidance_scale", "stop_strings", "max_length", "sequence_bias", "encoder_no_repeat_ngram_size"),
)
TEMPLATES = (
    *(
        "",
        "{{",
        "{% for %}",
        "{{ messages[5].content }}",
        "{{ raise_exception('no') }}",
        "{{ 1/0 }}",
        "{{ undefined.x }}",
    ),
    *("{{ messages.__class__ }}", "{{ ''.__class__.__mro__ }}", "{% include 'x' %}", "\ud800", "{{ messages }}" * 1000),
    *(
        "{% set x = namespace(n=0) %}{% for i in range(1000) %}{% set x.n = i %}{% endfor %}{{ x.n }}",
        "{{ 'a' * 100000 }}",
    ),
)


def mutate(directory: Path, random: Random, num_changes: int = 1) -> str:
    """Break one thing, or several."""
    kinds = sorted((random.choice(KINDS) for _ in range(num_changes)), key=lambda kind: kind is _files)  # devices last
    return "; ".join(_mutated(kind, directory, random) for kind in kinds)


def _mutated(kind: Mutation, directory: Path, random: Random) -> str:
    try:
        return kind(directory, random)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OSError):
        return "nothing"  # what it would change is broken already


def _config(directory: Path, random: Random) -> str:
    return _change_json(directory / "config.json", random, STEERING)


def _parts_of_config(directory: Path, random: Random) -> str:
    """A size or count that is too large, under a name that is there."""
    file = directory / "config.json"
    values = json.loads(file.read_text())
    names = [name for name, value in values.items() if isinstance(value, int) and not isinstance(value, bool)]
    name, value = random.choice(names), random.choice((*LARGE, *SMALL))
    file.write_text(json.dumps(values | {name: value}))
    return f"config.json: {name} = {value}"


def _family(directory: Path, random: Random) -> str:
    file, family = directory / "config.json", random.choice(MODEL_TYPES)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": family}))
    return f"config.json: model_type = {family}"


def _generation(directory: Path, random: Random) -> str:
    file = directory / "generation_config.json"
    values = json.loads(file.read_text()) if file.is_file() else {}
    for _ in range(random.randint(1, 3)):
        values[random.choice(GENERATION)] = _value(random)
    file.write_text(json.dumps(values))
    return f"generation_config.json: {_shown(values)}"


def _index(directory: Path, random: Random) -> str:
    file = directory / "model.safetensors.index.json"
    if not file.is_file():
        file.write_text(json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": "model.safetensors"}}))
    values = json.loads(file.read_text())
    names = values["weight_map"]
    name = random.choice([*names])
    names[name] = random.choice(
        (
            "x.bin",
            "../x.safetensors",
            "/dev/zero.safetensors",
            "config.json",
            "",
            None,
            5,
            [],
            ".safetensors",
            *names.values(),
        )
    )
    if random.random() < 0.2:
        (directory / "model.safetensors").unlink(missing_ok=True)
    file.write_text(json.dumps(values))
    return f"index: {name} -> {_shown(names[name])}" + (
        " or else " + _change_json(file, random, ()) if random.random() < 0.3 else ""
    )


def _header(directory: Path, random: Random) -> str:
    file = random.choice(sorted(directory.glob("*.safetensors")))
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    done = random.choice(_HEADER_CHANGES)(header, random)
    text = json.dumps(header).encode()
    if random.random() < 0.1:
        length, done = random.choice((0, 1, 2**62, 10**8, len(text) + 1)), f"{done}, wrong length"
    else:
        length = len(text)
    file.write_bytes(struct.pack("<Q", length) + text + data)
    return f"{file.name}: {done}"


def _header_entry(header: dict[str, Any], random: Random) -> str:
    name = random.choice([key for key in header if key != "__metadata__"])
    key = random.choice(("dtype", "shape", "data_offsets"))
    header[name][key] = random.choice(
        {
            "dtype": ("F64", "F32", "F16", "BF16", "I64", "I8", "BOOL", "U8", "F8_E4M3", "F4", "C64", "x", None),
            "shape": (
                [],
                [0],
                [1] * 70,
                [2**62, 4],
                [-1],
                [0, 2**62],
                [header[name]["shape"]],
                header[name]["shape"][::-1],
                None,
            ),
            "data_offsets": ([0, 0], [0, 2**62], [-1, 1], [4, 0], [0], None),
        }[key]
    )
    return f"{name} {key} = {_shown(header[name][key])}"


def _header_names(header: dict[str, Any], random: Random) -> str:
    name = random.choice([key for key in header if key != "__metadata__"])
    entry = header.pop(name)
    new = random.choice(("x", "", name + ".1000000", "a" * 5000, name.replace("0", "1"), "\ud800", None))
    if new is not None:
        header[new] = entry
    return f"{name} is now {_shown(new)}"


_HEADER_CHANGES = (_header_entry, _header_names)


def _bytes(directory: Path, random: Random) -> str:
    """Bytes of any file, wherever they are."""
    file = random.choice(sorted(each for each in directory.iterdir() if each.is_file()))
    content = bytearray(file.read_bytes())
    if random.random() < 0.3:
        del content[random.randrange(len(content) + 1) :]
        done = f"cut after {len(content)} bytes"
    else:
        done = f"{_flip(content, random)} bytes changed"
    file.write_bytes(content)
    return f"{file.name}: {done}"


def _flip(content: bytearray, random: Random) -> int:
    count = random.choice((1, 2, 8, 64))
    end = random.choice((min(len(content), 64), len(content)))
    for _ in range(count if end else 0):
        content[random.randrange(end)] = random.choice((0, 32, 34, 44, 91, 93, 123, 125, 255, random.randrange(256)))
    return count


def _weights(directory: Path, random: Random) -> str:
    """Numbers that are none, or very large."""
    file = random.choice(sorted(directory.glob("*.safetensors")))
    content = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    value = struct.pack("<f", random.choice((float("nan"), float("inf"), 3e38, -3e38, 1e-40)))
    for _ in range(random.choice((1, 100))):
        place = start + random.randrange(max((len(content) - start) // 4, 1)) * 4
        content[place : place + 4] = value
    file.write_bytes(content)
    return f"{file.name}: {_shown(struct.unpack('<f', value))} in it"


def _tokenizer(directory: Path, random: Random) -> str:
    return _change_json(
        directory / "tokenizer.json", random, ("normalizer", "decoder", "added_tokens", "padding", "truncation")
    )


def _tokenizer_parts(directory: Path, random: Random) -> str:
    """Parts that do harm, or look as if."""
    file = directory / "tokenizer.json"
    values, pattern = json.loads(file.read_text()), random.choice(PATTERNS)
    replace = {
        "type": "Replace",
        "pattern": {"String": random.choice(("a", " ", "▁", ""))},
        "content": "a" * random.choice((0, 1, 3, 1000)),
    }
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": random.random() < 0.2}
    text = [{"Sequence": {"id": "A", "type_id": 0}}] * random.choice((0, 1, 2, 1000))
    part, value = random.choice(
        (
            ("normalizer", {"type": "Sequence", "normalizers": [replace] * random.choice((1, 2, 4))}),
            ("normalizer", {"type": "Replace", "pattern": {"Regex": pattern}, "content": "aa"}),
            (
                "normalizer",
                {"type": "Precompiled", "precompiled_charsmap": random.choice(("AAAA", "BAAAAP////8=", "x", ""))},
            ),
            ("decoder", {"type": "Sequence", "decoders": [replace] * random.choice((1, 2, 4))}),
            ("pre_tokenizer", split),
            ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel", "use_regex": True}]}),
            ("post_processor", {"type": "TemplateProcessing", "single": text, "pair": [], "special_tokens": {}}),
            (
                "padding",
                {
                    "strategy": {"Fixed": 10**9},
                    "direction": "Right",
                    "pad_to_multiple_of": None,
                    "pad_id": 0,
                    "pad_type_id": 0,
                    "pad_token": "a",
                },
            ),
            (
                "truncation",
                {
                    "direction": "Right",
                    "max_length": random.choice((0, 1, 10**9)),
                    "strategy": "LongestFirst",
                    "stride": 0,
                },
            ),
        )
    )
    file.write_text(json.dumps(values | {part: value}))
    return f"tokenizer.json: {part} = {_shown(value)}"


def _vocabulary(directory: Path, random: Random) -> str:
    file = directory / "tokenizer.json"
    values = json.loads(file.read_text())
    vocabulary, id = values["model"]["vocab"], random.choice((0, 1, 2**22, 2**32 - 1, 2**32, 10**6, -1, "x", 1.5))
    name = random.choice([*vocabulary])
    if random.random() < 0.5:
        vocabulary[random.choice((name, "", "b" * 100_000, "x", " "))] = id
    else:
        values["added_tokens"].append(
            {"id": id, "content": name, "special": True}
            | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        )
    file.write_text(json.dumps(values))
    return f"tokenizer.json: {name!r} has the id {id}"


def _tokenizer_config(directory: Path, random: Random) -> str:
    names = (
        "tokenizer_class",
        "tokenizer_file",
        "vocab_file",
        "added_tokens_decoder",
        "extra_special_tokens",
        "init_inputs",
        "auto_map",
    )
    more = (
        "bos_token",
        "eos_token",
        "chat_template",
        "model_max_length",
        "add_bos_token",
        "fast_tokenizer_files",
        "backend",
        "post_processor",
    )
    return _change_json(directory / "tokenizer_config.json", random, names + more)


def _special_tokens(directory: Path, random: Random) -> str:
    values = {random.choice(("bos_token", "eos_token", "unk_token", "pad_token", "vocab_file", "x")): _value(random)}
    (directory / "special_tokens_map.json").write_text(json.dumps(values))
    return f"special_tokens_map.json: {_shown(values)}"


def _template(directory: Path, random: Random) -> str:
    template = random.choice(TEMPLATES)
    (directory / "chat_template.jinja").write_text(template, errors="surrogatepass")
    return f"chat_template.jinja: {_shown(template)}"


def _files(directory: Path, random: Random) -> str:
    """A file that is gone, or something else than a file."""
    file = random.choice(sorted(directory.iterdir()))
    file.unlink()
    done = random.choice(("gone", "a directory", "a link to a device", "a link to itself", "empty"))
    if done == "a directory":
        file.mkdir()
    elif done == "empty":
        file.touch()
    elif done != "gone":
        file.symlink_to("/dev/zero" if "device" in done else file)
    return f"{file.name}: {done}"


KINDS: tuple[Mutation, ...] = (
    *(
        _config,
        _config,
        _parts_of_config,
        _parts_of_config,
        _family,
        _generation,
        _generation,
        _index,
        _header,
        _header,
    ),
    *(
        _bytes,
        _weights,
        _tokenizer,
        _tokenizer_parts,
        _tokenizer_parts,
        _vocabulary,
        _tokenizer_config,
        _tokenizer_config,
    ),
    *(_special_tokens, _template, _files),
)


def _change_json(file: Path, random: Random, names: tuple[str, ...]) -> str:
    """A value anywhere in `file`, or one of `names` that may not be there."""
    values = json.loads(file.read_text()) if file.is_file() else {}
    if not isinstance(values, dict):
        values = {}
    place: Any = values
    path = []
    while True:
        keys: list[Any] = [*place] if isinstance(place, dict) else [*range(len(place))]
        if place is values and names and random.random() < 0.4:
            keys = [random.choice(names)]
        if not keys:
            keys = ["x"] if isinstance(place, dict) else [0]
        key = random.choice(keys)
        path.append(str(key)[:50])
        inner = place.get(key) if isinstance(place, dict) else (place[key] if place else None)
        if isinstance(inner, (dict, list)) and inner and random.random() < 0.7:
            place = inner
            continue
        return f"{file.name}: {'.'.join(path)} {_set(values, file, place, key, random)}"


def _set(values: Any, file: Path, place: Any, key: Any, random: Random) -> str:
    if random.random() < 0.15 and key in (place if isinstance(place, dict) else range(len(place))):
        del place[key]
        done = "removed"
    else:
        value = _value(random)
        if isinstance(place, dict) or place:
            place[key] = value
        else:
            place.append(value)
        done = f"= {_shown(value)}"
    file.write_text(json.dumps(values))
    return done


def _value(random: Random) -> Any:
    pool = random.choice((LARGE, SMALL, ODD, ODD))
    if random.random() < 0.03:
        return [random.choice((1, "x", "full_attention"))] * random.choice((10**4, 10**5, 10**6))
    if random.random() < 0.02:
        deep: Any = 1
        for _ in range(500):
            deep = {"a": deep} if random.random() < 0.5 else [deep]
        return deep
    return random.choice(pool)


def _shown(value: Any) -> str:
    return f"{value!r:.80}"
