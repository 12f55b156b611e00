"""From a checkpoint directory to a `Model`, or a named error that says what is wrong with the directory.

Knows files: config.json, generation_config.json, safetensors, single or sharded, and GGUF. Reads local directories only
and never runs code from a checkpoint. Whether a family can use pages is decided before its weights are read, and before
that, whether configuration and weights fit each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pagoda.checkpoint.configuration import read_config
from pagoda.checkpoint.directory import checkpoint_directory
from pagoda.checkpoint.failures import model_errors
from pagoda.checkpoint.files import read_object
from pagoda.checkpoint.gguf_folder import is_gguf_folder
from pagoda.checkpoint.plausible import check_values
from pagoda.errors import ConfigError
from pagoda.models.attention import ATTENTION_NAME
from pagoda.models.build import random_network
from pagoda.models.coded import decode
from pagoda.models.configuration import check_family, make_config, packing_of
from pagoda.models.discovery import Discovered, discover
from pagoda.models.generation import GenerationTokens
from pagoda.models.kept_digest import Origin, WeightFiles
from pagoda.models.model import Model
from pagoda.models.packed_weights import PackedWeights, packed_weights
from pagoda.models.placement import CPU, place
from pagoda.models.plausible import FewCalls, fitting
from pagoda.models.rounding import quantize
from pagoda.models.selftest import self_test
from pagoda.models.weights import StoredWeights, stored_weights

if TYPE_CHECKING:
    from pagoda.models.gguf_weights import GgufWeights

DTYPES = {
    **dict.fromkeys(("float32", "fp32", "float"), torch.float32),
    **dict.fromkeys(("float16", "fp16", "half"), torch.float16),
    **dict.fromkeys(("bfloat16", "bf16"), torch.bfloat16),
}


def load_model(
    path: str | Path,
    *,
    dtype: str = "auto",
    quantization: str = "none",
    activations: str = "int8",
    generation_config: str = "auto",
    device: torch.device = CPU,
) -> Model:
    """Load the checkpoint in the directory `path`, or the GGUF file there.

    `dtype` is "auto" (as stored) or a name in `DTYPES`; coded weights keep their codes, and the rest has it.
    `quantization` is "none", or a name in `QUANTIZATIONS` to hold dense weights in codes. What coded weights are
    multiplied by is coded, too, on a processor; with `activations` "full" weights are decoded instead.
    `generation_config` is a directory, "auto" for the same, or "vllm" for no more than the checkpoint's tokens.
    """
    directory = checkpoint_directory(path)
    weight_dtype = None if dtype == "auto" else parse_dtype(dtype)
    with model_errors(f"The model in {directory}"):
        values = read_config(directory)
        network, discovered, files = _load_network(directory / "config.json", values, weight_dtype)
        if quantization != "none":
            quantize(network, quantization)
        if activations == "full":
            decode(network)
        place(network, device)
        model = Model(network, discovered, _generation(directory, generation_config, network.config, values))
        model.origin = Origin.of(files, model.network)
        model.check_lengths()
        return model


def _generation(directory: Path, source: str, config: Any, values: Mapping[str, Any]) -> GenerationTokens:
    if source not in ("auto", "vllm"):
        directory = checkpoint_directory(source, "generation_config")
        if not (directory / "generation_config.json").is_file():
            raise ConfigError(f"There is no generation_config.json in {directory}; give another generation_config.")
    file = directory / "generation_config.json"
    generation = GenerationTokens.of(read_object(file) if file.is_file() else {}, config, values)
    return generation.tokens_alone if source == "vllm" else generation


def _load_network(file: Path, values: dict[str, Any], dtype: torch.dtype | None) -> tuple[Any, Discovered, WeightFiles]:
    check_family(values, file)
    with _weights(file, values) as weights:
        values = values | weights.stated
        check_values(values, weights.outline, file)
        config = make_config(values, file)
        with FewCalls(weights.outline, file):
            discovered = discover(config, fitting(weights.outline, file))
        self_test(config)
        network = weights.load(config, dtype)
    return network, discovered, weights.files


def _weights(
    file: Path, values: dict[str, Any]
) -> (
    AbstractContextManager[StoredWeights] | AbstractContextManager[PackedWeights] | AbstractContextManager[GgufWeights]
):
    """Those beside the config.json `file`, which holds `values`."""
    if is_gguf_folder(file.parent):
        from pagoda.models.gguf_weights import gguf_weights

        return gguf_weights(file.parent)
    return safetensors_weights(file, values)


def safetensors_weights(
    file: Path, values: dict[str, Any]
) -> AbstractContextManager[StoredWeights] | AbstractContextManager[PackedWeights]:
    """Those in safetensors beside the config.json `file`, which holds `values`; their files are open meanwhile."""
    packing = packing_of(values, file)
    return stored_weights(file, values) if packing is None else packed_weights(file, values, packing)


def model_from_config(
    config: Any, *, dtype: str = "float32", quantization: str = "none", seed: int = 0, device: torch.device = CPU
) -> Model:
    """A model of `config` with random weights, for tests and benchmarks."""
    discovered = examine(config)
    if quantization == "none":
        network = random_network(config, ATTENTION_NAME, parse_dtype(dtype), seed, device)
    else:  # codes are made on the processor
        network = random_network(config, ATTENTION_NAME, parse_dtype(dtype), seed)
        quantize(network, quantization)
    place(network, device)
    return Model(network, discovered, GenerationTokens.of({}, config))


def examine(config: Any) -> Discovered:
    """What a model of `config` needs from the cache; UnsupportedModelError if pages would not serve it rightly."""
    discovered = discover(config)
    self_test(config)
    return discovered


def load_config(path: str | Path) -> Any:
    """The transformers configuration of a checkpoint directory, which needs no weights."""
    directory = checkpoint_directory(path)
    file = directory / "config.json"
    with model_errors(f"The configuration in {directory}"):
        values = read_config(directory)
        check_family(values, file)
        return make_config(values, file)


def parse_dtype(name: str) -> torch.dtype:
    """The torch type called `name`."""
    if name not in DTYPES:
        raise ConfigError(f"dtype is {name!r}; use auto, float32, float16 or bfloat16.")
    return DTYPES[name]
