"""From the config.json of a checkpoint to a configuration of transformers.

Knows which entries steer transformers rather than describe a network: what code it runs, which files it reads, how it
attends. They are left out, so that a checkpoint decides what is computed and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING,
)

from pagoda.checkpoint.failures import described
from pagoda.errors import CorruptCheckpointError, UnsupportedModelError
from pagoda.models.quiet import quiet
from pagoda.models.weights import FLOATS

ENCODER_DECODERS = (MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING)
# In the whole configuration and in each of its parts.
STEERING = {
    *("auto_map", "configuration_files", "transformers_weights", "name_or_path", "_name_or_path", "_commit_hash"),
    *("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "_attn_implementation_autoset"),
    *("experts_implementation", "_experts_implementation", "_experts_implementation_internal"),
    *("fusion_config", "kernel_config", "distributed_config", "quantization_config", "torchscript"),
    *("output_attentions", "output_hidden_states", "return_dict", "use_return_dict"),
    *("num_labels", "id2label", "label2id", "problem_type"),
}

# Of checkpoints that were quantized before, by transformers' names (`packed_weights.py`).
PACKING_METHODS = ("gptq", "gptq_v2", "awq", "compressed-tensors", "bitsandbytes", "fp8", "torchao")


def check_family(values: dict[str, Any], file: Path) -> None:
    """Refuse the contents of `file` if transformers has no such family, or its weights need to be computed first."""
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        custom = " It brings its own code, which Pagoda does not run." if "auto_map" in values else ""
        raise UnsupportedModelError(f"transformers has no model type {model_type!r:.200} ({file}).{custom}")
    packing_of(values, file)


@dataclass(frozen=True)
class Packing:
    """How weights were quantized: a name in `PACKING_METHODS`, and what else the configuration says of it."""

    method: str
    settings: Mapping[str, Any]


def packing_of(values: dict[str, Any], file: Path) -> Packing | None:
    """What `values`, the contents of `file`, say of weights that were quantized; None of those that were not.

    Raises UnsupportedModelError if they cannot be read.
    """
    settings = next(filter(None, _all_of("quantization_config", values)), None)
    if not settings:
        return None
    settings = settings if isinstance(settings, dict) else {}
    method = str(settings.get("quant_method", "unknown"))
    if method == "gptq" and settings.get("checkpoint_format") == "gptq_v2":
        method = "gptq_v2"
    if method == "awq" and str(settings.get("version", "gemm")).lower() != "gemm":
        method = f"awq, {settings['version']!r:.50}"
    if method not in PACKING_METHODS:
        raise UnsupportedModelError(
            f"The weights in {file.parent} are quantised ({method:.100}); those that are read: "
            f"{', '.join(PACKING_METHODS)}. Use one of these, a GGUF file, or a checkpoint in bf16, fp16 or fp32, with "
            "--quantization if you like."
        )
    return Packing(method, settings)


def make_config(values: dict[str, Any], file: Path) -> Any:
    """The configuration of transformers that `values`, the contents of `file`, describe."""
    model_type = values["model_type"]
    if model_type == "mistral" and "layer_types" in values:  # as transformers reads it
        model_type = "ministral"
    try:
        with quiet():
            entries = PreTrainedConfig._decode_special_floats(_described(values)) | {"model_type": model_type}
            config = AutoConfig.for_model(**entries, name_or_path=str(file.parent))
    except Exception as error:
        raise CorruptCheckpointError(f"{file} is not a valid {model_type} configuration: {described(error)}") from error
    if config.dtype not in (None, *FLOATS.values()):
        raise CorruptCheckpointError(f"{file} has dtype {values.get('dtype', values.get('torch_dtype'))!r:.100}.")
    classes = ENCODER_DECODERS if config.is_encoder_decoder else (MODEL_FOR_CAUSAL_LM_MAPPING,)
    if not any(type(config) in each for each in classes):
        raise UnsupportedModelError(f"{model_type} is not a decoder: transformers generates no text with it.")
    return config


def _described(value: Any) -> Any:
    """A configuration, or a part of one, without the entries that steer transformers."""
    if isinstance(value, dict):
        return {name: _described(each) for name, each in value.items() if name not in STEERING}
    return [_described(each) for each in value] if isinstance(value, list) else value


def _all_of(name: str, values: dict[str, Any]) -> list[Any]:
    """What is called `name` in a configuration and in its parts."""
    parts = [each for part in values.values() if isinstance(part, dict) for each in _all_of(name, part)]
    return [values[name], *parts] if name in values else parts
