"""The weights of a safetensors checkpoint that was quantized before: a network of transformers filled with them.

Linear layers and experts keep the codes of the checkpoint as far as a network has such layers, and products take them;
whatever else is quantized is decoded. Knows which methods are read. Does not know how a layer is packed
(`packed_layers.py`), nor which make up the matrices of experts (`packed_experts.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pagoda.checkpoint.weights import Outline, header_texts, stored_nbytes, stored_tensors, weight_files
from pagoda.errors import CorruptCheckpointError, UnsupportedModelError
from pagoda.kernels.coded_stack import CodedStack
from pagoda.kernels.coded_weight import CodedWeight, GroupedCodes, can_hold_codes
from pagoda.kernels.weight_memory import WeightMemory
from pagoda.models.attention import ATTENTION_NAME
from pagoda.models.build import network_class, outlined_network
from pagoda.models.coded import codable_layers, install
from pagoda.models.configuration import Packing
from pagoda.models.kept_digest import WeightFiles
from pagoda.models.packed_experts import layers_of_experts, stack_of
from pagoda.models.packed_layers import (
    FP8_TYPES,
    AwqLayer,
    BitsAndBytes4Layer,
    BitsAndBytes8Layer,
    ByteLayer,
    Float8Layer,
    GptqLayer,
    PackedLayer,
    PackQuantizedLayer,
    SecondGptqLayer,
)
from pagoda.models.packed_torchao import TORCHAO, torchao_layers
from pagoda.models.parameter_names import parameter_names
from pagoda.models.weights import fill, read_tensor

# Kinds of layers by the method that a configuration names (PACKING_METHODS); the first whose tensors are there. Of
# torchao's (`packed_torchao.py`) headers say which.
METHODS: dict[str, tuple[type[PackedLayer], ...]] = {
    "gptq": (GptqLayer,),
    "gptq_v2": (SecondGptqLayer,),
    "awq": (AwqLayer,),
    "compressed-tensors": (PackQuantizedLayer, ByteLayer, Float8Layer),
    "bitsandbytes": (BitsAndBytes8Layer, BitsAndBytes4Layer),
    "fp8": (Float8Layer,),
}
# What else may stand beside a layer and says nothing of its weights.
PASSED_OVER = ("k_scale", "v_scale", "q_scale", "output_scale")


class PackedWeights:
    """The tensors in the files of a checkpoint; their values are read when a network is filled with them."""

    def __init__(self, files: WeightFiles, layers: Mapping[str, PackedLayer], others: Mapping[str, Any]) -> None:
        """`layers` are quantized, by name, and `others` are not."""
        self.files = files
        self._layers = layers
        self._others = others
        shapes = {f"{name}.weight": layer.shape for name, layer in layers.items()}
        plain = {name: tuple(tensor.get_shape()) for name, tensor in others.items()}
        self.outline = Outline.of(plain | shapes)

    @property
    def dtype(self) -> torch.dtype:
        """Of what is decoded, where a configuration does not say."""
        return torch.bfloat16

    @property
    def stated(self) -> dict[str, Any]:
        """What they say of the configuration: nothing."""
        return {}

    def stored_nbytes(self, name: str) -> int:
        layer = self._layers.get(name.removesuffix(".weight"))
        return stored_nbytes(self._others[name]) if layer is None else layer.nbytes

    def read(self, name: str) -> torch.Tensor:
        """One tensor; of a quantized layer the numbers. Raises UnsupportedModelError if these have codes."""
        layer = self._layers.get(name.removesuffix(".weight"))
        if layer is None:
            return read_tensor(self._others, name, self.files.directory)
        found = layer.read()
        if isinstance(found, GroupedCodes):
            raise UnsupportedModelError(
                f"The weights in {self.files.directory} are codes already, which Pagoda keeps as they are; give the "
                "checkpoint that they were made of."
            )
        return found

    def load(self, config: Any, dtype: torch.dtype | None) -> Any:
        """A network of `config` with these weights. What is decoded has `dtype`; None is the configuration's, or bf16.

        It lies on the processor, wherever it is to compute. Without compiled kernels all are decoded.
        """
        _, own_config = network_class(config)
        number_type = dtype or own_config.dtype or self.dtype
        memory = WeightMemory()
        taking: dict[str, str] = {}
        ties: Mapping[str, str] = {}
        experts: dict[str, CodedStack] = {}
        layers: Mapping[str, PackedLayer] = self._layers
        if can_hold_codes():
            outline = outlined_network(config, ATTENTION_NAME)
            taking, ties = self._taking(outline), outline.all_tied_weights_keys
            experts, layers = _coded_experts(outline, layers, memory)
        coded: dict[str, CodedWeight] = {}
        tensors = dict(self._others)
        for name, layer in layers.items():
            found = layer.read()
            if isinstance(found, GroupedCodes) and name in taking:
                coded[taking[name]] = CodedWeight.from_groups(found, memory=memory)
                continue
            numbers = found.numbers() if isinstance(found, GroupedCodes) else found
            tensors[f"{name}.weight"] = numbers.to(number_type)
        # What stands there until codes are put in place. Transformers ties what is alike.
        apart = _apart(ties, coded)
        for name, place in taking.items():
            if place in coded:
                stand_in = torch.tensor(float(place in apart), dtype=number_type)
                tensors[f"{name}.weight"] = stand_in.expand(coded[place].shape)
        for name, stack in experts.items():
            tensors[name] = torch.zeros((), dtype=number_type).expand(stack.shape)
        network = fill(config, tensors, number_type, self.files.directory)
        install(network, coded, {name: (stack,) for name, stack in experts.items()})
        return network

    def _taking(self, network: Any) -> dict[str, str]:
        """The weights that `network` can have as codes, by the names of the layers here."""
        places: dict[str, Any] = {f"{name}.weight": layer for name, layer in codable_layers(network).items()}
        names = parameter_names(network, (f"{name}.weight" for name in self._layers))
        found = {name: names.get(f"{name}.weight", "") for name in self._layers}
        return {
            name: place
            for name, place in found.items()
            if place in places and tuple(places[place].weight.shape) == self._layers[name].shape
        }


@contextmanager
def packed_weights(config_file: Path, values: Mapping[str, Any], packing: Packing) -> Iterator[PackedWeights]:
    """The weights beside `config_file`, which holds `values`; their files are open meanwhile."""
    files = WeightFiles.look(config_file.parent, weight_files(config_file, values))
    with stored_tensors(config_file, values, "pt") as tensors:
        if packing.method == TORCHAO:
            layers, others = torchao_layers(tensors, header_texts(config_file, values))
        else:
            layers, others = _layers(tensors, packing)
        if not layers:
            raise CorruptCheckpointError(f"{files.directory} should have weights of {packing.method}, and has none.")
        yield PackedWeights(files, layers, others)


def _layers(tensors: Mapping[str, Any], packing: Packing) -> tuple[dict[str, PackedLayer], dict[str, Any]]:
    """The layers that are quantized, by name, and all other tensors."""
    kinds = METHODS[packing.method]
    ends = sorted({end for kind in kinds for end in kind.needed | kind.others}, key=len, reverse=True)
    by_layer: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        end = next((end for end in ends if name.endswith(f".{end}")), None)
        if end is not None:
            by_layer.setdefault(name.removesuffix(f".{end}"), {})[end] = tensor
    layers: dict[str, PackedLayer] = {}
    others = dict(tensors)
    for name, own in by_layer.items():
        kind = next((kind for kind in kinds if _is_of(kind, own)), None)
        if kind is not None:
            layers[name] = kind(name, own, packing.settings)
            for end in own:
                del others[f"{name}.{end}"]
    return layers, {name: each for name, each in others.items() if not name.endswith(PASSED_OVER)}


def _apart(ties: Mapping[str, str], coded: Mapping[str, CodedWeight]) -> set[str]:
    """The weights that a network ties to others whose codes are not theirs: then its configuration is outdated."""
    pairs = [(name, coded[name], coded[other]) for name, other in ties.items() if {name, other} <= coded.keys()]
    return {name for name, own, other in pairs if own.form != other.form or not torch.equal(own.data, other.data)}


def _is_of(kind: type[PackedLayer], own: Mapping[str, Any]) -> bool:
    """Whether the tensors of a layer are those of a kind; a plain weight is told by its numbers."""
    if not kind.needed <= own.keys() <= kind.needed | kind.others:
        return False
    if kind is Float8Layer:
        return own["weight"].get_dtype() in FP8_TYPES and not own.keys().isdisjoint(
            ("weight_scale", "weight_scale_inv")
        )
    return kind not in (ByteLayer, BitsAndBytes8Layer) or own["weight"].get_dtype() == "I8"


def _coded_experts(
    network: Any, layers: Mapping[str, PackedLayer], memory: WeightMemory
) -> tuple[dict[str, CodedStack], dict[str, PackedLayer]]:
    """The matrices of experts that stay coded, by name, and the layers that are none of theirs."""
    grids = layers_of_experts(network, {name: layer.shape for name, layer in layers.items()})
    found = {name: stack_of(grid, layers, memory) for name, grid in grids.items()}
    stacks = {name: stack for name, stack in found.items() if stack is not None}
    held = {layer for name in stacks for parts in grids[name] for layer in parts}
    return stacks, {name: layer for name, layer in layers.items() if name not in held}
