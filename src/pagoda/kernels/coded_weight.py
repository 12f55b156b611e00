"""A matrix of weights held as codes of few bits, laid out for products on the compiled kernels (csrc/coding.h).

Knows how GGUF files and arrays of codes become one, and what its numbers are. Does not know files, nor which layer it
belongs to.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from pagoda.errors import ConfigError, KernelUnavailableError
from pagoda.kernels.coded_sizes import HELD_BITS
from pagoda.kernels.native_calls import compiled
from pagoda.kernels.weight_memory import WeightMemory

if TYPE_CHECKING:
    from pagoda.kernels import _native

# The largest of a signed byte.
MOST_ZERO = 127
NUMBERS = {torch.float32: "FP32", torch.float16: "FP16", torch.bfloat16: "BF16"}


@dataclass(frozen=True)
class GroupedCodes:
    """Codes of a matrix whose groups of columns have scales, and minima: weight = scale * (code - zero) - minimum.

    codes: uint8 [rows, depth], of `bits` bits, 8 at most.
    scales, minima: fp32 [rows, groups]; with minima `zero` is 0.
    group: columns of one scale, a multiple of 32; the last group of a row may have fewer.
    """

    codes: torch.Tensor
    bits: int
    scales: torch.Tensor
    group: int
    zero: int = 0
    minima: torch.Tensor | None = None

    def numbers(self) -> torch.Tensor:
        """What they stand for, fp32 [rows, depth]."""
        scales = self._spread(self.scales)
        values = scales * (self.codes.float() - self.zero)
        return values if self.minima is None else values - self._spread(self.minima)

    def zeros(self) -> torch.Tensor | None:
        """The whole numbers, fp32 [rows, groups], by which scales give minima to the bit; None if some are none."""
        if self.minima is None:
            return None
        zeros = (self.minima / self.scales).nan_to_num(0.0, 0.0, 0.0).round()
        is_exact = bool((zeros >= 0).all()) and torch.equal(zeros * self.scales, self.minima)
        return zeros if is_exact else None

    def _spread(self, each: torch.Tensor) -> torch.Tensor:
        return each.repeat_interleave(self.group, dim=1)[:, : self.codes.shape[1]]


@dataclass(frozen=True)
class GroupForm:
    """How a matrix of `GroupedCodes` is held, whatever part of it is at hand.

    has_zeros: minima are a byte each, by which the scale is multiplied. in_half: scales and minima are in fp16.
    """

    bits: int
    group: int
    zero: int = 0
    has_minima: bool = False
    has_zeros: bool = False
    in_half: bool = True

    @classmethod
    def of(cls, groups: GroupedCodes, in_full: bool = False) -> GroupForm:
        """In the fewest bytes; with `in_full` without zeros, and in fp32."""
        zeros = None if in_full else groups.zeros()
        has_zeros = zeros is not None and bool((zeros <= MOST_ZERO).all())
        kept = (groups.scales, None if has_zeros else groups.minima)
        in_half = not in_full and all(torch.equal(each.half().float(), each) for each in kept if each is not None)
        return cls(groups.bits, groups.group, groups.zero, groups.minima is not None, has_zeros, in_half)

    @property
    def held_bits(self) -> int:
        return next(each for each in HELD_BITS if each >= self.bits)

    @property
    def kind(self) -> str:
        return f"{self.held_bits} bits in groups of {self.group}" + " and zeros" * self.has_zeros

    @property
    def coding(self) -> _native.Coding:
        native = compiled()
        coding: _native.Coding = native.Coding(
            self.held_bits,
            self.zero,
            0,
            self.has_minima,
            False,
            -(-self.group // native.UNIT_DEPTH),
            native.Number.FP16 if self.in_half else native.Number.FP32,
            self.has_zeros,
        )
        return coding

    def planes(self, groups: GroupedCodes) -> tuple[torch.Tensor | None, ...]:
        """Codes, scales, minima and zeros, without gaps; None for what there is not."""
        scales = groups.scales.float().contiguous()
        minima = None if groups.minima is None else groups.minima.float().contiguous()
        zeros = None
        if self.has_zeros:
            found = groups.zeros()
            assert found is not None
            minima, zeros = None, found.to(torch.int8).contiguous()
        return groups.codes.contiguous(), scales, minima, zeros


def can_hold_codes() -> bool:
    """Whether this installation multiplies by codes; else weights are to be decoded."""
    try:
        compiled()
    except KernelUnavailableError:
        return False
    return True


class HeldCodes:
    """Bytes that are a parameter, `data`, so that modules which hold them can be copied, moved and counted.

    kind: tells codings apart, as "q4_k" or "8 bits in groups of 32".
    rows, depth: of a matrix.
    stays: whether they lie where they are read best, in `WeightMemory`.
    """

    stays = False

    def __init__(self, kind: str, coding: _native.Coding, rows: int, depth: int, data: torch.Tensor) -> None:
        self.kind = kind
        self.coding = coding
        self.rows = rows
        self.depth = depth
        self.data = nn.Parameter(data, requires_grad=False)

    @classmethod
    def unfilled(
        cls,
        kind: str,
        coding: _native.Coding,
        rows: int,
        depth: int,
        memory: WeightMemory | None = None,
        count: tuple[int, ...] = (),
    ) -> Self:
        """Whose codes are yet to be written, of `count` matrices or of one, in `memory`, or in torch's."""
        shape = (*count, -(-rows // compiled().CODED_ROWS), coding.block_nbytes(depth))
        data = torch.empty(shape, dtype=torch.uint8) if memory is None else memory.take(*shape)
        held = cls(kind, coding, rows, depth, data)
        held.stays = memory is not None
        return held

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """As a module's parameters are copied, or shared if `memo` has them."""
        other = copy.copy(self)
        other.data = copy.deepcopy(self.data, memo)
        other.stays = False
        return other

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    @property
    def is_on_device(self) -> bool:
        """Whether they were moved to a GPU, where the compiled module does not read them."""
        return not self.data.is_cpu


class CodedWeight(HeldCodes):
    """Codes of a matrix, held once; `data` is uint8 [blocks of rows, bytes of a block], a parameter."""

    @classmethod
    def from_gguf(
        cls, type_name: str, shape: tuple[int, int], parts: Iterable[torch.Tensor], memory: WeightMemory | None = None
    ) -> CodedWeight:
        """`shape` is [rows, depth], `parts` uint8 [some rows, bytes of a row] as in the file, one behind the other.

        All parts but the last have whole blocks of rows (CODED_ROWS). Raises ConfigError for blocks of another shape.
        """
        native, (rows, depth) = compiled(), shape
        type = getattr(native.GgufType, type_name)
        nbytes = depth // type.block_depth() * type.block_nbytes()
        weight = cls.unfilled(type_name.lower(), type.coding(), rows, depth, memory)
        done = 0
        for blocks in parts:
            is_whole = done + len(blocks) == rows or len(blocks) % native.CODED_ROWS == 0
            if depth % type.block_depth() or blocks.dim() != 2 or blocks.shape[1] != nbytes or blocks.stride(1) != 1:
                raise ConfigError(
                    f"Blocks of {type_name} with shape {tuple(blocks.shape)} are no rows of {depth} weights."
                )
            assert is_whole and done + len(blocks) <= rows
            out = weight.data[done // native.CODED_ROWS :]
            native.pack_gguf(
                *(type, blocks.data_ptr(), blocks.stride(0), len(blocks), depth, out.data_ptr()),
                torch.get_num_threads(),
            )
            done += len(blocks)
        assert done == rows
        return weight

    @classmethod
    def from_groups(
        cls, groups: GroupedCodes, in_full: bool = False, memory: WeightMemory | None = None
    ) -> CodedWeight:
        """Scales and minima are kept in fp16 if they are such numbers, and minima as zeros of a byte if they have some.

        With `in_full` all are in fp32, so that all matrices of a kind are coded in one way.
        """
        rows, depth = groups.codes.shape
        return cls.from_parts(GroupForm.of(groups, in_full), (rows, depth), [groups], memory)

    @classmethod
    def from_parts(
        cls, form: GroupForm, shape: tuple[int, int], parts: Iterable[GroupedCodes], memory: WeightMemory | None = None
    ) -> CodedWeight:
        """`shape` is [rows, depth]; `parts` as `fill` takes them."""
        weight = cls.unfilled(form.kind, form.coding, *shape, memory)
        weight.fill(form, parts)
        return weight

    def fill(self, form: GroupForm, parts: Iterable[GroupedCodes]) -> None:
        """Write all rows: `parts` have some, one behind the other, and no more than `form` holds.

        All parts but the last have whole blocks of rows (CODED_ROWS).
        """
        native, done = compiled(), 0
        for part in parts:
            count = len(part.codes)
            assert done + count == self.rows or count % native.CODED_ROWS == 0
            assert part.codes.shape == (count, self.depth) and done + count <= self.rows
            planes = form.planes(part)
            addresses = (0 if each is None else each.data_ptr() for each in planes)
            out = self.data[done // native.CODED_ROWS :].data_ptr()
            native.pack_planes(form.coding, *addresses, count, self.depth, out, torch.get_num_threads())
            done += count
        assert done == self.rows

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.depth

    @property
    def form(self) -> tuple[str, _native.Coding, int, int]:
        """What says which weights its bytes stand for."""
        return self.kind, self.coding, self.rows, self.depth

    @property
    def num_weights(self) -> int:
        return self.rows * self.depth

    def decode(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """All weights, where the codes are: [rows, depth]."""
        if self.is_on_device:
            from pagoda.kernels.triton.coded import decoded

            return decoded(self, dtype)
        return self.decode_rows(torch.arange(self.rows), dtype)

    def decode_rows(self, numbers: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Rows of weights, reckoned in fp32 and rounded: [*numbers, depth].

        Raises IndexError for others; on a GPU, whose numbers nobody waits for, they are zeros.
        """
        if self.is_on_device:
            from pagoda.kernels.triton.coded import decoded_rows

            return decoded_rows(self, numbers, dtype)
        numbers = numbers.contiguous().long()
        function, arguments, out = self.decoding(numbers, dtype)
        function(*arguments)
        return out

    def decoding(self, numbers: torch.Tensor, dtype: torch.dtype) -> tuple[Any, tuple[Any, ...], torch.Tensor]:
        """The call of the compiled module that makes `decode_rows`, and where it writes these.

        `numbers` are int64, without gaps and on the CPU, and live until the call is made.
        """
        native = compiled()
        if numbers.dtype is not torch.int64 or not numbers.is_cpu or not numbers.is_contiguous():
            raise ConfigError(
                f"Rows of codes are found by int64 on the CPU, not by {numbers.dtype} on {numbers.device}."
            )
        out = torch.empty(*numbers.shape, self.depth, dtype=dtype)
        arguments = (
            *(self.coding, self.data.data_ptr(), self.rows, self.depth, numbers.data_ptr(), numbers.numel()),
            *(out.data_ptr(), getattr(native.Number, NUMBERS[dtype]), torch.get_num_threads()),
        )
        return native.decode_rows, arguments, out
