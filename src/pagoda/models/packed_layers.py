"""How checkpoints that were quantized before keep a linear layer: GPTQ, AWQ, compressed-tensors, FP8, bitsandbytes.

Knows the tensors of one layer by the ends of their names, and what they stand for. Does not know files, nor networks.
Each scheme gives the shape of the matrix [outputs, inputs] without reading it, and then codes, or numbers where codes
would have no scale for a group of neighbours.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch

from pagoda.checkpoint.weights import stored_nbytes
from pagoda.errors import CorruptCheckpointError
from pagoda.kernels.coded_weight import GroupedCodes

WORD_BITS = 32
MAX_BITS = 8
# Groups of codes begin where units of depth do.
GROUP_MULTIPLE = 32
# Where the codes of eight neighbouring columns are.
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
FP8_TYPES = ("F8_E4M3", "F8_E5M2")
FP8_BLOCK = (128, 128)

# A tensor that was opened: `get_shape()`, `get_dtype()`, and `[...]` reads it.
Stored = Any
Shape = tuple[int, int]


class PackedLayer(ABC):
    """The tensors of one layer, opened: by the ends of their names behind that of the layer.

    `settings` are the entry `quantization_config` of the checkpoint.
    """

    # Which ends a layer of this kind has, and may have.
    needed: frozenset[str]
    others: frozenset[str] = frozenset()

    def __init__(self, name: str, tensors: Mapping[str, Stored], settings: Mapping[str, Any]) -> None:
        self.name = name
        self._tensors = tensors
        self._settings = settings

    @property
    @abstractmethod
    def shape(self) -> Shape:
        """[outputs, inputs]"""

    @abstractmethod
    def read(self) -> GroupedCodes | torch.Tensor:
        """The codes, or the numbers [outputs, inputs] in fp32. Raises CorruptCheckpointError for shapes that clash."""

    @property
    def nbytes(self) -> int:
        """Of its tensors, as they are stored."""
        return sum(map(stored_nbytes, self._tensors.values()))

    def _shape_of(self, end: str) -> tuple[int, ...]:
        return tuple(self._tensors[end].get_shape())

    def _read(self, end: str) -> torch.Tensor:
        tensor: torch.Tensor = self._tensors[end][...]
        return tensor

    def _has(self, end: str) -> bool:
        return end in self._tensors

    def _check(self, end: str, *wanted: int) -> None:
        if self._shape_of(end) != wanted:
            raise CorruptCheckpointError(
                f"{self.name}.{end} has the shape {list(self._shape_of(end))} instead of {list(wanted)}."
            )


class GptqLayer(PackedLayer):
    """AutoGPTQ's: codes of inputs in words, a scale and a zero for each group of inputs and each output.

    In the first format zeros are less by one. Inputs may belong to any group (`desc_act`): then numbers are read.
    """

    needed = frozenset(("qweight", "qzeros", "scales"))
    others = frozenset(("g_idx",))
    zero_offset = 1

    @property
    def shape(self) -> Shape:
        words, outputs = self._shape_of("qweight")
        return outputs, words * WORD_BITS // self._bits

    @property
    def _bits(self) -> int:
        """Zeros have as many as weights have: so many of a group fill so many words."""
        outputs = self._shape_of("qweight")[1]
        return max(1, self._shape_of("qzeros")[-1] * WORD_BITS // max(1, outputs))

    def read(self) -> GroupedCodes | torch.Tensor:
        outputs, inputs = self.shape
        groups = self._shape_of("scales")[0]
        self._check("scales", groups, outputs)
        self._check("qzeros", groups, -(-outputs * self._bits // WORD_BITS))
        codes = unpacked(self._read("qweight").T, self._bits, inputs)
        zeros = unpacked(self._read("qzeros"), self._bits, outputs).T.float() + self.zero_offset
        scales = self._read("scales").T.float()
        group = -(-inputs // groups)
        if self._has("g_idx"):
            self._check("g_idx", inputs)
            places = self._read("g_idx").long()
            if not torch.equal(places, torch.arange(inputs) // group):
                self._check_places(places, groups)
                return scales[:, places] * (codes.float() - zeros[:, places])
        return grouped(codes, self._bits, scales, zeros, group)

    def _check_places(self, places: torch.Tensor, groups: int) -> None:
        if not 0 <= int(places.min()) <= int(places.max()) < groups:
            raise CorruptCheckpointError(f"{self.name}.g_idx names groups that are not there: there are {groups}.")


class SecondGptqLayer(GptqLayer):
    """The second format of GPTQ (`gptq_v2`): zeros are what they are."""

    zero_offset = 0


class AwqLayer(PackedLayer):
    """AWQ's, for products of matrices (`gemm`): codes of outputs in words, in an order of their own."""

    needed = frozenset(("qweight", "qzeros", "scales"))
    bits = 4

    @property
    def shape(self) -> Shape:
        inputs, words = self._shape_of("qweight")
        return words * WORD_BITS // self.bits, inputs

    def read(self) -> GroupedCodes | torch.Tensor:
        outputs, inputs = self.shape
        groups = self._shape_of("scales")[0]
        self._check("scales", groups, outputs)
        self._check("qzeros", groups, outputs * self.bits // WORD_BITS)
        codes, zeros = (self._columns(end, outputs) for end in ("qweight", "qzeros"))
        return grouped(codes, self.bits, self._read("scales").T.float(), zeros.float(), -(-inputs // groups))

    def _columns(self, end: str, outputs: int) -> torch.Tensor:
        """[outputs, rows]"""
        words = unpacked(self._read(end), self.bits, outputs).unflatten(-1, (-1, len(AWQ_ORDER)))
        codes: torch.Tensor = words[..., list(AWQ_ORDER)].flatten(-2).T
        return codes


class PackQuantizedLayer(PackedLayer):
    """compressed-tensors' `pack-quantized`: codes of inputs in words, zeros of outputs in words."""

    needed = frozenset(("weight_packed", "weight_scale", "weight_shape"))
    others = frozenset(("weight_zero_point", "weight_g_idx"))

    @property
    def shape(self) -> Shape:
        outputs, inputs = self._read("weight_shape").tolist()
        return outputs, inputs

    def read(self) -> GroupedCodes | torch.Tensor:
        (outputs, inputs), words = self.shape, self._shape_of("weight_packed")[-1]
        bits = max(1, words * WORD_BITS // inputs)
        self._check("weight_packed", outputs, -(-inputs * bits // WORD_BITS))
        scales = self._read("weight_scale").float().reshape(-1, self._shape_of("weight_scale")[-1]).expand(outputs, -1)
        codes = unpacked(self._read("weight_packed"), bits, inputs)
        groups = scales.shape[1]
        zeros = torch.full((outputs, groups), float(1 << (bits - 1)))
        if self._has("weight_zero_point"):
            self._check("weight_zero_point", -(-outputs * bits // WORD_BITS), groups)
            zeros = unpacked(self._read("weight_zero_point").T, bits, outputs).T.float()
        group = -(-inputs // groups)
        if self._has("weight_g_idx"):
            places = self._read("weight_g_idx").long()
            if not torch.equal(places, torch.arange(inputs) // group):
                return scales[:, places] * (codes.float() - zeros[:, places])
        return grouped(codes, bits, scales, zeros, group)


class ByteLayer(PackedLayer):
    """compressed-tensors' `int-quantized` and `naive-quantized`: signed bytes."""

    needed = frozenset(("weight", "weight_scale"))
    others = frozenset(("weight_zero_point",))

    @property
    def shape(self) -> Shape:
        outputs, inputs = self._shape_of("weight")
        return outputs, inputs

    def read(self) -> GroupedCodes | torch.Tensor:
        outputs, inputs = self.shape
        scales = self._read("weight_scale").float().reshape(-1, self._shape_of("weight_scale")[-1]).expand(outputs, -1)
        zeros = torch.zeros(1, 1)
        if self._has("weight_zero_point"):
            zeros = self._read("weight_zero_point").float().reshape(-1, scales.shape[1])
        codes = (self._read("weight").to(torch.int16) + 128).to(torch.uint8)
        return grouped(codes, 8, scales, (zeros + 128).expand_as(scales), -(-inputs // scales.shape[1]))


class Float8Layer(PackedLayer):
    """Numbers of 8 bits with a scale: of the matrix, of each output, or of each block (`weight_scale_inv`).

    Numbers are read.
    """

    needed = frozenset(("weight",))
    others = frozenset(("weight_scale", "weight_scale_inv", "input_scale", "activation_scale"))

    @property
    def shape(self) -> Shape:
        outputs, inputs = self._shape_of("weight")
        return outputs, inputs

    def read(self) -> torch.Tensor:
        outputs, inputs = self.shape
        numbers = self._read("weight").float()
        if not self._has("weight_scale_inv"):
            scales = self._read("weight_scale").float()
            if scales.numel() not in (1, outputs):
                self._check("weight_scale", outputs, 1)
            return numbers * scales.reshape(-1, 1)
        rows, columns = self._settings.get("weight_block_size") or FP8_BLOCK
        self._check("weight_scale_inv", -(-outputs // rows), -(-inputs // columns))
        spread = self._read("weight_scale_inv").float().repeat_interleave(rows, dim=0)[:outputs]
        return numbers * spread.repeat_interleave(columns, dim=1)[:, :inputs]


class BitsAndBytes8Layer(PackedLayer):
    """bitsandbytes' LLM.int8(): signed bytes, of which 127 is the largest number of an output (`SCB`)."""

    needed = frozenset(("weight", "SCB"))
    others = frozenset(("weight_format",))

    @property
    def shape(self) -> Shape:
        outputs, inputs = self._shape_of("weight")
        return outputs, inputs

    def read(self) -> GroupedCodes:
        outputs, inputs = self.shape
        self._check("SCB", outputs)
        codes = (self._read("weight").to(torch.int16) + 128).to(torch.uint8)
        return GroupedCodes(codes, 8, self._read("SCB").float()[:, None] / 127, inputs, zero=128)


class BitsAndBytes4Layer(PackedLayer):
    """bitsandbytes' NF4 and FP4: places in a table of numbers, with a scale for each block; numbers are read."""

    needed = frozenset(("weight", "weight.absmax", "weight.quant_map"))
    others = frozenset(
        (
            *("weight.nested_absmax", "weight.nested_quant_map"),
            *("weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__fp4"),
        )
    )

    @property
    def _state(self) -> dict[str, Any]:
        end = next(end for end in sorted(self._tensors) if ".quant_state." in end)
        state: dict[str, Any] = json.loads(bytes(self._read(end).tolist()))
        return state

    @property
    def shape(self) -> Shape:
        outputs, inputs = self._state["shape"]
        return outputs, inputs

    def read(self) -> torch.Tensor:
        state, (outputs, inputs) = self._state, self.shape
        packed = self._read("weight").flatten()
        places = torch.stack((packed >> 4, packed & 15), dim=-1).flatten().long()[: outputs * inputs]
        scales = self._read("weight.absmax")
        if self._has("weight.nested_absmax"):
            table, nested = self._read("weight.nested_quant_map").float(), self._read("weight.nested_absmax").float()
            blocks = nested.repeat_interleave(state["nested_blocksize"])[: len(scales)]
            scales = table[scales.long()] * blocks + state["nested_offset"]
        spread = scales.float().repeat_interleave(state["blocksize"])[: len(places)]
        return (self._read("weight.quant_map").float()[places] * spread).reshape(outputs, inputs)


def unpacked(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Codes of words of 32 bits [rows, words]: uint8 [rows, count]. They follow each other, whatever words they are in.

    Raises CorruptCheckpointError for more than 8 bits, which nobody has.
    """
    if bits > MAX_BITS:
        raise CorruptCheckpointError(f"The weights should have codes of {bits} bits; {MAX_BITS} are the most.")
    flat = words.to(torch.int32).flatten()  # words that lie apart can be no octets
    octets = flat.view(torch.uint8).reshape(len(words), -1)  # the lowest bits come first
    starts = torch.arange(count) * bits
    places, shifts = starts // 8, (starts % 8).to(torch.int32)
    padded = torch.nn.functional.pad(octets, (0, 1))
    both = padded[:, places].to(torch.int32) | padded[:, places + 1].to(torch.int32) << 8
    return (both >> shifts & (1 << bits) - 1).to(torch.uint8)


def grouped(
    codes: torch.Tensor, bits: int, scales: torch.Tensor, zeros: torch.Tensor, group: int
) -> GroupedCodes | torch.Tensor:
    """Of codes [outputs, inputs], scales and zeros [outputs, groups]; numbers if groups are not of whole units."""
    inputs = codes.shape[1]
    if group < inputs and group % GROUP_MULTIPLE:
        own_scales, own_zeros = (each.repeat_interleave(group, dim=1)[:, :inputs] for each in (scales, zeros))
        return own_scales * (codes.float() - own_zeros)
    zero = float(zeros.flatten()[0])
    if bool((zeros == zero).all()):
        return GroupedCodes(codes, bits, scales.contiguous(), group, int(zero))
    return GroupedCodes(codes, bits, scales.contiguous(), group, 0, (scales * zeros).contiguous())
