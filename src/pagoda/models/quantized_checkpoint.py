"""A checkpoint with codes made of one without: what `pagoda quantize` writes.

Linear layers, and those of experts that stand one by one, have codes of one number of bits where `--quantization` gives
them some, as far as others read such; all else is copied. One file of weights is in memory at a time. Knows files; does
not know how weights are rounded (`rounding.py`), nor how codes are kept (`pack_quantized.py`).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from pagoda.checkpoint.configuration import read_config
from pagoda.checkpoint.directory import checkpoint_directory
from pagoda.checkpoint.failures import described, model_errors
from pagoda.checkpoint.gguf_folder import is_gguf_folder
from pagoda.checkpoint.plausible import check_values
from pagoda.checkpoint.weights import INDEX
from pagoda.errors import ConfigError, ModelError, UnsupportedModelError
from pagoda.models.attention import ATTENTION_NAME
from pagoda.models.build import network_class, outlined_network
from pagoda.models.coded import codable_experts
from pagoda.models.coded_experts import dense_matrices
from pagoda.models.configuration import check_family, make_config
from pagoda.models.loader import safetensors_weights
from pagoda.models.pack_quantized import Scheme, packed_nbytes, packed_tensors, settings
from pagoda.models.packed_experts import layers_of_experts
from pagoda.models.packed_weights import PackedWeights
from pagoda.models.parameter_names import parameter_names
from pagoda.models.rounding import COARSE_BITS, FINE_BITS, GROUP, Minima, bits_of_weights, has_codes, rounded
from pagoda.models.weights import StoredWeights
from pagoda.units import format_nbytes

MAX_FILE_NBYTES = 2 << 30
FILE_PATTERN = "model{suffix}.safetensors"
# What of a checkpoint goes with its weights.
COPIED = (
    *("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "spiece.model"),
    *("*.tiktoken", "tekken.json", "*.jinja", "generation_config.json", "*processor_config.json"),
    *("LICENSE*", "NOTICE*"),
)
LINEAR = "Linear"
EXPERTS = ".experts."
ALL_EXPERTS = r"re:.*\.experts\..*"
FINE = Scheme(FINE_BITS, GROUP, has_zeros=False)
COARSE = Scheme(COARSE_BITS, GROUP, has_zeros=True)
# Not all read zeros of experts.
COARSE_EXPERTS = Scheme(COARSE_BITS, GROUP, has_zeros=False)

# Called with how many bytes of how many have been written.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Written:
    """How many layers got codes, and the bytes of all weights before and after."""

    num_coded: int
    stored_nbytes: int
    written_nbytes: int


def write_quantized(
    source: str | Path, target: str | Path, quantization: str, progress: Progress = lambda *_: None
) -> Written:
    """Write the checkpoint in the directory `source` with codes to `target`, a folder that is not there, or empty.

    Raises a ModelError for a checkpoint that has no such form, or cannot be written, and ConfigError for `target`.
    """
    target = Path(target).expanduser().absolute()
    _check_target(target)
    directory = checkpoint_directory(source)
    if is_gguf_folder(directory):
        raise UnsupportedModelError(
            f"{source} is a GGUF model, whose weights have codes already; give a checkpoint in bf16, fp16 or fp32."
        )
    with model_errors(f"The model in {directory}"):
        values, file = read_config(directory), directory / "config.json"
        check_family(values, file)
        with safetensors_weights(file, values) as weights:
            check_values(values, weights.outline, file)
            layers = _Layers(make_config(values, file), weights, quantization)
            if not layers.coded:
                raise UnsupportedModelError(f"No linear layer of {directory} can have codes; use it as it is.")
            with _new_folder(target, sum(layers.nbytes.values())) as folder:
                _copy(directory, folder)
                own = {name: each for name, each in values.items() if name != "transformers_weights"}
                _write_json(folder / "config.json", own | {"quantization_config": layers.settings()})
                _write_weights(folder, layers, progress)
            stored = sum(map(weights.stored_nbytes, weights.outline.shapes))
            return Written(len(layers.coded), stored, sum(layers.nbytes.values()))


class _Layers:
    """What becomes of the tensors of a checkpoint: those that are `coded`, and the bytes that each then takes."""

    def __init__(self, config: Any, weights: StoredWeights | PackedWeights, quantization: str) -> None:
        self._network = outlined_network(config, ATTENTION_NAME)
        self._weights = weights
        self._dtype = network_class(config)[1].dtype or weights.dtype
        self._shapes: Mapping[str, tuple[int, ...]] = weights.outline.shapes
        self._names = parameter_names(self._network, self._shapes)
        is_fine = quantization == "int8"
        wanted, readable = bits_of_weights(self._network, quantization), _readable_layers(self._network)
        linear = {tensor for tensor, name in self._names.items() if name in wanted and _layer(name) in readable}
        experts = _experts_one_by_one(self._network, self._shapes)
        self._schemes = {LINEAR: FINE if is_fine else COARSE}
        if experts and not is_fine:
            self._schemes[ALL_EXPERTS] = COARSE_EXPERTS
        self.coded = dict.fromkeys(linear, self._schemes[LINEAR])
        self.coded |= dict.fromkeys(experts, self._schemes.get(ALL_EXPERTS, FINE))
        self.nbytes = {tensor: self._nbytes(tensor) for tensor in self._shapes}

    def _nbytes(self, tensor: str) -> int:
        if tensor in self.coded:
            return packed_nbytes(self._shapes[tensor], self.coded[tensor])
        return self._weights.stored_nbytes(tensor)

    def read(self, tensor: str) -> dict[str, torch.Tensor]:
        """What is written for a tensor, by name."""
        stored = self._weights.read(tensor)
        if tensor not in self.coded:
            return {tensor: stored}
        scheme = self.coded[tensor]
        minima = Minima.ZEROS if scheme.has_zeros else Minima.MIDDLE
        groups = rounded(stored.to(self._dtype), scheme.bits == FINE_BITS, minima)
        return {f"{_layer(tensor)}.{end}": each for end, each in packed_tensors(groups).items()}

    def settings(self) -> dict[str, Any]:
        """The entry `quantization_config`."""
        return settings(self._schemes, self._ignored())

    def _place(self, tensor: str) -> str:
        return self._names[tensor].removesuffix(".weight")

    def _ignored(self) -> list[str]:
        """Linear layers without codes, and a head that has the table of tokens.

        Engines look for the names of a checkpoint, transformers for those of its network.
        """
        modules = dict(self._network.named_modules())
        tables = {name for name, module in modules.items() if isinstance(module, nn.Embedding)}
        dense = [tensor for tensor in self._shapes if tensor not in self.coded]
        matrices = [each for each in dense if each.endswith(".weight") and len(self._shapes[each]) == 2]
        linear = [each for each in matrices if each not in self._names or self._place(each) not in tables]
        names = [name for each in linear for name in (_layer(each), _layer(self._names.get(each, each)))]
        weights = {id(modules[name].weight) for name in tables}
        tied = [name for name, each in modules.items() if type(each) is nn.Linear and id(each.weight) in weights]
        others = [each for each in names if EXPERTS not in each]
        return [*dict.fromkeys([*others, *tied, *self._dense_experts(dense)])]

    def _dense_experts(self, dense: Iterable[str]) -> list[str]:
        """A pattern for mixtures without codes; if some have them, one for each of the others."""
        mixtures, coded = _mixtures(dense), _mixtures(self.coded)
        if coded:
            return [f"re:{re.escape(each)}.*" for each in sorted(mixtures - coded)]
        return [ALL_EXPERTS] if mixtures or codable_experts(self._network) else []


def _readable_layers(network: Any) -> set[str]:
    """Layers whose codes others read: linear ones of whole groups that have to do with text, but for the head."""
    modules = {*_text(network).modules()} - {network.get_output_embeddings()}
    return {
        name
        for name, module in network.named_modules()
        if module in modules and type(module) is nn.Linear and not module.in_features % GROUP
    }


def _text(network: Any) -> Any:
    """The part that has to do with text."""
    return network if network.config.is_encoder_decoder else network.get_decoder()


def _experts_one_by_one(network: Any, shapes: Mapping[str, tuple[int, ...]]) -> set[str]:
    """Weights of experts whose codes others read: of mixtures that have to do with text, whole groups in all of one."""
    layers = {_layer(tensor): shape for tensor, shape in shapes.items() if tensor.endswith(".weight")}
    grids = layers_of_experts(network, {name: shape for name, shape in layers.items() if len(shape) == 2})
    modules = {*_text(network).modules()}
    found: set[str] = set()
    for path, module in codable_experts(network).items():
        matrices = {f"{path}.{name}": each for name, each in dense_matrices(module).items()}
        is_whole = all(has_codes(each) and not each.shape[-1] % GROUP for each in matrices.values())
        if module in modules and is_whole and matrices.keys() <= grids.keys():
            found |= {f"{layer}.weight" for name in matrices for parts in grids[name] for layer in parts}
    return found


def _mixtures(tensors: Iterable[str]) -> set[str]:
    """What the names of experts among them begin with."""
    return {"".join(each.partition(EXPERTS)[:2]) for each in tensors if EXPERTS in each}


def _layer(tensor: str) -> str:
    return tensor.removesuffix(".weight")


def _check_target(target: Path) -> None:
    """Before anything is read."""
    if not target.parent.is_dir():
        raise ConfigError(f"There is no folder {target.parent}; make it first, or name another place.")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ConfigError(f"{target} is there already; name a new folder, or an empty one.")


@contextmanager
def _new_folder(target: Path, nbytes: int) -> Iterator[Path]:
    """A folder for `nbytes` of weights that takes the place of `target` at the end; of an interruption nothing is left.

    Raises ModelError if it cannot be written.
    """
    try:
        free = shutil.disk_usage(target.parent).free
        if free < nbytes:
            raise ModelError(
                f"{target} takes {format_nbytes(nbytes)}, and {format_nbytes(free)} are free there; make room, or name "
                "another place."
            )
        with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
            folder = Path(scratch) / target.name
            folder.mkdir()
            yield folder
            folder.replace(target)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{target} cannot be written, and nothing is left of it: {described(error)}. Make room or get the rights, "
            "or name another place."
        ) from error


def _copy(directory: Path, folder: Path) -> None:
    for pattern in COPIED:
        for file in directory.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)


def _write_weights(folder: Path, layers: _Layers, progress: Progress) -> None:
    """In files of at most `MAX_FILE_NBYTES`, a layer's tensors in one, with an index of several."""
    split = split_state_dict_into_shards_factory(
        layers.nbytes, get_storage_size=int, filename_pattern=FILE_PATTERN, max_shard_size=MAX_FILE_NBYTES
    )
    written, total = 0, sum(layers.nbytes.values())
    index: dict[str, str] = {}
    for name, stored in split.filename_to_tensors.items():
        tensors: dict[str, torch.Tensor] = {}
        for each in stored:
            tensors |= layers.read(each)
            written += layers.nbytes[each]
            progress(written, total)
        save_file(tensors, folder / name, metadata={"format": "pt"})
        shutil.copymode(folder / "config.json", folder / name)  # which safetensors lets nobody else read
        index |= dict.fromkeys(tensors, name)
    if split.is_sharded:
        _write_json(folder / INDEX, {"metadata": split.metadata, "weight_map": index})


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
