"""What layers compute, on the C++ kernels: products, norms, gates and rotations.

Knows which products were measured to be worth it; torch computes the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import pad

from pagoda.errors import ConfigError
from pagoda.kernels.coded_stack import CodedStack
from pagoda.kernels.coded_weight import CodedWeight
from pagoda.kernels.layers import CodedLayer, LayerKernels
from pagoda.kernels.native_arguments import described
from pagoda.kernels.native_calls import NativeCalls, compiled

# What csrc/linear_vectors.h takes, and csrc/linear.h on tiles; torch computes the others.
MIN_LINEAR_COLUMNS = 4
MIN_TILE_COLUMNS = 16
TILE_DEPTH_MULTIPLE = 32
# Beyond this many rows torch was measured to be faster where it has full arithmetic (benchmarks/linear.py), but for
# layers on tiles that are twice as wide as deep and not deeper than this. It multiplies fp16, and bf16 without the dot
# instruction, several times as slowly.
MAX_LINEAR_ROWS = 64
DOT_SETS = ("amx", "avx512_bf16")
MAX_WIDE_DEPTH = 1024
MIN_GATED_ROWS = 32


class NativeLayers(NativeCalls, LayerKernels):
    """CPU tensors. With `deterministic`, products of any number of rows go through here, as far as they can."""

    def __init__(self, isa: str | None = None, deterministic: bool = False) -> None:
        super().__init__(isa)
        self._is_deterministic = deterministic
        self._has_tiles = self._kernels.has_tiles
        # Of which torch computes many rows.
        self._dtypes_of_torch: tuple[torch.dtype, ...] = ()
        if not deterministic:
            self._dtypes_of_torch = (torch.float32, torch.bfloat16) if self.isa in DOT_SETS else (torch.float32,)

    def takes_linear(self, input: torch.Tensor, weight: torch.Tensor) -> bool:
        columns, depth = weight.shape
        is_wide = 2 * depth <= min(columns, 2 * MAX_WIDE_DEPTH) and self._fits_tiles(weight)
        takes_any = is_wide or weight.dtype not in self._dtypes_of_torch
        return (
            input.numel() > 0
            and (input.numel() <= MAX_LINEAR_ROWS * depth or takes_any)
            and input.dtype is weight.dtype
            and input.dtype in self._told.numbers
            and weight.is_contiguous()
            and (columns >= MIN_LINEAR_COLUMNS or self._is_deterministic)
            and input.is_cpu
            and weight.is_cpu
        )

    def _fits_tiles(self, weight: torch.Tensor) -> bool:
        columns, depth = weight.shape
        return (
            self._has_tiles
            and weight.dtype is torch.bfloat16
            and columns >= MIN_TILE_COLUMNS
            and depth % TILE_DEPTH_MULTIPLE == 0
        )

    def linear(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        columns, depth = weight.shape
        if columns < MIN_LINEAR_COLUMNS:
            missing = MIN_LINEAR_COLUMNS - columns
            bias = None if bias is None else pad(bias, (0, missing))
            return self.linear(input, pad(weight, (0, 0, 0, missing)), bias)[..., :columns]
        input = input.contiguous()
        out = input.new_empty(*input.shape[:-1], columns)
        address = 0 if bias is None else bias.data_ptr()
        rows = input.numel() // depth
        threads = torch.get_num_threads()
        self._run(
            self._kernels.linear,
            input.data_ptr(),
            weight.data_ptr(),
            address,
            out.data_ptr(),
            rows,
            columns,
            depth,
            self._told.numbers[input.dtype],
            threads,
        )
        return out

    def takes_gated_linear(self, input: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> bool:
        # On tiles, few rows are bound by reading weights, which goes at full speed one layer at a time.
        return (
            (input.numel() > MIN_GATED_ROWS * input.shape[-1] or not self._fits_tiles(gate))
            and gate.shape == up.shape
            and gate.dtype is up.dtype
            and up.is_contiguous()
            and self.takes_linear(input, gate)
        )

    def gated_linear(self, input: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        columns, depth = gate.shape
        input = input.contiguous()
        out = input.new_empty(*input.shape[:-1], columns)
        rows = input.numel() // depth
        self._run(
            self._kernels.gated_linear,
            input.data_ptr(),
            gate.data_ptr(),
            up.data_ptr(),
            out.data_ptr(),
            rows,
            columns,
            depth,
            self._told.numbers[input.dtype],
            torch.get_num_threads(),
        )
        return out

    def coded_linears(self, input: torch.Tensor, layers: Sequence[CodedLayer]) -> list[torch.Tensor]:
        input = input.contiguous()
        depth = input.shape[-1]
        for weight, bias in layers:
            if weight.depth != depth or (bias is not None and bias.dtype is not input.dtype):
                raise ConfigError(f"Coded weights of {weight.shape} cannot multiply {described(input)}.")
        outs = [input.new_empty(*input.shape[:-1], weight.rows) for weight, _ in layers]
        native = compiled()
        self._run(
            self._kernels.coded_linears,
            [
                native.CodedLayer(
                    *(weight.coding, weight.data.data_ptr(), 0 if bias is None else bias.data_ptr(), out.data_ptr()),
                    weight.rows,
                )
                for (weight, bias), out in zip(layers, outs, strict=True)
            ],
            input.data_ptr(),
            input.numel() // depth,
            depth,
            self._told.number(input),
            torch.get_num_threads(),
        )
        return outs

    def coded_experts(
        self, input: torch.Tensor, weight: CodedStack, experts: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        input, experts = input.contiguous(), experts.long().contiguous()
        is_of_input = experts.is_cpu and experts.dim() == 2 and input.shape == (len(experts), weight.depth)
        if not is_of_input or (bias is not None and (bias.dtype is not input.dtype or not bias.is_contiguous())):
            raise ConfigError(
                f"Experts {described(experts)} of coded weights of {weight.shape} cannot multiply {described(input)}."
            )
        out = input.new_empty(*experts.shape, weight.rows)
        self._run(
            self._kernels.coded_experts,
            weight.coding,
            input.data_ptr(),
            weight.data.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            out.data_ptr(),
            len(input),
            weight.rows,
            weight.depth,
            self._told.number(input),
            experts.data_ptr(),
            experts.shape[1],
            weight.count,
            torch.get_num_threads(),
        )
        return out

    def coded_heads(self, input: torch.Tensor, weight: CodedWeight, first: int) -> torch.Tensor:
        block, (num_rows, num_heads, depth) = self._native.CODED_ROWS, input.shape
        head_rows = weight.rows // num_heads
        is_whole = not (head_rows % block or first % block or depth % block or weight.rows % num_heads)
        if not is_whole or not 0 <= first <= head_rows - depth or not input.is_cpu:
            raise ConfigError(f"Coded weights of {weight.shape} have no rows from {first} on for {described(input)}.")
        input = input if input.stride(2) == 1 else input.contiguous()
        out = input.new_empty(num_rows, num_heads, weight.depth)
        number = self._told.number(input)
        self._run(
            self._kernels.coded_heads,
            weight.coding,
            self._native.Rows(input.data_ptr(), input.stride(0), input.stride(1), number),
            self._native.Rows(out.data_ptr(), num_heads * weight.depth, weight.depth, number),
            weight.data.data_ptr() + first // block * weight.data.shape[-1],
            head_rows // block,
            num_rows,
            num_heads,
            depth,
            weight.depth,
            torch.get_num_threads(),
        )
        return out

    def coded_rows(self, weight: CodedWeight, numbers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        numbers = numbers.contiguous().long()
        function, arguments, out = weight.decoding(numbers, dtype)
        self._run(function, *arguments)
        return out

    def rms_norm(self, input: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        input, weight = input.contiguous(), weight.contiguous()
        width = weight.numel()
        if input.dtype is not weight.dtype or input.shape[-1] != width:
            raise ConfigError(f"The norm of {described(input)} has a weight of {described(weight)}.")
        out = torch.empty_like(input)
        self._run(
            self._kernels.rms_norm,
            input.data_ptr(),
            weight.data_ptr(),
            out.data_ptr(),
            input.numel() // width,
            width,
            epsilon,
            self._told.number(input),
            torch.get_num_threads(),
        )
        return out

    def gated_silu(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        if gate.dtype is not up.dtype or gate.shape != up.shape:
            raise ConfigError(f"A gate of {described(gate)} cannot weigh {described(up)}.")
        out = torch.empty_like(up)
        self._run(
            self._kernels.gated_silu,
            gate.data_ptr(),
            up.data_ptr(),
            out.data_ptr(),
            up.numel(),
            self._told.number(up),
            torch.get_num_threads(),
        )
        return out

    def _are_plain(self, *tensors: torch.Tensor) -> bool:
        return all(each.dtype in self._told.numbers and each.is_cpu and each.is_contiguous() for each in tensors)

    def takes_sum(self, first: torch.Tensor, second: torch.Tensor) -> bool:
        return first.shape == second.shape and first.dtype is second.dtype and self._are_plain(first, second)

    def add(self, first: torch.Tensor, second: torch.Tensor, out: torch.Tensor) -> None:
        """out = first + second, of tensors that `takes_sum` takes and one like them."""
        self._kernels.add(
            first.data_ptr(),
            second.data_ptr(),
            out.data_ptr(),
            out.numel(),
            self._told.numbers[out.dtype],
            torch.get_num_threads(),
        )

    def takes_widening(self, input: torch.Tensor, out: torch.Tensor) -> bool:
        return out.dtype is torch.float32 and input.shape == out.shape and self._are_plain(input, out)

    def widen(self, input: torch.Tensor, out: torch.Tensor) -> None:
        """out = input in fp32, of tensors that `takes_widening` takes."""
        number = self._told.numbers[input.dtype]
        self._kernels.widen(input.data_ptr(), out.data_ptr(), out.numel(), number, torch.get_num_threads())

    def multiply_heads(self, input: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        num_rows, num_heads, depth = input.shape
        head_stride, depth_stride, column_stride = weight.stride()
        columns = weight.shape[2]
        most_rows = self._native.MAX_HEAD_ROWS
        if self._is_deterministic and num_rows > most_rows:
            return torch.cat([self.multiply_heads(rows, weight) for rows in input.split(most_rows)])
        if not self._takes_heads(input, weight):
            return torch.bmm(input.transpose(0, 1), weight).transpose(0, 1)
        out = input.new_empty(num_rows, num_heads, columns)
        number = self._told.numbers[input.dtype]
        self._run(
            self._kernels.multiply_heads,
            self._native.Rows(input.data_ptr(), input.stride(0), input.stride(1), number),
            self._native.Rows(out.data_ptr(), num_heads * columns, columns, number),
            weight.data_ptr(),
            head_stride,
            depth_stride if column_stride == 1 else column_stride,
            column_stride != 1,
            num_rows,
            num_heads,
            depth,
            columns,
            torch.get_num_threads(),
        )
        return out

    def _takes_heads(self, input: torch.Tensor, weight: torch.Tensor) -> bool:
        widths = weight.shape[1:]
        return (
            0 < input.shape[0] <= self._native.MAX_HEAD_ROWS
            and max(widths) <= self._native.MAX_HEAD_WIDTH
            and all(width % self._native.HEAD_WIDTH_MULTIPLE == 0 for width in widths)
            and 1 in weight.stride()[1:]
            and input.stride(2) == 1
            and input.dtype is weight.dtype
            and input.dtype in self._told.numbers
            and input.is_cpu
        )

    def takes_rotation(self, input: torch.Tensor, cosines: torch.Tensor) -> bool:
        return (
            input.dim() == 4
            and input.shape[0] == 1
            and cosines.shape == (1, input.shape[2], input.shape[3])
            and input.dtype is cosines.dtype
            and input.dtype in self._told.numbers
            and input.shape[3] <= self._native.MAX_ROTATED_WIDTH
            and input.shape[3] % 2 == 0
            and input.stride(3) == 1
            and input.is_cpu
        )

    def rotate(self, input: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
        _, num_heads, num_rows, width = input.shape
        _, head_stride, row_stride, _ = input.stride()
        cosines, sines = cosines.contiguous(), sines.contiguous()
        out = input.new_empty(1, num_rows, num_heads, width)
        number = self._told.numbers[input.dtype]
        self._run(
            self._kernels.rotate,
            self._native.Rows(input.data_ptr(), row_stride, head_stride, number),
            self._native.Rows(out.data_ptr(), num_heads * width, width, number),
            cosines.data_ptr(),
            sines.data_ptr(),
            num_rows,
            num_heads,
            width,
            torch.get_num_threads(),
        )
        return out.transpose(1, 2)
