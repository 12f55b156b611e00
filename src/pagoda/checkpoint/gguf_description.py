"""What a GGUF file says besides its weights, as the files of a checkpoint: configuration, tokenizer, chat template.

Transformers knows how to read them, with torch, and is asked in a child process whose time and memory are limited. It
reads configurations with gguf's reader, which is slow where there is a vocabulary; it is given a copy of the file
without one, and without weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pagoda import errors
from pagoda.checkpoint.failures import is_panic
from pagoda.checkpoint.gguf_config import completed
from pagoda.checkpoint.gguf_files import GgufModel
from pagoda.confined.errors import ConfinedError, FunctionError
from pagoda.confined.pool import Confined

READ = "pagoda.checkpoint.gguf_description:read"
READ_SECONDS = 120.0
READ_NBYTES = 16 << 30  # of address space, of which a torch for GPUs takes most
DESCRIPTION_NBYTES = 384 << 20
NAMED_ERRORS: dict[str, type[errors.PagodaError]] = {
    each.__name__: each for each in (errors.CorruptCheckpointError, errors.UnsupportedModelError)
}

CONFIG, GENERATION = "config.json", "generation_config.json"
TOKENIZER, TOKENIZER_CONFIG, CHAT_TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
TOKENS = "tokenizer.ggml."
VOCABULARY = f"{TOKENS}tokens"
# What ends an answer, besides what the file says: llama.cpp takes every token that is so called for an end.
END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
END_NAMES = {
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>"),
    *("<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>"),
}
SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
# Vocabularies by bytes whose digits are tokens of their own, and those that are split as GPT-2's, by llama.cpp's names.
SINGLE_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
AS_GPT2 = (None, "default", "gpt-2", "phi-2", "mpt", "olmo")
SAME_SPLIT = {"stablelm2": "qwen2"}


def describe(model: GgufModel, *, of_config: bool = True, of_tokenizer: bool = True) -> dict[str, str]:
    """The texts of files, by name, as far as they are asked for. Raises a ModelError."""
    if not of_config and not of_tokenizer:
        return {}
    with TemporaryDirectory() as folder, closing(_confined()) as confined:
        short = Path(folder) / "short.gguf"
        if of_config:
            _write_short(model, short)
        argument = (str(short) if of_config else None, str(model.files[0]) if of_tokenizer else None)
        try:
            told = confined.call(READ, argument, seconds=READ_SECONDS)
        except FunctionError as error:
            named = NAMED_ERRORS.get(error.kind, errors.CorruptCheckpointError)
            raise named(f"{model.files[0]}: {error}") from error
        except ConfinedError as error:
            raise errors.CorruptCheckpointError(f"Reading {model.files[0]} {error}.") from error
    texts = {}
    if of_config:
        texts[CONFIG] = json.dumps(completed(told["config"], model), indent=1)
    if of_tokenizer:
        texts |= {**told["tokenizer"], **_templates(model)}
        texts[GENERATION] = json.dumps(_generation(model, told["ends"]), indent=1)
    return texts


def _confined() -> Confined:
    return Confined(memory_nbytes=READ_NBYTES, result_nbytes=DESCRIPTION_NBYTES, gives_way=False)


def _write_short(model: GgufModel, file: Path) -> None:
    """The keys that are not long, and the names of tensors, with a number each."""
    import numpy as np
    from gguf import GGUFValueType, GGUFWriter

    writer = GGUFWriter(file, model.header.architecture)
    for key, field in model.header.fields.items():
        if field.value not in (None, []) and key not in ("general.architecture", "general.alignment"):
            item_kind = None if field.item_kind is None else GGUFValueType(field.item_kind)
            writer.add_key_value(key, field.value, GGUFValueType(field.kind), item_kind)
    for name in model.tensors:
        writer.add_tensor(name, np.zeros(1, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _generation(model: GgufModel, named_ends: list[int]) -> dict[str, Any]:
    header = model.header
    ends = [header.get(TOKENS + key) for key in END_KEYS]
    told = {
        "bos_token_id": header.get(f"{TOKENS}bos_token_id"),
        "pad_token_id": header.get(f"{TOKENS}padding_token_id"),
        "eos_token_id": [*dict.fromkeys([*(end for end in ends if end is not None), *named_ends])],
        **{theirs: header.get(f"general.sampling.{key}") for key, theirs in SAMPLING.items()},
    }
    return {name: value for name, value in told.items() if value not in (None, [])}


def _templates(model: GgufModel) -> dict[str, str]:
    """The chat template; of several by name that without one."""
    template = model.header.get("tokenizer.chat_template")
    return {CHAT_TEMPLATE: template} if isinstance(template, str) and template else {}


def read(paths: tuple[str | None, str | None]) -> dict[str, Any]:
    """Of a file without vocabulary the configuration; of a whole one, files of a tokenizer and tokens that end."""
    short, whole = paths
    try:
        return {
            **({} if short is None else {"config": _read_config(short)}),
            **({} if whole is None else _read_tokenizer(whole)),
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
            config = get_gguf_config(metadata, names)
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
