"""What a GGUF file says besides its weights, as the files of a checkpoint: configuration, tokenizer, chat template.

Transformers knows how to read them, with torch, and is asked in a child process whose time and memory are limited
(`gguf_reading.py`). It reads configurations with gguf's reader, which is slow where there is a vocabulary; it is given
a copy of the file without one, and without weights.
"""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pagoda import errors
from pagoda.checkpoint.gguf_files import GgufModel
from pagoda.confined.errors import ConfinedError, FunctionError
from pagoda.confined.pool import Confined

READ = "pagoda.checkpoint.gguf_reading:read"
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
# Tokens that end an answer.
END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}


def describe(model: GgufModel, *, of_config: bool = True, of_tokenizer: bool = True) -> dict[str, str]:
    """The texts of files, by name, as far as they are asked for. Raises a ModelError."""
    if not of_config and not of_tokenizer:
        return {}
    with TemporaryDirectory() as folder, closing(_confined()) as confined:
        short = Path(folder) / "short.gguf"
        if of_config:
            _write_short(model, short)
        argument = (str(short) if of_config else None, [*map(str, model.files)], of_tokenizer)
        try:
            told = confined.call(READ, argument, seconds=READ_SECONDS)
        except FunctionError as error:
            named = NAMED_ERRORS.get(error.kind, errors.CorruptCheckpointError)
            raise named(f"{model.files[0]}: {error}") from error
        except ConfinedError as error:
            raise errors.CorruptCheckpointError(f"Reading {model.files[0]} {error}.") from error
    texts = {}
    if of_config:
        texts[CONFIG] = told["config"]
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
