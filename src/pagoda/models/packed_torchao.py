"""How torchao keeps a weight in safetensors: parts of it are tensors, and the header says by its name what they mean.

Knows the tensors of one weight, and what is said of it. Does not know files, nor networks. What is quantized while a
model runs, its activations, is passed over.
"""

from __future__ import annotations

import json
import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from pagoda.errors import CorruptCheckpointError, UnsupportedModelError
from pagoda.kernels.coded_weight import GroupedCodes
from pagoda.models.packed_layers import FP8_TYPES, GROUP_MULTIPLE, PackedLayer, Shape, grouped

# The method, as a configuration names it.
TORCHAO = "torchao"
# How the name of a part goes on behind that of its layer.
PART = "_weight_"
CODES, SCALE, ZERO = f"{PART}qdata", f"{PART}scale", f"{PART}zero_point"
# What inputs are multiplied by, as AWQ and SmoothQuant have it.
INPUT_SCALE = f"{PART}act_pre_scale"
# Known before a model runs, of activations.
ACTIVATIONS = frozenset((f"{PART}act_quant_scale", f"{PART}act_quant_zero_point"))
HALVES = ("F16", "BF16")
SCALES = ("F32", *HALVES)
# Those that are written have some hundred letters.
MAX_ENTRY_LENGTH = 10_000
ADVICE = "Use a checkpoint without it, a GGUF file, or a checkpoint in bf16, fp16 or fp32."


class TorchaoLayer(PackedLayer):
    """The parts of one weight; `settings` are what the header says of it."""

    others = frozenset((INPUT_SCALE,))

    @abstractmethod
    def check(self) -> None:
        """Raises CorruptCheckpointError for parts that fit neither each other nor what is said of them."""

    @abstractmethod
    def _weight(self) -> GroupedCodes | torch.Tensor:
        """Without what inputs are multiplied by."""

    def read(self) -> GroupedCodes | torch.Tensor:
        found = self._weight()
        if not self._has(INPUT_SCALE):
            return found
        numbers = found.numbers() if isinstance(found, GroupedCodes) else found
        return numbers * self._read(INPUT_SCALE).float().reshape(1, -1)

    def check_all(self) -> None:
        """The same, and whether inputs can be multiplied."""
        self.check()
        if self._has(INPUT_SCALE):
            self._check_grid(INPUT_SCALE, SCALES, 1, self.shape[1])

    def _check_type(self, end: str, *wanted: str) -> None:
        found = self._tensors[end].get_dtype()
        if found not in wanted:
            raise CorruptCheckpointError(f"{self.name}.{end} is in {found} instead of {' or '.join(wanted)}.")

    def _check_grid(self, end: str, types: Iterable[str], rows: int, columns: int) -> None:
        """Whether a part has so many numbers; dimensions of one are written or left out."""
        self._check_type(end, *types)
        if [size for size in self._shape_of(end) if size != 1] != [size for size in (rows, columns) if size != 1]:
            self._check(end, rows, columns)

    def _matrix_shape(self, end: str) -> Shape:
        return _pair(self._shape_of(end), f"{self.name}.{end} has the shape")

    def _pair_said(self, what: str) -> Shape:
        return _pair(self._settings.get(what), f"The header says of {self.name} that its {what} is")


class BytesLayer(TorchaoLayer):
    """`Int8Tensor`: signed bytes, with a scale and perhaps a zero for each block of outputs and inputs."""

    needed = frozenset((CODES, SCALE))
    others = frozenset((ZERO, INPUT_SCALE)) | ACTIVATIONS

    @property
    def shape(self) -> Shape:
        return self._matrix_shape(CODES)

    @property
    def _bits(self) -> int:
        return 8

    @property
    def _grid(self) -> Shape:
        """How many blocks there are."""
        (outputs, inputs), (rows, columns) = self.shape, self._pair_said("block_size")
        if outputs % rows or inputs % columns:
            raise CorruptCheckpointError(
                f"{self.name} should be in blocks of {rows} x {columns}, which {outputs} x {inputs} codes are not."
            )
        return outputs // rows, inputs // columns

    def check(self) -> None:
        self._check_type(CODES, "I8")
        self._check_grid(SCALE, SCALES, *self._grid)
        if self._has(ZERO):
            self._check_grid(ZERO, ("I8", *SCALES), *self._grid)

    def _weight(self) -> GroupedCodes | torch.Tensor:
        group = self.shape[1] // self._grid[1]
        raised = 1 << (self._bits - 1)
        codes = self._read(CODES).contiguous().view(torch.uint8) + raised  # what is no code is too large then
        if self._bits < 8 and int(codes.max()) >> self._bits:
            raise CorruptCheckpointError(f"{self.name}.{CODES} has codes of more than {self._bits} bits.")
        scales = self._spread(SCALE)
        zeros = (self._spread(ZERO) if self._has(ZERO) else torch.zeros_like(scales)) + raised
        if self._are_whole(zeros):
            return grouped(codes, self._bits, scales, zeros, group)
        own_scales, own_zeros = (each.repeat_interleave(group, dim=1) for each in (scales, zeros))
        return own_scales * (codes.float() - own_zeros)

    def _spread(self, end: str) -> torch.Tensor:
        """One for each output: fp32 [outputs, blocks of inputs]."""
        rows = self.shape[0] // self._grid[0]
        return self._read(end).float().reshape(self._grid).repeat_interleave(rows, dim=0)

    def _are_whole(self, zeros: torch.Tensor) -> bool:
        """Whether codes with such zeros stand for the same numbers to the bit: products of scales have to be exact."""
        is_one = bool((zeros == zeros[0, 0]).all())
        are_codes = bool((zeros == zeros.round()).all()) and float(zeros.abs().max()) <= 256
        return are_codes and (is_one or self._tensors[SCALE].get_dtype() in HALVES)


class UnpackedLayer(BytesLayer):
    """`IntxUnpackedToInt8Tensor`: codes of 1 to 8 bits, each in a signed byte."""

    needed = frozenset((CODES, SCALE, ZERO))
    others = frozenset((INPUT_SCALE,))

    @property
    def _bits(self) -> int:
        said = self._settings.get("target_dtype")
        found = re.fullmatch("int([1-8])", str(said.get("_data")) if isinstance(said, dict) else "")
        if found is None:
            raise CorruptCheckpointError(f"The header says of {self.name} that its target_dtype is {said!r:.100}.")
        return int(found[1])

    def check(self) -> None:
        super().check()
        _ = self._bits


class NibblesLayer(TorchaoLayer):
    """`Int4Tensor`: two signed codes in a byte, with a scale and what is added for each group of inputs."""

    needed = frozenset((CODES, SCALE, ZERO))
    bits = 4

    @property
    def shape(self) -> Shape:
        return self._pair_said("shape")

    @property
    def _group(self) -> int:
        rows, columns = self._pair_said("block_size")
        if rows != 1:
            raise CorruptCheckpointError(f"{self.name} has codes of 4 bits with a scale for {rows} outputs.")
        return min(columns, self.shape[1])

    def check(self) -> None:
        outputs, inputs = self.shape
        self._check_type(CODES, "I8", "U8")
        self._check(CODES, outputs, -(-inputs // 2))
        for end in (SCALE, ZERO):
            self._check_type(end, *SCALES)
            self._check(end, -(-inputs // self._group), outputs)

    def _weight(self) -> GroupedCodes | torch.Tensor:
        inputs, group, middle = self.shape[1], self._group, 1 << (self.bits - 1)
        pairs = self._read(CODES).contiguous().view(torch.uint8)
        codes = torch.stack((pairs & 15, pairs >> 4), dim=-1).flatten(1)[:, :inputs] ^ middle
        scales, added = (self._read(end).float().T.contiguous() for end in (SCALE, ZERO))
        if not bool(added.any()):
            return grouped(codes, self.bits, scales, torch.full_like(scales, middle), group)
        if group == inputs or group % GROUP_MULTIPLE == 0:
            return GroupedCodes(codes, self.bits, scales, group, 0, middle * scales - added)
        own_scales, own_added = (each.repeat_interleave(group, dim=1)[:, :inputs] for each in (scales, added))
        return own_scales * (codes.float() - middle) + own_added


class Float8WeightLayer(TorchaoLayer):
    """`Float8Tensor`: numbers of 8 bits with a scale for each block. Numbers are read."""

    needed = frozenset((CODES, SCALE))
    others = frozenset()

    @property
    def shape(self) -> Shape:
        return self._matrix_shape(CODES)

    @property
    def _grid(self) -> Shape:
        return (1, 1) if set(self._shape_of(SCALE)) <= {1} else self._matrix_shape(SCALE)

    def check(self) -> None:
        self._check_type(CODES, *FP8_TYPES)
        self._check_type(SCALE, *SCALES)
        if any(size % blocks for size, blocks in zip(self.shape, self._grid, strict=True)):
            self._check(SCALE, self.shape[0], 1)

    def _weight(self) -> torch.Tensor:
        rows, columns = (size // blocks for size, blocks in zip(self.shape, self._grid, strict=True))
        scales = self._read(SCALE).float().reshape(self._grid)
        return self._read(CODES).float() * scales.repeat_interleave(rows, dim=0).repeat_interleave(columns, dim=1)


# By the names that headers have for them.
KINDS: dict[str, type[TorchaoLayer]] = {
    "Int8Tensor": BytesLayer,
    "IntxUnpackedToInt8Tensor": UnpackedLayer,
    "Int4Tensor": NibblesLayer,
    "Float8Tensor": Float8WeightLayer,
}


def torchao_layers(
    tensors: Mapping[str, Any], said: Mapping[str, str]
) -> tuple[dict[str, PackedLayer], dict[str, Any]]:
    """The layers that are quantized, by name, and all other tensors; `said` is what headers say by names.

    Raises UnsupportedModelError for weights that are kept in another way, and CorruptCheckpointError.
    """
    parts: dict[str, dict[str, Any]] = {}
    others: dict[str, Any] = {}
    for name, tensor in tensors.items():
        layer, _, end = name.rpartition(".")
        if end.startswith(PART):
            parts.setdefault(layer, {})[end] = tensor
        elif end.startswith("_") and end.endswith("_qdata"):
            raise UnsupportedModelError(
                f"{layer} has {end.removesuffix('_qdata')[1:]} quantized by torchao; of a layer Pagoda reads that of "
                f"its weight alone. {ADVICE}"
            )
        else:
            others[name] = tensor
    return {name: _layer(name, own, said.get(f"{name}.weight")) for name, own in parts.items()}, others


def _layer(name: str, own: Mapping[str, Any], text: str | None) -> PackedLayer:
    entry = _entry(name, text)
    kind = KINDS.get(entry["_type"])
    if kind is None:
        raise UnsupportedModelError(
            f"The weight of {name} is kept as {entry['_type']!r:.100} of torchao; those that are read: "
            f"{', '.join(KINDS)}. {ADVICE}"
        )
    listed = {f"{PART}{each}" for each in entry.get("_tensor_data_names", [each.removeprefix(PART) for each in own])}
    missing = (kind.needed | listed) - own.keys()
    if missing:
        raise CorruptCheckpointError(f"The weights lack {', '.join(f'{name}.{end}' for end in sorted(missing))}.")
    unknown = own.keys() - (kind.needed | kind.others)
    if unknown:
        raise UnsupportedModelError(
            f"{name} has {', '.join(sorted(unknown))}, which Pagoda does not know of {entry['_type']}. {ADVICE}"
        )
    layer = kind(name, own, entry["_data"])
    layer.check_all()
    return layer


def _entry(name: str, text: str | None) -> dict[str, Any]:
    """What the header says of a weight: its kind, attributes, and which parts it has."""
    try:
        entry = json.loads(text) if text is not None and len(text) <= MAX_ENTRY_LENGTH else None
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict) or not isinstance(entry.get("_type"), str):
        raise CorruptCheckpointError(
            f"The header of the weights does not say what the parts of {name}.weight mean ({text!r:.100}); torchao "
            "says so in each file that it writes."
        )
    parts = entry.get("_tensor_data_names", [])
    if not isinstance(entry.get("_data"), dict) or not isinstance(parts, list):
        raise CorruptCheckpointError(f"The header of the weights has {text!r:.100} for {name}.weight.")
    return entry


def _pair(found: Any, complaint: str) -> Shape:
    """Two sizes."""
    if (
        not isinstance(found, (list, tuple))
        or len(found) != 2
        or not all(type(each) is int and each > 0 for each in found)
    ):
        raise CorruptCheckpointError(f"{complaint} {found!r:.100} instead of two sizes.")
    return found[0], found[1]
