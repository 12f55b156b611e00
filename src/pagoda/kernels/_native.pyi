"""The compiled module (csrc/binding.cpp): addresses and shapes in, results in memory that the caller owns."""

from collections.abc import Sequence
from enum import Enum

import numpy as np
from numpy.typing import NDArray

class Number(Enum):
    FP32 = ...
    FP16 = ...
    BF16 = ...

class Reach(Enum):
    FULL = ...
    SLIDING = ...
    CHUNKED = ...
    ENCODER = ...

class Rows:
    def __init__(self, data: int, row_stride: int, head_stride: int, number: Number) -> None: ...

class Encoding(Enum):
    NONE = ...
    INT8 = ...
    FP8_E4M3 = ...
    FP8_E5M2 = ...
    INT4 = ...

class Plane:
    def __init__(
        self, offset_nbytes: int, width: int, encoding: Encoding, rotated_channels: int, group_channels: int
    ) -> None: ...

class KeyConstants:
    def __init__(self, scales: int, pairs: int, bases: int, turns: int, num_pairs: int, turn_stride: int) -> None: ...

class Pages:
    def __init__(
        self,
        data: int,
        num_pages: int,
        page_nbytes: int,
        page_tokens: int,
        num_kv_heads: int,
        number: Number,
        key: Plane,
        value: Plane,
        values_in_keys: bool,
        constants: KeyConstants,
        layer: int,
        layer_nbytes: int,
        summaries: int,
        is_summarised: int,
    ) -> None: ...

class Tables:
    def __init__(
        self,
        page_indices: int,
        page_starts: int,
        query_starts: int,
        context_lengths: int,
        num_sequences: int,
        num_page_indices: int,
        positions: int,
        slots: int,
        ancestors: int,
        is_compacted: bool,
        cell_starts: int,
        page_cells: int,
        readings: int,
    ) -> None: ...

class Rule:
    def __init__(
        self,
        scale: float,
        has_soft_cap: bool,
        soft_cap: float,
        reach: Reach,
        span: int,
        slopes: int,
        biases: int,
        num_distances: int,
        sink_tokens: int,
    ) -> None: ...

class TokenPlane:
    def __init__(
        self,
        offset_nbytes: int,
        head_nbytes: int,
        inner_tokens: int,
        outer_nbytes: int,
        inner_nbytes: int,
        num_runs: int,
        stride_nbytes: int,
        run_nbytes: int,
    ) -> None: ...

class Coding:
    bits: int
    zero: int
    num_parts: int
    has_minimum: bool
    has_table: bool
    superunit: int
    scale: Number
    has_zeros: bool
    def __init__(
        self,
        bits: int,
        zero: int,
        num_parts: int,
        has_minimum: bool,
        has_table: bool,
        superunit: int,
        scale: Number,
        has_zeros: bool,
    ) -> None: ...
    def __eq__(self, other: object) -> bool: ...
    def block_nbytes(self, depth: int) -> int: ...

class CodedLayer:
    def __init__(self, coding: Coding, weight: int, bias: int, out: int, columns: int) -> None: ...

class GgufType(Enum):
    Q4_0 = ...
    Q4_1 = ...
    Q5_0 = ...
    Q5_1 = ...
    Q8_0 = ...
    Q2_K = ...
    Q3_K = ...
    Q4_K = ...
    Q5_K = ...
    Q6_K = ...
    IQ4_NL = ...
    IQ4_XS = ...
    def coding(self) -> Coding: ...
    def block_depth(self) -> int: ...
    def block_nbytes(self) -> int: ...

class Kernels:
    def __init__(self, instruction_set: str) -> None: ...
    def attend(
        self,
        query: Rows,
        out: Rows,
        pages: Pages,
        tables: Tables,
        rule: Rule,
        sinks: int,
        num_rows: int,
        num_heads: int,
        shares_splits: bool,
        num_threads: int,
    ) -> None: ...
    def logits(
        self,
        query: Rows,
        pages: Pages,
        tables: Tables,
        rule: Rule,
        out: int,
        num_rows: int,
        num_heads: int,
        num_threads: int,
    ) -> None: ...
    def attention_mass(
        self,
        query: Rows,
        pages: Pages,
        tables: Tables,
        rule: Rule,
        sinks: int,
        is_peak: bool,
        out: int,
        num_rows: int,
        num_heads: int,
        num_threads: int,
    ) -> None: ...
    @property
    def has_tiles(self) -> bool: ...
    def peak_rate(self, num_threads: int) -> float: ...
    def linear(
        self,
        input: int,
        weight: int,
        bias: int,
        out: int,
        rows: int,
        columns: int,
        depth: int,
        number: Number,
        num_threads: int,
    ) -> None: ...
    def gated_linear(
        self,
        input: int,
        gate: int,
        up: int,
        out: int,
        rows: int,
        columns: int,
        depth: int,
        number: Number,
        num_threads: int,
    ) -> None: ...
    def coded_linears(
        self, layers: Sequence[CodedLayer], input: int, rows: int, depth: int, number: Number, num_threads: int
    ) -> None: ...
    def coded_experts(
        self,
        coding: Coding,
        input: int,
        weight: int,
        bias: int,
        out: int,
        rows: int,
        columns: int,
        depth: int,
        number: Number,
        experts: int,
        per_row: int,
        num_experts: int,
        num_threads: int,
    ) -> None: ...
    def coded_heads(
        self,
        coding: Coding,
        input: Rows,
        out: Rows,
        weight: int,
        head_blocks: int,
        num_rows: int,
        num_heads: int,
        depth: int,
        columns: int,
        num_threads: int,
    ) -> None: ...
    def rms_norm(
        self,
        input: int,
        weight: int,
        out: int,
        rows: int,
        width: int,
        epsilon: float,
        number: Number,
        num_threads: int,
    ) -> None: ...
    def gated_silu(self, gate: int, up: int, out: int, count: int, number: Number, num_threads: int) -> None: ...
    def add(self, first: int, second: int, out: int, count: int, number: Number, num_threads: int) -> None: ...
    def widen(self, input: int, out: int, count: int, number: Number, num_threads: int) -> None: ...
    def rotate(
        self,
        input: Rows,
        out: Rows,
        cosines: int,
        sines: int,
        rows: int,
        num_heads: int,
        width: int,
        num_threads: int,
    ) -> None: ...
    def multiply_heads(
        self,
        input: Rows,
        out: Rows,
        weight: int,
        head_stride: int,
        line_stride: int,
        by_columns: bool,
        num_rows: int,
        num_heads: int,
        depth: int,
        columns: int,
        num_threads: int,
    ) -> None: ...
    def store(
        self, key: Rows, value: Rows, pages: Pages, tables: Tables, finite: int, num_rows: int, num_threads: int
    ) -> None: ...
    def move_tokens(
        self,
        pages: Pages,
        table: int,
        num_slots: int,
        kept: int,
        kept_starts: list[int],
        first_cells: list[int],
        cell_step: int,
        page_cells: int,
        target: int,
        num_target_pages: int,
        target_page_nbytes: int,
        planes: list[TokenPlane],
        num_threads: int,
    ) -> None: ...

MAX_ROTATED_WIDTH: int
MAX_HEAD_ROWS: int
MAX_HEAD_WIDTH: int
HEAD_WIDTH_MULTIPLE: int
BIAS_EDGE: int

CODED_ROWS: int
UNIT_DEPTH: int

def pack_gguf(
    type: GgufType, blocks: int, row_nbytes: int, rows: int, depth: int, out: int, num_threads: int
) -> None: ...
def pack_planes(
    coding: Coding,
    codes: int,
    scales: int,
    minima: int,
    zeros: int,
    rows: int,
    depth: int,
    out: int,
    num_threads: int,
) -> None: ...
def decode_rows(
    coding: Coding,
    weight: int,
    rows: int,
    depth: int,
    numbers: int,
    count: int,
    out: int,
    number: Number,
    num_threads: int,
) -> None: ...
def instruction_sets() -> list[str]: ...
def allocate(nbytes: int) -> NDArray[np.uint8]: ...
def read_bandwidth(nbytes: int, num_threads: int, repeats: int, in_huge_pages: bool) -> float: ...
