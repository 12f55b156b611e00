"""The facts of a checkpoint: from its config.json alone, and from a directory with what the headers of weights say.

What a dictionary cannot tell is refused, never guessed. Whether Pagoda runs the family is found out when it is loaded.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from pagoda.checkpoint.configuration import read_config
from pagoda.checkpoint.directory import checkpoint_directory
from pagoda.checkpoint.failures import model_errors
from pagoda.checkpoint.gguf_files import gguf_in, read_gguf
from pagoda.checkpoint.gguf_folder import is_gguf_folder
from pagoda.checkpoint.gguf_header import CODED_TYPES, GgufTensor
from pagoda.checkpoint.plausible import check_values
from pagoda.checkpoint.weights import FLOAT_NAMES, Outline, header_texts, stored_nbytes, stored_tensors
from pagoda.errors import CorruptCheckpointError
from pagoda.planning.encoder import encoder_facts
from pagoda.planning.facts import DTYPE_NBYTES, MachineFacts, ModelFacts
from pagoda.planning.lengths import longest, longest_asked_for, plain_lengths, table_offset
from pagoda.planning.spec import spec_from_config
from pagoda.planning.text_config import Sizes, first, named_fields, quantization, text_config
from pagoda.planning.weights.packed import gguf_nbytes, held_weights

# What transformers computes in where nothing says otherwise.
USUAL_DTYPE = "float32"
# What weights are decoded to where nothing says otherwise.
DECODED_DTYPE = "bfloat16"
# What llama.cpp calls tensors that have a matrix for each expert.
EXPERTS = "_exps."


class StoredWeights(NamedTuple):
    """What the headers of weights say: bytes of all tensors, and of those that are no plain floats, with types.

    held_codes: bytes of codes of a quantized checkpoint once it is loaded; None where nobody knows.
    """

    nbytes: int
    other_nbytes: int
    other_types: tuple[str, ...]
    held_codes: int | None = None


def facts_from_checkpoint(path: str | Path, machine: MachineFacts, dtype: str = "auto") -> ModelFacts:
    """The facts of the checkpoint in a directory. `dtype` is "auto" (as stored) or the one to compute in."""
    return facts_and_weights(path, machine, dtype)[0]


def facts_and_weights(path: str | Path, machine: MachineFacts, dtype: str = "auto") -> tuple[ModelFacts, StoredWeights]:
    """The same, which are of what the engine loads, and what is stored, which may be more than that."""
    directory = checkpoint_directory(path)
    file = directory / "config.json"
    with model_errors(f"The configuration in {directory}"):
        config = read_config(directory)
        if is_gguf_folder(directory):
            return _of_gguf(file, config, facts_from_config(config, machine, dtype))
        with stored_tensors(file, config, "np") as tensors:
            check_values(config, Outline.of_tensors(tensors), file)
            settings = quantization(config)
            held = held_weights(tensors, settings, header_texts(file, config)) if settings else None
            numbers = {name: tensor for name, tensor in tensors.items() if tensor.get_dtype() in FLOAT_NAMES}
            count = Outline.of_tensors(numbers).num_elements if held is None else held.num_numbers
            stored_as = next((FLOAT_NAMES[tensor.get_dtype()] for tensor in numbers.values()), USUAL_DTYPE)
            others = [tensor for name, tensor in tensors.items() if name not in numbers]
            stored = StoredWeights(
                nbytes=sum(map(stored_nbytes, tensors.values())),
                other_nbytes=sum(map(stored_nbytes, others)),
                other_types=tuple(sorted({tensor.get_dtype() for tensor in others})),
                held_codes=None if held is None else held.coded_nbytes,
            )
        is_stated = dtype != "auto" or stated_dtype(config)
        facts = facts_from_config(config, machine, dtype if is_stated else stored_as if held is None else DECODED_DTYPE)
        return replace(facts, weight_nbytes=count * facts.number_nbytes + (stored.held_codes or 0)), stored


def _of_gguf(file: Path, config: Sizes, facts: ModelFacts) -> tuple[ModelFacts, StoredWeights]:
    """Matrices of types that are kept are held as they are stored, all else is decoded."""
    tensors = read_gguf(gguf_in(file.parent)).tensors
    check_values(dict(config), Outline.of({name: tensor.shape for name, tensor in tensors.items()}), file)
    coded = [each for each in tensors.values() if each.type_name in CODED_TYPES and _is_held(each)]
    coded_nbytes = sum(gguf_nbytes(tensor.type_name, tensor.nbytes) for tensor in coded)
    count = sum(prod(tensor.shape) for tensor in tensors.values()) - sum(prod(tensor.shape) for tensor in coded)
    stored = StoredWeights(
        nbytes=sum(tensor.nbytes for tensor in tensors.values()),
        other_nbytes=coded_nbytes,
        other_types=tuple(sorted({tensor.type_name for tensor in coded})),
    )
    return replace(facts, weight_nbytes=coded_nbytes + count * facts.number_nbytes), stored


def _is_held(tensor: GgufTensor) -> bool:
    """Whether a tensor is a matrix, or one for each expert."""
    return len(tensor.shape) == 2 or (len(tensor.shape) == 3 and EXPERTS in tensor.name)


def facts_from_config(config: Sizes, machine: MachineFacts, dtype: str = "auto") -> ModelFacts:
    """The facts of the model that `config` (the contents of config.json) describes."""
    with model_errors(f"The configuration of {config.get('model_type')!r:.100}"), named_fields(config):
        text = text_config(config)
        # The tables of a decoder with an encoder have rows for tokens alone.
        lengths, offset = plain_lengths(text), 0 if config.get("is_encoder_decoder") else table_offset(text)
        return ModelFacts(
            spec=spec_from_config(config),
            dtype=_dtype(config, text) if dtype == "auto" else dtype,
            vocab_size=first(text, "vocab_size"),
            max_model_len=longest(lengths, offset),
            most_model_len=longest_asked_for(lengths, offset),
            encoder=encoder_facts(config, machine),
        )


def _dtype(config: Sizes, text: Sizes) -> str:
    stated = stated_dtype(config) or stated_dtype(text) or USUAL_DTYPE
    name = str(stated).removeprefix("torch.")
    if name not in DTYPE_NBYTES:
        raise CorruptCheckpointError(f"config.json of {text.get('model_type')} has dtype {stated!r:.100}.")
    return name


def stated_dtype(config: Sizes) -> Any:
    """What this part of a config.json says of the precision of weights."""
    return config.get("dtype") or config.get("torch_dtype")
