"""From a checkpoint directory to a `Model`, or a named error that says what is wrong with the directory.

Knows files: config.json, generation_config.json, safetensors, single or sharded. Reads local directories only and never
runs code from a checkpoint. Whether a family can use pages is decided before its weights are read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING,
)

from pagoda.errors import ConfigError, CorruptCheckpointError, ModelNotFoundError, UnsupportedModelError
from pagoda.models.attention import ATTENTION_NAME
from pagoda.models.build import generating_class, random_network
from pagoda.models.discovery import Discovered, discover
from pagoda.models.model import GenerationTokens, Model
from pagoda.models.own_attention import interface_name
from pagoda.models.placement import move_to_huge_pages
from pagoda.models.quiet import quiet
from pagoda.models.selftest import self_test

DTYPES = {
    **dict.fromkeys(("float32", "fp32", "float"), torch.float32),
    **dict.fromkeys(("float16", "fp16", "half"), torch.float16),
    **dict.fromkeys(("bfloat16", "bf16"), torch.bfloat16),
}


ENCODER_DECODERS = (MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING)


def load_model(path: str | Path, *, dtype: str = "auto") -> Model:
    """Load the checkpoint in the directory `path`. `dtype` is "auto" (as stored) or a name in `DTYPES`."""
    directory = Path(path).expanduser()
    weight_dtype = "auto" if dtype == "auto" else parse_dtype(dtype)
    config = load_config(directory)
    discovered = examine(config)
    network = _load_weights(directory, config, weight_dtype)
    move_to_huge_pages(network)
    generation = directory / "generation_config.json"
    settings = _read_json(generation) if generation.is_file() else {}
    return Model(network, discovered, GenerationTokens.of(settings, config))


def model_from_config(config: Any, *, dtype: str = "float32", seed: int = 0) -> Model:
    """A model of `config` with random weights, for tests and benchmarks."""
    discovered = examine(config)
    network = random_network(config, ATTENTION_NAME, parse_dtype(dtype), seed)
    move_to_huge_pages(network)
    return Model(network, discovered, GenerationTokens.of({}, config))


def examine(config: Any) -> Discovered:
    """What a model of `config` needs from the cache; UnsupportedModelError if pages would not serve it rightly."""
    discovered = discover(config)
    self_test(config)
    return discovered


def parse_dtype(name: str) -> torch.dtype:
    """The torch type called `name`."""
    if name not in DTYPES:
        raise ConfigError(f"dtype is {name!r}; use auto, float32, float16 or bfloat16.")
    return DTYPES[name]


def load_config(directory: Path) -> Any:
    """The transformers configuration of a checkpoint directory."""
    values = read_config(directory)
    model_type = values.get("model_type")
    if model_type not in CONFIG_MAPPING:
        custom = " It brings its own code, which Pagoda does not run." if "auto_map" in values else ""
        raise UnsupportedModelError(f"transformers has no model type {model_type!r} ({directory}/config.json).{custom}")
    if values.get("quantization_config"):
        method = values["quantization_config"].get("quant_method", "unknown")
        raise UnsupportedModelError(
            f"The weights in {directory} are quantised ({method}); use a checkpoint in bf16, fp16 or fp32."
        )
    try:
        with quiet():
            config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise CorruptCheckpointError(
            f"{directory}/config.json is not a valid {model_type} configuration: {error}"
        ) from error
    classes = ENCODER_DECODERS if config.is_encoder_decoder else (MODEL_FOR_CAUSAL_LM_MAPPING,)
    if not any(type(config) in each for each in classes):
        raise UnsupportedModelError(f"{model_type} is not a decoder: transformers generates no text with it.")
    return config


def read_config(directory: Path) -> dict[str, Any]:
    """The contents of config.json."""
    if not directory.is_dir():
        raise ModelNotFoundError(f"There is no directory {directory}. Give the path of a downloaded checkpoint.")
    file = directory / "config.json"
    if not file.is_file():
        raise ModelNotFoundError(f"{directory} has no config.json, so it is not a Hugging Face checkpoint.")
    return _read_json(file)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CorruptCheckpointError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise CorruptCheckpointError(f"{file} holds a {type(values).__name__}, not an object.")
    return values


def _load_weights(directory: Path, config: Any, dtype: torch.dtype | str) -> Any:
    if not any(directory.glob("*.safetensors")):
        raise ModelNotFoundError(f"{directory} has no *.safetensors file; Pagoda reads weights in that format only.")
    try:
        with quiet():
            network, report = generating_class(config).from_pretrained(
                directory,
                config=config,
                dtype=dtype,
                attn_implementation=interface_name(config, ATTENTION_NAME),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # to name them below; transformers names them in a log line only
                output_loading_info=True,
            )
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise CorruptCheckpointError(f"The weights in {directory} cannot be read: {error}") from error
    _check_report(directory, report)
    return network.eval()


def _check_report(directory: Path, report: dict[str, Any]) -> None:
    """Refuse weights that transformers would have filled with random numbers."""
    missing = sorted(report["missing_keys"])
    if missing:
        raise CorruptCheckpointError(f"{directory} lacks {len(missing)} weights of the model: {_abridged(missing)}.")
    mismatched = sorted(
        f"{name} {list(stored)} instead of {list(wanted)}" for name, stored, wanted in report["mismatched_keys"]
    )
    if mismatched:
        raise CorruptCheckpointError(f"Weights in {directory} have the wrong shape: {_abridged(mismatched)}.")
    if report["error_msgs"]:
        raise CorruptCheckpointError(f"The weights in {directory} cannot be read: {_abridged(report['error_msgs'])}.")


def _abridged(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
