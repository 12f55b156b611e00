"""The weights of a checkpoint: the tensors in its safetensors files, and a network of transformers filled with them.

Transformers is never given the directory, where it would follow other entries of the configuration and read pickles:
it is given a configuration and tensors. Knows safetensors, single or sharded by an index. Does not know whether tensors
and configuration fit each other (`plausible.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from pagoda.checkpoint.weights import FLOAT_NAMES, weight_files
from pagoda.errors import CorruptCheckpointError, UnsupportedModelError
from pagoda.models.attention import ATTENTION_NAME
from pagoda.models.build import network_class
from pagoda.models.own_attention import interface_name
from pagoda.models.quiet import quiet

MAX_NAME_LENGTH = 1024
MAX_DIMENSIONS = 8
# No tensor can have more numbers along one dimension, with or without any along the others.
MAX_SIZE = 1 << 40
FLOATS: dict[str, torch.dtype] = {name: getattr(torch, ours) for name, ours in FLOAT_NAMES.items()}
OTHER_TYPES = {"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "F8_E4M3", "F8_E5M2"}


Shape = tuple[int, ...]


@dataclass(frozen=True)
class Outline:
    """How much there is: tensors, numbers in all, the longest dimension, and the largest number in a tensor's name."""

    num_tensors: int
    num_elements: int
    largest_size: int
    largest_number: int
    shapes: Mapping[str, Shape] = field(default_factory=dict)

    @classmethod
    def of(cls, shapes: Mapping[str, Shape]) -> Outline:
        numbers = (int(number) for name in shapes for number in re.findall(r"(?<![^.])\d{1,9}(?![^.])", name))
        filled = [shape for shape in shapes.values() if prod(shape)]
        sizes = (size for shape in filled for size in shape)
        return cls(len(filled), sum(map(prod, filled)), max(sizes, default=0), max(numbers, default=0), shapes)


class StoredWeights:
    """The tensors in the files of a checkpoint, by name; their values are read when they are asked for."""

    def __init__(self, directory: Path, tensors: Mapping[str, Any]) -> None:
        self._directory = directory
        self._tensors = tensors
        self.outline = Outline.of({name: tuple(tensor.get_shape()) for name, tensor in tensors.items()})

    @property
    def dtype(self) -> torch.dtype:
        """Of the first tensor of real numbers, as transformers takes it where a configuration does not say."""
        found = (FLOATS.get(tensor.get_dtype()) for tensor in self._tensors.values())
        return next((dtype for dtype in found if dtype is not None), torch.float32)

    def load(self, config: Any, dtype: torch.dtype | None) -> Any:
        """A network of `config` with these weights, which attends through Pagoda; None keeps the type they have."""
        build, own_config = network_class(config)
        try:
            with quiet():
                network, report = build.from_pretrained(
                    None,
                    config=own_config,
                    state_dict=dict(self._tensors),
                    dtype=dtype or own_config.dtype or self.dtype,
                    attn_implementation=interface_name(config, ATTENTION_NAME),
                    local_files_only=True,
                    use_safetensors=True,
                    ignore_mismatched_sizes=True,  # to name them below; transformers names them in a log line only
                    output_loading_info=True,
                )
        except (SafetensorError, OSError, RuntimeError, ValueError, KeyError) as error:
            raise CorruptCheckpointError(f"The weights in {self._directory} cannot be read: {error}") from error
        _check_report(self._directory, report)
        network.config.name_or_path = str(self._directory)
        return network.eval()


@contextmanager
def stored_weights(config_file: Path, values: Mapping[str, Any]) -> Iterator[StoredWeights]:
    """The weights beside `config_file`, which holds `values`; their files are open meanwhile."""
    with ExitStack() as stack:
        files, index = weight_files(config_file, values)
        yield StoredWeights(config_file.parent, _tensors(files, index, stack))


def _tensors(files: list[Path], index: Mapping[str, str], stack: ExitStack) -> dict[str, Any]:
    """The tensors in `files`. One that is in several is taken from where the index has it."""
    tensors: dict[str, Any] = {}
    owners: dict[str, str] = {}
    for file in files:
        opened = _open(file, stack)
        for name in opened.keys():  # noqa: SIM118 - not a dictionary
            holder = index.get(name)
            if name in owners and holder not in (owners[name], file.name):
                raise CorruptCheckpointError(f"{file.parent} has {name:.200} in {owners[name]} and in {file.name}.")
            if name not in owners or holder == file.name:
                tensors[name], owners[name] = opened.get_slice(name), file.name
                _check_tensor(file, name, tensors[name])
    return tensors


def _open(file: Path, stack: ExitStack) -> Any:
    try:
        return stack.enter_context(safe_open(file, framework="pt", device="cpu", backend="mmap"))
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise CorruptCheckpointError(f"The weights in {file} cannot be read: {error}") from error


def _check_tensor(file: Path, name: str, tensor: Any) -> None:
    """Refuse what the format allows and no network has."""
    shape, stored_as = tensor.get_shape(), tensor.get_dtype()
    if len(name) > MAX_NAME_LENGTH or len(shape) > MAX_DIMENSIONS or any(size > MAX_SIZE for size in shape):
        raise CorruptCheckpointError(
            f"{file} has {name!r:.200} with {len(shape)} dimensions ({', '.join(map(str, shape[:MAX_DIMENSIONS]))}); "
            "no network has such a tensor."
        )
    if stored_as not in FLOATS and stored_as not in OTHER_TYPES:
        raise UnsupportedModelError(f"{file} has {name} in {stored_as}; use a checkpoint in bf16, fp16 or fp32.")


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
