"""The C++ kernels for CPUs: allocates results and calls the compiled module.

Knows torch tensors, and which products were measured to be worth it. Does not know how attention is computed: `csrc/`
does, once per instruction set. Page tables are checked there, where they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from pagoda.errors import ConfigError, KernelUnavailableError
from pagoda.kernels.base import AttentionRule, GroupView, Kernels, LayerPages
from pagoda.kernels.native_arguments import NativeArguments, checked_sinks, described

if TYPE_CHECKING:
    from pagoda.kernels import _native

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


Note = Callable[[Callable[..., None], tuple[Any, ...]], None]


def _compiled() -> Any:
    """The compiled module, or an error that says why there is none."""
    try:
        from pagoda.kernels import _native
    except ImportError as error:
        raise KernelUnavailableError(
            f"The native kernels are not part of this installation ({error}). Reinstall pagoda-kv with a C++ compiler "
            "at hand, or select the reference kernels."
        ) from error
    return _native


def instruction_sets() -> tuple[str, ...]:
    """What this build can use on this machine, best first."""
    return tuple(_compiled().instruction_sets())


def read_bandwidth(
    nbytes: int = 1 << 28, num_threads: int | None = None, repeats: int = 5, in_huge_pages: bool = True
) -> float:
    """The rate at which threads together read memory, in GB/s: the limit of decode steps."""
    threads = num_threads or torch.get_num_threads()
    rate: float = _compiled().read_bandwidth(nbytes, threads, repeats, in_huge_pages)
    return rate


def allocate(nbytes: int) -> torch.Tensor:
    """Zeros, uint8 [nbytes], in huge pages where the system grants them; takes no memory before it is touched."""
    return torch.from_numpy(_compiled().allocate(nbytes))


class NativeKernels(Kernels):
    """CPU tensors. `isa` forces an instruction set; None takes the best of this machine.

    With `shares_prefixes`, sequences of a decode step that lie on the same pages read them together; results are the
    same bit for bit (ChunkAttention, arXiv 2402.15220).

    A row has the same bits in every batch of up to MAX_LINEAR_ROWS; with `deterministic`, in any, as far as products go
    through here.
    """

    def __init__(self, isa: str | None = None, shares_prefixes: bool = True, deterministic: bool = False) -> None:
        self._native = _compiled()
        self._shares_prefixes = shares_prefixes
        self._is_deterministic = deterministic
        self._note: Note | None = None
        self._told = NativeArguments(self._native)
        available = instruction_sets()
        if isa is not None and isa not in available:
            raise KernelUnavailableError(
                f"There are no native kernels for instruction set {isa!r} here; choose one of: {', '.join(available)}."
            )
        self.isa = isa or available[0]
        self._kernels: _native.Kernels = self._native.Kernels(self.isa)
        self._has_tiles = self._kernels.has_tiles
        # Of which torch computes many rows.
        self._dtypes_of_torch: tuple[torch.dtype, ...] = ()
        if not deterministic:
            self._dtypes_of_torch = (torch.float32, torch.bfloat16) if self.isa in DOT_SETS else (torch.float32,)

    @property
    def name(self) -> str:
        return f"native ({self.isa}, {torch.get_num_threads()} threads)"

    def peak_rate(self) -> float:
        """Multiplications of bf16 by bf16 a second of all threads, with nothing else to do: the limit of prefill."""
        return self._kernels.peak_rate(torch.get_num_threads())

    @contextmanager
    def noted(self, note: Note) -> Iterator[None]:
        """Inside the block, hand every call of the compiled module to `note` before it is made: function, arguments.

        Arguments are numbers and descriptions, which stay good while the tensors they are about live.
        """
        self._note = note
        try:
            yield
        finally:
            self._note = None

    def _run(self, function: Callable[..., None], *arguments: Any) -> None:
        if self._note is not None:
            self._note(function, arguments)
        function(*arguments)

    def tables(self, view: GroupView) -> _native.Tables:
        """The page tables of a step, as the compiled module takes them."""
        return self._told.tables(view)

    def store(
        self,
        key: torch.Tensor,
        value: torch.Tensor | None,
        layer: LayerPages,
        view: GroupView,
        finite: torch.Tensor | None = None,
    ) -> None:
        heads = layer.key.plane.num_heads
        if value is not None and key.shape[0] != value.shape[0]:
            raise ConfigError(f"There are {key.shape[0]} key rows but {value.shape[0]} value rows.")
        key_rows = self._told.rows("key", key, heads, layer.key.plane.width)
        self._run(
            self._kernels.store,
            key_rows,
            key_rows if value is None else self._told.rows("value", value, heads, layer.value.plane.width),
            self._told.pages(layer),
            self._told.tables(view),
            0 if finite is None else finite.data_ptr(),
            key.shape[0],
            torch.get_num_threads(),
        )

    def attend(
        self,
        query: torch.Tensor,
        layer: LayerPages,
        view: GroupView,
        rule: AttentionRule,
        sinks: torch.Tensor | None = None,
        biases: torch.Tensor | None = None,
    ) -> torch.Tensor:
        num_rows, num_heads, _ = query.shape
        key, value_width = layer.key.plane, layer.value_width
        if num_heads % key.num_heads:
            raise ConfigError(f"{num_heads} query heads cannot share {key.num_heads} KV heads evenly.")
        if rule.slopes is not None and len(rule.slopes) != num_heads:
            raise ConfigError(f"There are {len(rule.slopes)} slopes for {num_heads} query heads.")
        if biases is not None and (biases.dim() != 2 or len(biases) != num_heads or rule.slopes is not None):
            raise ConfigError(f"biases is {list(biases.shape)}; it must be [{num_heads}, distances], without slopes.")
        rows = self._told.rows("query", query, num_heads, key.width)
        out = query.new_empty(num_rows, num_heads, value_width)
        out_rows = self._native.Rows(
            out.data_ptr(), num_heads * value_width, value_width, self._told.numbers[query.dtype]
        )
        logits = None if sinks is None else checked_sinks(sinks, num_heads)
        self._run(
            self._kernels.attend,
            rows,
            out_rows,
            self._told.pages(layer),
            self._told.tables(view),
            self._told.rule(rule, biases),
            0 if logits is None else logits.data_ptr(),
            num_rows,
            num_heads,
            self._shares_prefixes,
            torch.get_num_threads(),
        )
        return out

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
            and columns >= MIN_LINEAR_COLUMNS
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
