"""From a checkpoint directory to a `Model`, or a named error that says what is wrong with the directory.

Knows files: config.json, generation_config.json, safetensors, single or sharded. Reads local directories only and never
runs code from a checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from pagoda.errors import ConfigError, CorruptCheckpointError, ModelNotFoundError, UnsupportedModelError
from pagoda.models.attention import ATTENTION_NAME
from pagoda.models.discovery import discover
from pagoda.models.model import Model, eos_of
from pagoda.models.quiet import quiet

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "float16": torch.float16,
    "half": torch.float16,
    "fp16": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
}


def load_model(path: str | Path, *, dtype: str = "auto") -> Model:
    """Load the checkpoint in the directory `path`. `dtype` is "auto" (as stored), "float32", "float16" or "bfloat16"."""
    directory = Path(path).expanduser()
    config = load_config(directory)
    discovered = discover(config)
    network = _load_weights(directory, config, "auto" if dtype == "auto" else parse_dtype(dtype))
    return Model(network, discovered, eos_of(_generation_config(directory), config))


def model_from_config(config: Any, *, dtype: str = "float32", seed: int = 0) -> Model:
    """A model of `config` with random weights, for tests and benchmarks."""
    discovered = discover(config)
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = AutoModelForCausalLM.from_config(
            config, attn_implementation=ATTENTION_NAME, dtype=parse_dtype(dtype)
        )
    return Model(network.eval(), discovered, eos_of(network.generation_config, config))


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
    if "quantization_config" in values:
        method = values["quantization_config"].get("quant_method", "unknown")
        raise UnsupportedModelError(
            f"The weights in {directory} are quantised ({method}); use a checkpoint in bf16, fp16 or fp32."
        )
    try:
        with quiet():
            config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise CorruptCheckpointError(f"{directory}/config.json is not a valid {model_type} configuration: {error}") from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UnsupportedModelError(f"transformers has no text generation model for {model_type}.")
    return config


def read_config(directory: Path) -> dict[str, Any]:
    """The contents of config.json."""
    if not directory.is_dir():
        raise ModelNotFoundError(f"There is no directory {directory}. Give the path of a downloaded checkpoint.")
    file = directory / "config.json"
    if not file.is_file():
        raise ModelNotFoundError(f"{directory} has no config.json, so it is not a Hugging Face checkpoint.")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptCheckpointError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise CorruptCheckpointError(f"{file} holds a {type(values).__name__}, not an object.")
    return values


def _load_weights(directory: Path, config: Any, dtype: torch.dtype | str) -> Any:
    if not any(directory.glob("*.safetensors")):
        raise ModelNotFoundError(f"{directory} has no *.safetensors file; Pagoda reads weights in that format only.")
    try:
        with quiet():
            network, report = AutoModelForCausalLM.from_pretrained(
                directory,
                config=config,
                dtype=dtype,
                attn_implementation=ATTENTION_NAME,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise CorruptCheckpointError(f"The weights in {directory} cannot be read: {error}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise CorruptCheckpointError(f"{directory} lacks {len(missing)} weights of the model: {_abridged(missing)}.")
    return network.eval()


def _generation_config(directory: Path) -> GenerationConfig | None:
    file = directory / "generation_config.json"
    if not file.is_file():
        return None
    try:
        with quiet():
            return GenerationConfig.from_pretrained(directory, local_files_only=True)
    except Exception as error:
        raise CorruptCheckpointError(f"{file} cannot be read: {error}") from error


def _abridged(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
