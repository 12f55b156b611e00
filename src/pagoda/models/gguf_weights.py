"""The weights of a GGUF model: a network of transformers that is filled with them, most of them coded as they are.

Matrices of linear layers, embeddings and experts are laid out from the blocks that their file has, mapped; if rows have
another order in the network (`gguf_rules.py`), they are copied in that order first. All other tensors are decoded. Does
not know how codes are multiplied (`models/coded.py`), nor headers (`checkpoint/gguf_header.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pagoda.checkpoint.gguf_config import HEAD, READ_TENSORS
from pagoda.checkpoint.gguf_files import GgufModel, gguf_in, read_gguf
from pagoda.checkpoint.gguf_header import CODED_TYPES, GgufTensor
from pagoda.checkpoint.weights import Outline
from pagoda.errors import UnsupportedModelError
from pagoda.kernels.coded_weight import CodedWeight, can_hold_codes
from pagoda.kernels.weight_memory import WeightMemory
from pagoda.machine import let_go_of_file
from pagoda.models.attention import ATTENTION_NAME
from pagoda.models.build import build_network, network_class
from pagoda.models.coded import codable_experts, codable_layers, install
from pagoda.models.gguf_experts import coded_tensors, stacks_of
from pagoda.models.gguf_rules import Rules, order_of_rows, rules_of
from pagoda.models.kept_digest import WeightFiles
from pagoda.models.own_attention import interface_name
from pagoda.models.quiet import quiet
from pagoda.models.weights import abridged, fill

# Those that tests hold to the logits of transformers. What llama.cpp does to the tensors of others would have to be
# undone, and nobody would see that it is not.
ARCHITECTURES = {
    *("bloom", "falcon", "gemma2", "gemma3", "gpt2", "lfm2", "llama", "mamba", "nemotron", "phi3", "qwen2", "qwen2moe"),
    *("qwen3", "qwen35", "qwen3moe", "stablelm", "starcoder2"),
}
# Whose head is the table of tokens, whatever a file has.
ALWAYS_TIED = ("bloom", "falcon")
# Rows that are read at a time: whole blocks of codes.
PART_ROWS = 4096


class GgufWeights:
    """The tensors of a model; their numbers are read when a network is filled with them."""

    def __init__(self, files: WeightFiles, model: GgufModel) -> None:
        self.files = files
        self.outline = Outline.of({name: tensor.shape for name, tensor in model.tensors.items()})
        self._model = model
        self._bytes = {file: np.memmap(file, np.uint8, mode="c") for file in model.files}

    @property
    def stated(self) -> dict[str, Any]:
        """What they say of the configuration, whoever wrote that."""
        is_tied = HEAD not in self._model.tensors or self._model.header.architecture in ALWAYS_TIED
        return {"tie_word_embeddings": is_tied}

    def load(self, config: Any, dtype: torch.dtype | None) -> Any:
        """A network of `config` with these weights. What is decoded has `dtype`; None is the configuration's.

        It lies on the processor, wherever it is to compute. Without compiled kernels all are decoded.
        """
        number_type = dtype or config.dtype or torch.bfloat16
        holds_codes = can_hold_codes()
        memory = WeightMemory()
        with quiet():
            plan = _Plan(self._model, config)
            experts = plan.coded_experts() if holds_codes else {}
            of_experts = {tensor.name for parts in experts.values() for tensor in parts}
            coded, others = {}, _Decoded(number_type)
            for tensor in self._model.tensors.values():
                if tensor.name in of_experts:
                    continue
                rows = plan.coded_rows(tensor) if holds_codes else None
                if rows is not None:
                    coded[plan.rules.names[tensor.name]] = self._coded(tensor, rows, memory)
                elif tensor.name not in READ_TENSORS:
                    others.add(plan.rules, tensor, self._stored(tensor))
                _let_go(self._stored(tensor))
            stacks = {name: stacks_of(parts, self._stored, memory) for name, parts in experts.items()}
        told = plan.unfilled((*coded, *stacks), number_type)
        network = fill(config, others.tensors | told, number_type, self._model.files[0])
        install(network, coded, stacks)
        return network

    def _stored(self, tensor: GgufTensor) -> np.ndarray:
        """The bytes of a tensor, in rows."""
        data = self._bytes[tensor.file][tensor.start : tensor.start + tensor.nbytes]
        return data.reshape(*tensor.shape[:-1], -1)

    def _coded(self, tensor: GgufTensor, rows: np.ndarray | slice, memory: WeightMemory) -> CodedWeight:
        """A matrix whose rows are `rows` of the file's. It is read in parts, few of which are in memory at a time."""
        stored = self._stored(tensor)

        def parts() -> Iterator[torch.Tensor]:
            for first in range(0, len(stored), PART_ROWS):
                own = slice(first, first + PART_ROWS)
                if isinstance(rows, slice):
                    yield torch.from_numpy(stored[own])
                    _let_go(stored[own])
                else:
                    yield torch.from_numpy(stored[rows[own]])

        return CodedWeight.from_gguf(tensor.type_name, (len(stored), tensor.shape[-1]), parts(), memory)


@contextmanager
def gguf_weights(directory: Path) -> Iterator[GgufWeights]:
    """Those of the GGUF model in `directory`."""
    links = gguf_in(directory)
    files = WeightFiles.look(directory, links)
    yield GgufWeights(files, read_gguf(link.readlink() if link.is_symlink() else link for link in links))


def _let_go(stored: np.ndarray) -> None:
    let_go_of_file(stored.ctypes.data, stored.nbytes)


class _Plan:
    """What becomes of tensors in a network of `config`."""

    def __init__(self, model: GgufModel, config: Any) -> None:
        _check_architecture(model.header.architecture)
        _, own_config = network_class(config)
        with torch.device("meta"):
            network = build_network(config, attn_implementation=interface_name(config, ATTENTION_NAME))
        self._layers: dict[str, Any] = codable_layers(network)
        self._experts = codable_experts(network)
        self._shapes = {name: each.shape for name, each in network.state_dict().items()}
        self._tensors = model.tensors.values()
        self.rules = rules_of(model.header.architecture, network, own_config, model.tensors)
        unknown = [name for name in model.tensors if not self.rules.knows(name) and name not in READ_TENSORS]
        if unknown:
            raise UnsupportedModelError(
                f"{model.header.file} has weights that a {config.model_type} model of transformers has no place for: "
                f"{abridged(sorted(unknown))}."
            )

    def coded_experts(self) -> dict[str, list[GgufTensor]]:
        """The tensors of each matrix of experts that is to stay coded, by its name."""
        return coded_tensors(self._tensors, self.rules, self._experts)

    def unfilled(self, names: Iterable[str], dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """What stands for coded weights until they are put in place: tensors that take no memory."""
        return {name: torch.zeros((), dtype=dtype).expand(self._shapes[name]) for name in names}

    def coded_rows(self, tensor: GgufTensor) -> np.ndarray | slice | None:
        """The rows of a matrix in the order of the network; None for what is not to stay coded."""
        path = self.rules.names.get(tensor.name, "").removesuffix(".weight")
        layer = self._layers.get(path)
        if tensor.type_name not in CODED_TYPES or layer is None or layer.weight.shape != tensor.shape:
            return None
        return order_of_rows(self.rules, tensor.name, tensor.shape[0])


class _Decoded:
    """Tensors of a network by name, decoded and then processed; matrices in the type of its numbers."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._dtype = dtype

    def add(self, rules: Rules, tensor: GgufTensor, stored: np.ndarray) -> None:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        try:
            numbers = dequantize(stored, GGMLQuantizationType[tensor.type_name])
        except NotImplementedError as error:
            raise UnsupportedModelError(
                f"{tensor.file} has {tensor.name} in {tensor.type_name}, which is not decoded here."
            ) from error
        processed = rules.process(tensor.name, numbers.reshape(tensor.shape), self.tensors)
        if processed is not None:
            self.tensors[rules.names[tensor.name]] = torch.from_numpy(processed)
        for name, each in self.tensors.items():
            if each.dim() > 1 and each.dtype != self._dtype:
                self.tensors[name] = each.to(self._dtype)


def _check_architecture(architecture: str) -> None:
    if architecture not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"GGUF files of the architecture {architecture!r:.100} are not read; take the checkpoint in safetensors "
            f"that this one was made from. Those that are read: {', '.join(sorted(ARCHITECTURES))}."
        )
