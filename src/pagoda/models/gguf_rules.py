"""What tensors of GGUF files are called in networks of transformers, and what its own loader would do to their numbers.

Transformers says so in two ways: by a table of names and a processor, or, of newer architectures, by transforms. Knows
neither files nor types. Which rows of a matrix go where is found by asking what becomes of their numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import nn

# Layers that guess several tokens at once, of which transformers has no network.
GUESSING = "mtp."


class Rules(Protocol):
    """`names` in a network, by those in a file."""

    @property
    def names(self) -> Mapping[str, str]: ...

    def knows(self, name: str) -> bool:
        """Whether a tensor has a place, or is left out knowingly."""

    def process(self, name: str, numbers: np.ndarray, found: dict[str, torch.Tensor]) -> np.ndarray | None:
        """`numbers` as the network has them; None if they went to `found` by other names, as those of experts do."""


def rules_of(architecture: str, network: nn.Module, config: Any, tensors: Iterable[str]) -> Rules:
    """For `tensors` of a file, to be put into `network`, which has `config` and need not have weights."""
    from transformers.integrations.gguf.utils import is_gguf_arch_supported

    if is_gguf_arch_supported(architecture):
        return Transforms(architecture, network, config, tensors)
    return Table(architecture, network, config)


def order_of_rows(rules: Rules, name: str, count: int) -> np.ndarray | slice | None:
    """Where the rows of a matrix come from; None if more becomes of it than another order."""
    numbers = np.arange(2.0 * count).reshape(count, 2)
    result = _tried(rules, name, numbers, {})
    if result is None or result.shape != numbers.shape or not np.isfinite(result).all():
        return None
    if np.array_equal(result, numbers):
        return slice(None)
    order = (result[:, 0] / 2).astype(np.int64)
    is_order = np.array_equal(np.sort(order), np.arange(count)) and np.array_equal(result, numbers[order])
    return order if is_order else None


class Place(NamedTuple):
    """Where the columns of a tensor of experts are: in the matrix `name` of a network, from `first` on."""

    name: str
    first: int


def place_of_columns(rules: Rules, name: str, count: int) -> Place | None:
    """Of a tensor [experts, `count`, depth] that goes to `found`; None for all others."""
    numbers, found = np.arange(1.0, 2.0 * count + 1).reshape(1, count, 2), dict[str, torch.Tensor]()
    if _tried(rules, name, numbers, found) is not None or len(found) != 1:
        return None
    place, matrix = next(iter(found.items()))
    first = int(matrix[0, :, 0].ne(1).int().argmin())
    return Place(place, first) if np.array_equal(matrix[:, first : first + count].numpy(), numbers) else None


def _tried(rules: Rules, name: str, numbers: np.ndarray, found: dict[str, torch.Tensor]) -> np.ndarray | None:
    """What becomes of `numbers`; None, and nothing found, if a rule fails, which needs the true width."""
    try:
        with np.errstate(all="ignore"):
            return rules.process(name, numbers.copy(), found)
    except Exception:
        found.clear()
        return None


class Table:
    """A table of names, and a processor of the architecture."""

    def __init__(self, architecture: str, network: nn.Module, config: Any) -> None:
        from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

        kind: Any = TENSOR_PROCESSORS.get(architecture, TensorProcessor)
        self._processor: Any = kind(config=config.to_dict())
        self.names: dict[str, str] = get_gguf_hf_weights_map(
            _Names.of(network), self._processor, architecture, config.num_hidden_layers
        )

    def knows(self, name: str) -> bool:
        return name in self.names or name.removesuffix(".weight") in self.names

    def process(self, name: str, numbers: np.ndarray, found: dict[str, torch.Tensor]) -> np.ndarray | None:
        known = {"tensor_key_mapping": self.names, "parsed_parameters": {"tensors": found}}
        result: Any = self._processor.process(weights=numbers, name=name, **known)
        return None if result.name is None else np.ascontiguousarray(result.weights)


class Transforms:
    """Names that are changed bit by bit, and operations one after the other."""

    def __init__(self, architecture: str, network: nn.Module, config: Any, tensors: Iterable[str]) -> None:
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
        from transformers.integrations.gguf.utils import get_gguf_conversion_mapping

        mapping = get_gguf_conversion_mapping(architecture, config)
        renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
        converters = [each for each in mapping if isinstance(each, WeightConverter)]
        operations: dict[Any, list[Any]] = {
            pattern: each.operations for each in converters for pattern in each.source_patterns
        }
        told = {name: rename_source_key(name, renamings, converters) for name in tensors}
        places = network.state_dict().keys()
        self.names = {name: place for name, (place, _) in told.items() if place in places}
        self._left_out = {name for name, (place, _) in told.items() if place.startswith(GUESSING)}
        self._operations = {name: operations.get(pattern, []) for name, (_, pattern) in told.items()}

    def knows(self, name: str) -> bool:
        return name in self.names or name in self._left_out

    def process(self, name: str, numbers: np.ndarray, found: dict[str, torch.Tensor]) -> np.ndarray | None:  # noqa: ARG002
        if name in self._left_out:
            return None
        tensor = torch.from_numpy(numbers)
        for operation in self._operations[name]:
            converted = operation.convert({name: tensor}, source_patterns=[name], target_patterns=[name])
            tensor = converted[name]
        return tensor.numpy()


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
