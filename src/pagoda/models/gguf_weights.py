"""The weights of a GGUF model: a network of transformers that is filled with them, most of them coded as they are.

Transformers says what tensors are called and what its own loader would do to their numbers. Matrices of linear layers
and embeddings stay in their file, mapped, in the blocks that they have there; if rows have another order in the
network, they are copied in that order, which is found by asking what becomes of the numbers of rows. All others are
decoded. Does not know how blocks are multiplied (`models/coded.py`), nor headers (`checkpoint/gguf_header.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pagoda.checkpoint.gguf_config import HEAD, READ_TENSORS
from pagoda.checkpoint.gguf_files import GgufModel, gguf_in, read_gguf
from pagoda.checkpoint.gguf_header import GgufTensor
from pagoda.checkpoint.weights import Outline
from pagoda.errors import UnsupportedModelError
from pagoda.kernels.coded_weight import GGUF_TYPES, CodedWeight
from pagoda.models.attention import ATTENTION_NAME
from pagoda.models.build import build_network, network_class
from pagoda.models.coded import install, takes_codes
from pagoda.models.kept_digest import WeightFiles
from pagoda.models.own_attention import interface_name
from pagoda.models.quiet import quiet
from pagoda.models.weights import abridged, fill

# Those that tests hold to the logits of transformers. What llama.cpp does to the tensors of others would have to be
# undone, and nobody would see that it is not.
ARCHITECTURES = {
    *("bloom", "falcon", "gemma2", "gemma3", "gpt2", "lfm2", "llama", "mamba", "nemotron", "phi3", "qwen2", "qwen2moe"),
    *("qwen3", "qwen3moe", "stablelm", "starcoder2"),
}
# Whose head is the table of tokens, whatever a file has.
ALWAYS_TIED = ("bloom", "falcon")


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

    def load(self, config: Any, dtype: torch.dtype | None, device: torch.device) -> Any:
        """A network of `config` with these weights. What is decoded has `dtype`; None is the configuration's.

        On a GPU all are decoded.
        """
        number_type = dtype or config.dtype or torch.bfloat16
        with quiet():
            plan = _Plan(self._model, config)
            coded, others = {}, _Decoded(number_type)
            for tensor in self._model.tensors.values():
                rows = plan.coded_rows(tensor) if device.type == "cpu" else None
                if rows is not None:
                    coded[plan.names[tensor.name]] = self._coded(tensor, rows)
                elif tensor.name not in READ_TENSORS:
                    others.add(plan, tensor, self._stored(tensor))
        told = others.tensors | {name: _unfilled(weight, number_type) for name, weight in coded.items()}
        network = fill(config, told, number_type, self._model.files[0])
        install(network, coded)
        return network

    def _stored(self, tensor: GgufTensor) -> np.ndarray:
        """The bytes of a tensor, in rows."""
        data = self._bytes[tensor.file][tensor.start : tensor.start + tensor.nbytes]
        return data.reshape(*tensor.shape[:-1], -1)

    def _coded(self, tensor: GgufTensor, rows: np.ndarray | slice) -> CodedWeight:
        return CodedWeight.from_gguf(tensor.type_name, torch.from_numpy(self._stored(tensor)[rows]), tensor.shape[-1])


@contextmanager
def gguf_weights(directory: Path) -> Iterator[GgufWeights]:
    """Those of the GGUF model in `directory`."""
    links = gguf_in(directory)
    files = WeightFiles.look(directory, links)
    yield GgufWeights(files, read_gguf(link.readlink() for link in links))


@dataclass(frozen=True)
class _Names:
    """As much of a network as transformers looks at to find names: those of the whole and of the parts right below.

    It would make its table of names anew for every module, for half a minute.
    """

    names: tuple[str, ...]
    parts: tuple[tuple[str, _Names], ...] = ()

    @classmethod
    def of(cls, network: nn.Module) -> _Names:
        parts = ((name, cls(tuple(part.state_dict()))) for name, part in network.named_children())
        return cls(tuple(network.state_dict()), tuple(parts))

    def state_dict(self) -> tuple[str, ...]:
        return self.names

    def named_children(self) -> tuple[tuple[str, _Names], ...]:
        return self.parts


class _Plan:
    """What becomes of tensors: `names` in the network, by those in the file, and how transformers would change them."""

    def __init__(self, model: GgufModel, config: Any) -> None:
        from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

        architecture = model.header.architecture
        _check_architecture(architecture)
        _, own_config = network_class(config)
        with torch.device("meta"):
            network = build_network(config, attn_implementation=interface_name(config, ATTENTION_NAME))
        self._modules = dict(network.named_modules())
        kind: Any = TENSOR_PROCESSORS.get(architecture, TensorProcessor)
        self._processor: Any = kind(config=own_config.to_dict())
        self.names: dict[str, str] = get_gguf_hf_weights_map(
            _Names.of(network), self._processor, architecture, own_config.num_hidden_layers
        )
        unknown = [name for name in model.tensors if not self._knows(name) and name not in READ_TENSORS]
        if unknown:
            raise UnsupportedModelError(
                f"{model.header.file} has weights that a {config.model_type} model of transformers has no place for: "
                f"{abridged(sorted(unknown))}."
            )

    def _knows(self, name: str) -> bool:
        return name in self.names or name.removesuffix(".weight") in self.names

    def coded_rows(self, tensor: GgufTensor) -> np.ndarray | slice | None:
        """The rows of a matrix in the order of the network; None for what is not to stay coded."""
        path = self.names.get(tensor.name, "").removesuffix(".weight")
        module: Any = self._modules.get(path)
        if tensor.type_name not in GGUF_TYPES or len(tensor.shape) != 2 or not takes_codes(path, module):
            return None
        if module.weight.shape != tensor.shape:
            return None
        return self._order(tensor.name, tensor.shape[0])

    def process(self, tensor: GgufTensor, numbers: np.ndarray, found: dict[str, torch.Tensor]) -> np.ndarray | None:
        """`numbers` as the network has them; None if they went to `found` by other names, as those of experts do."""
        known = {"tensor_key_mapping": self.names, "parsed_parameters": {"tensors": found}}
        result: Any = self._processor.process(weights=numbers, name=tensor.name, **known)
        return None if result.name is None else np.ascontiguousarray(result.weights)

    def _order(self, name: str, count: int) -> np.ndarray | slice | None:
        """Where the rows of a matrix come from, by what becomes of their numbers; None if more becomes of them."""
        numbers = np.arange(2.0 * count).reshape(count, 2)
        try:
            with np.errstate(all="ignore"):
                result: Any = self._processor.process(weights=numbers.copy(), name=name)
        except Exception:  # it needs the true width, so it does not leave rows as they are
            return None
        if result.name != name or result.weights.shape != numbers.shape:
            return None
        if np.array_equal(result.weights, numbers):
            return slice(None)
        order = (result.weights[:, 0] / 2).astype(np.int64)
        is_order = np.array_equal(np.sort(order), np.arange(count)) and np.array_equal(result.weights, numbers[order])
        return order if is_order else None


class _Decoded:
    """Tensors of a network by name, decoded and then processed; matrices in the type of its numbers."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._dtype = dtype

    def add(self, plan: _Plan, tensor: GgufTensor, stored: np.ndarray) -> None:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        try:
            numbers = dequantize(stored, GGMLQuantizationType[tensor.type_name])
        except NotImplementedError as error:
            raise UnsupportedModelError(
                f"{tensor.file} has {tensor.name} in {tensor.type_name}, which is not decoded here."
            ) from error
        processed = plan.process(tensor, numbers.reshape(tensor.shape), self.tensors)
        if processed is not None:
            self.tensors[plan.names[tensor.name]] = torch.from_numpy(processed)
        for name, each in self.tensors.items():
            if each.dim() > 1 and each.dtype != self._dtype:
                self.tensors[name] = each.to(self._dtype)


def _check_architecture(architecture: str) -> None:
    if architecture not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"GGUF files of the architecture {architecture!r:.100} are not read; take the checkpoint in safetensors "
            f"that this one was made from. Those that are read: {', '.join(sorted(ARCHITECTURES))}."
        )


def _unfilled(weight: CodedWeight, dtype: torch.dtype) -> torch.Tensor:
    """Stands for a coded weight until it is put in place: a matrix of its shape that takes no memory."""
    return torch.zeros((), dtype=dtype).expand(weight.rows, weight.depth)
