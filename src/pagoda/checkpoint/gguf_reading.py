"""Reads the configuration and the tokenizer of a GGUF file by transformers, in a child process, which has torch.

Knows what transformers would read wrongly without a word: how vocabularies by bytes split texts. Writes nothing.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pagoda import errors
from pagoda.checkpoint.failures import is_panic
from pagoda.checkpoint.gguf_config import completed
from pagoda.checkpoint.gguf_description import TOKENIZER, TOKENIZER_CONFIG, TOKENS, VOCABULARY
from pagoda.checkpoint.gguf_files import read_gguf
from pagoda.checkpoint.plausible import check_values
from pagoda.checkpoint.weights import Outline

# llama.cpp takes every token that is so called for the end of an answer.
END_NAMES = {
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>"),
    *("<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>"),
}
# Vocabularies by bytes whose digits are tokens of their own, and those that are split as GPT-2's, by llama.cpp's names.
SINGLE_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
AS_GPT2 = (None, "default", "gpt-2", "phi-2", "mpt", "olmo")
SAME_SPLIT = {"stablelm2": "qwen2"}


def read(argument: tuple[str | None, list[str], bool]) -> dict[str, Any]:
    """Of a copy without vocabulary the configuration; of the files themselves a tokenizer, if that is asked for."""
    short, files, of_tokenizer = argument
    tempfile.tempdir = os.sep  # torch asks where it could write, which is tried out, and this process cannot write
    try:
        return {
            **({} if short is None else {"config": _whole_config(_read_config(short), [*map(Path, files)])}),
            **(_read_tokenizer(files[0]) if of_tokenizer else {}),
        }
    except Exception:
        raise
    except BaseException as panic:
        if not is_panic(panic):
            raise
        raise ValueError(f"its tokenizer cannot be made: {panic}") from panic


def _read_config(path: str) -> dict[str, Any]:
    from transformers.integrations.gguf.gguf_config_mapping import GGUF_CONFIG_ARCHS, get_gguf_config
    from transformers.integrations.gguf.reader import read_gguf_metadata
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    metadata, names = read_gguf_metadata(path)
    architecture = metadata["general.architecture"]
    try:
        if architecture in GGUF_CONFIG_ARCHS:
            config = get_gguf_config({VOCABULARY: None, **metadata}, names)
        else:
            config = load_gguf_checkpoint(path)["config"]  # type: ignore[no-untyped-call]
    except ValueError as error:
        if "not supported" not in str(error):
            raise
        raise errors.UnsupportedModelError(
            f"transformers does not read models of the architecture {architecture!r:.100} from GGUF files; take the "
            "checkpoint in safetensors that this one was made from."
        ) from error
    config.pop("_model_name_or_path", None)
    return dict(json.loads(json.dumps(config)))


def _whole_config(config: dict[str, Any], files: list[Path]) -> str:
    """With what the file says besides, and what the family takes where it says nothing."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model = read_gguf(files)
    described = completed(config, model)
    check_values(described, Outline.of({name: each.shape for name, each in model.tensors.items()}), files[0])
    family = described["model_type"]
    if family not in CONFIG_MAPPING:
        raise errors.UnsupportedModelError(f"transformers has no model type {family!r:.100}.")
    return str(CONFIG_MAPPING[family](**described).to_json_string(use_diff=False))


def _read_tokenizer(path: str) -> dict[str, Any]:
    """The files of the tokenizer, none if there is none, and the tokens that end an answer by their names."""
    from transformers import TokenizersBackend
    from transformers.integrations.gguf.gguf_tokenizer_mapping import convert_gguf_tokenizer, get_gguf_tokenizer
    from transformers.integrations.gguf.reader import read_gguf_metadata

    metadata, _ = read_gguf_metadata(path)
    if metadata.get(f"{TOKENS}model", "none") in ("none", "no_vocab") or VOCABULARY not in metadata:
        return {"tokenizer": {}, "ends": []}
    architecture, vocabulary, settings = get_gguf_tokenizer(path)
    _check_split(vocabulary)
    backend, _ = convert_gguf_tokenizer(architecture, vocabulary)
    _split_digits(backend, vocabulary)
    settings.pop("chat_template", None)
    tokenizer = TokenizersBackend(tokenizer_object=backend, **settings)  # type: ignore[no-untyped-call]
    ends = [token for token, name in enumerate(vocabulary["tokens"]) if name in END_NAMES]
    stated = {"tokenizer_class": "TokenizersBackend", **settings, "clean_up_tokenization_spaces": False}
    files = {TOKENIZER: tokenizer.backend_tokenizer.to_str(), TOKENIZER_CONFIG: json.dumps(stated, indent=1)}
    return {"tokenizer": files, "ends": ends}


def _check_split(vocabulary: dict[str, Any]) -> None:
    """Refuse a way to split texts that transformers would take for another, without a word."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    split: Any = vocabulary.get("pre_tokenizer_type")
    split = vocabulary["pre_tokenizer_type"] = SAME_SPLIT.get(split, split)
    if vocabulary["tokenizer_type"] != "gpt2" or split in (*AS_GPT2, *SINGLE_DIGITS, *GGUF_PRE_TOKENIZER_SPLITS):
        return
    raise errors.UnsupportedModelError(
        f"its tokenizer splits texts as {split!r:.100}, which transformers does not know; put the tokenizer.json of "
        "the model that it was made from beside it."
    )


def _split_digits(backend: Any, vocabulary: Mapping[str, Any]) -> None:
    from tokenizers import pre_tokenizers

    if vocabulary["tokenizer_type"] == "gpt2" and vocabulary.get("pre_tokenizer_type") in SINGLE_DIGITS:
        by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), by_bytes])
