"""Ways to break a checkpoint at random: the same ones for the same generator.

Each kind takes a directory and a `random.Random` and changes files in it; it returns what it did, in words.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random

import broken_tokenizers
import broken_weights
from broken_values import LARGE, SMALL, any_value, change, shown

Mutation = Callable[[Path, Random], str]

CONFIG = (
    *("auto_map", "transformers_weights", "configuration_files", "attn_implementation", "experts_implementation"),
    *("fusion_config", "quantization_config", "_name_or_path", "num_labels", "id2label", "torch_dtype", "dtype"),
    *("to_dict", "get_text_config", "attribute_map", "sub_configs", "__class__", "__dict__", "is_encoder_decoder"),
    *("text_config", "per_layer_config", "layer_types", "sliding_window", "rope_scaling", "rope_theta", "model_type"),
    *("num_experts", "num_hidden_layers", "max_position_embeddings", "head_dim", "tokenizer_class", "pretraining_tp"),
    *("return_dict", "output_attentions", "use_cache", "chunk_size_feed_forward", "tie_word_embeddings"),
)
FAMILIES = (
    *(
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
    ),
)
ROTATIONS = ("dynamic", "longrope", "linear", "yarn", "llama3", "default")
ROTATION = (
    *("factor", "original_max_position_embeddings", "rope_theta", "short_factor", "long_factor", "beta_fast"),
    *("low_freq_factor", "high_freq_factor", "partial_rotary_factor", "attention_factor"),
)
GENERATION = (
    *("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens", "min_length", "min_new_tokens"),
    *("eos_token_id", "bos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id", "do_sample"),
    *("forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "no_repeat_ngram_size"),
    *("num_beams", "penalty_alpha", "guidance_scale", "stop_strings", "max_length", "sequence_bias"),
)
LINKS = {"a link to a device": "/dev/zero", "a link to nothing": "nothing"}


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
    return change(directory / "config.json", random, CONFIG)


def _number(directory: Path, random: Random) -> str:
    """A size or count that is too large or too small, under a name that is there."""
    file = directory / "config.json"
    values = json.loads(file.read_text())
    name = random.choice([name for name, value in values.items() if type(value) is int])
    value = random.choice((*LARGE, *SMALL))
    file.write_text(json.dumps(values | {name: value}))
    return f"config.json: {name} = {value}"


def _rotation(directory: Path, random: Random) -> str:
    """How positions are rotated, by settings that are odd or lacking."""
    file = directory / "config.json"
    rope = {name: random.choice((2.0, 64, [1.0] * 4, any_value(random))) for name in random.sample(ROTATION, 3)}
    rope["rope_type"] = random.choice(ROTATIONS)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rope_parameters": rope}))
    return f"config.json: rope_parameters = {shown(rope)}"


def _family(directory: Path, random: Random) -> str:
    file, family = directory / "config.json", random.choice(FAMILIES)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": family}))
    return f"config.json: model_type = {family}"


def _generation(directory: Path, random: Random) -> str:
    file = directory / "generation_config.json"
    values = json.loads(file.read_text()) if file.is_file() else {}
    changed = {name: any_value(random) for name in random.sample(GENERATION, random.randint(1, 3))}
    file.write_text(json.dumps(values | changed))
    return f"generation_config.json: {shown(changed)}"


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
    count, end = random.choice((1, 2, 8, 64)), random.choice((min(len(content), 64), len(content)))
    for _ in range(count):
        content[random.randrange(end)] = random.choice((*b' ",[]{}', 0, 255, random.randrange(256)))
    return count


def _files(directory: Path, random: Random) -> str:
    """A file that is gone, or something else than a file."""
    file = random.choice(sorted(directory.iterdir()))
    file.unlink()
    done = random.choice(("gone", "a directory", "empty", *LINKS))
    if done == "a directory":
        file.mkdir()
    elif done == "empty":
        file.touch()
    elif done in LINKS:
        file.symlink_to(LINKS[done])
    return f"{file.name}: {done}"


# Some stand twice, to come twice as often.
KINDS: tuple[Mutation, ...] = (
    *(_config, _config, _number, _number, _rotation, _family, _generation, _generation, _bytes, _files),
    *(broken_weights.index, broken_weights.header, broken_weights.header, broken_weights.numbers),
    *(broken_tokenizers.anything, broken_tokenizers.parts, broken_tokenizers.parts, broken_tokenizers.vocabulary),
    *(broken_tokenizers.settings, broken_tokenizers.special_tokens, broken_tokenizers.template),
)
