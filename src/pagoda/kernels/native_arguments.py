"""What the compiled module is told of tensors, pages, page tables and rules: addresses, strides and types, checked.

Knows torch tensors and the formats that `csrc/` reads. A description is good while what it is about lives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from pagoda.errors import ConfigError
from pagoda.formats.base import Format
from pagoda.formats.constants import MOST_PAIRS
from pagoda.formats.int4 import INT4_PLAIN
from pagoda.formats.page import summary_numbers
from pagoda.formats.plain import BF16, FP16, FP32
from pagoda.formats.rotated import INT4, INT4_ROTATED
from pagoda.formats.scaled import FP8_E4M3, FP8_E5M2, INT8
from pagoda.kernels.base import AttentionRule, AttentionUse, GroupView, LayerPages
from pagoda.layouts.base import Axis
from pagoda.layouts.spec import Reach

if TYPE_CHECKING:
    from types import ModuleType

    from pagoda.kernels import _native

# Formats of keys that are scaled once they met the queries: then what they are kept without is added too.
WITH_CONSTANTS = (INT8, FP8_E4M3, FP8_E5M2, INT4, INT4_ROTATED, INT4_PLAIN)


class NativeArguments:
    """Describes what kernels get, in the types of `module`, the compiled one.

    All methods raise ConfigError for what `csrc/` cannot take.
    """

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        # What was said of pages and tables before: every layer of every step asks again.
        self._pages_said: WeakKeyDictionary[LayerPages, _native.Pages] = WeakKeyDictionary()
        self._slopes_said: dict[tuple[float, ...], torch.Tensor] = {}
        self._biases_said: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._tables_said: WeakKeyDictionary[GroupView, _native.Tables] = WeakKeyDictionary()
        self.numbers: dict[torch.dtype, _native.Number] = {
            torch.float32: module.Number.FP32,
            torch.float16: module.Number.FP16,
            torch.bfloat16: module.Number.BF16,
        }
        # Of plain formats; codes are decoded to bf16.
        self._kept_numbers: dict[Format, _native.Number] = {
            FP32: module.Number.FP32,
            FP16: module.Number.FP16,
            BF16: module.Number.BF16,
        }
        self._encodings: dict[Format, _native.Encoding] = {
            INT8: module.Encoding.INT8,
            FP8_E4M3: module.Encoding.FP8_E4M3,
            FP8_E5M2: module.Encoding.FP8_E5M2,
            INT4: module.Encoding.INT4,
            INT4_ROTATED: module.Encoding.INT4,
            INT4_PLAIN: module.Encoding.INT4,
        }
        self._reaches: dict[Reach, _native.Reach] = {
            Reach.FULL: module.Reach.FULL,
            Reach.SLIDING: module.Reach.SLIDING,
            Reach.CHUNKED: module.Reach.CHUNKED,
            Reach.ENCODER: module.Reach.ENCODER,
        }

    def obstacle(self, layer: LayerPages, use: AttentionUse) -> str | None:
        """Why `csrc/` cannot write or read the pages of `layer`, or attend so; the rest of a sentence."""
        return self._plane_obstacle(layer) or self._format_obstacle(layer) or _use_obstacle(use)

    def number(self, tensor: torch.Tensor) -> _native.Number:
        """What the numbers of a tensor are."""
        number = self.numbers.get(tensor.dtype)
        if number is None or not tensor.is_cpu:
            raise ConfigError(f"Native kernels take fp32, fp16 or bf16 on the CPU, not {described(tensor)}.")
        return number

    def rows(self, name: str, rows: torch.Tensor, num_heads: int, width: int) -> _native.Rows:
        """Where `rows` [rows, num_heads, width] are; `name` is what errors call them."""
        number = self.numbers.get(rows.dtype)
        if rows.dim() != 3 or rows.shape[1:] != (num_heads, width):
            raise ConfigError(f"{name} is {list(rows.shape)}; it must be [rows, {num_heads}, {width}].")
        row_stride, head_stride, channel_stride = rows.stride()
        if number is None or not rows.is_cpu or (channel_stride != 1 and width > 1):
            raise ConfigError(
                f"{name} is {rows.dtype} on {rows.device} with strides {rows.stride()}; native kernels take fp32, "
                "fp16 or bf16 on the CPU, with neighbouring channels side by side."
            )
        told: _native.Rows = self._module.Rows(rows.data_ptr(), row_stride, head_stride, number)
        return told

    def pages(self, layer: LayerPages) -> _native.Pages:
        """Where the pages of a layer are, and what they keep keys and values in."""
        said = self._pages_said.get(layer)
        if said is None:
            self._pages_said[layer] = said = self._new_pages(layer)
        return said

    def tables(self, view: GroupView) -> _native.Tables:
        """The page tables of a step."""
        said = self._tables_said.get(view)
        if said is None:
            self._tables_said[view] = said = self._new_tables(view)
        return said

    def rule(self, rule: AttentionRule, biases: torch.Tensor | None) -> _native.Rule:
        """Who attends to what, and how scores are scaled. `biases` must live as long."""
        has_span = rule.reach is Reach.ENCODER or rule.span is not None
        slopes = 0 if rule.slopes is None else self._slopes(rule.slopes).data_ptr()
        told: _native.Rule = self._module.Rule(
            rule.scale,
            rule.soft_cap is not None,
            rule.soft_cap or 0.0,
            self._reaches[rule.reach if has_span else Reach.FULL],
            rule.span or 0,
            slopes,
            0 if biases is None else self._biases(biases).data_ptr(),
            0 if biases is None else biases.shape[1],
            rule.sink_tokens if has_span else 0,
        )
        return told

    def _slopes(self, slopes: tuple[float, ...]) -> torch.Tensor:
        """Kept, since the compiled module reads them where they are."""
        kept = self._slopes_said.get(slopes)
        if kept is None:
            kept = self._slopes_said[slopes] = torch.tensor(slopes)
        return kept

    def _biases(self, biases: torch.Tensor) -> torch.Tensor:
        """As `Biases` in csrc/attention.h has them, kept as long as `biases` themselves."""
        kept: torch.Tensor | None = self._biases_said.get(biases)
        if kept is None:
            edge = self._module.BIAS_EDGE
            rows = biases.detach().float().flip(1)
            kept = torch.cat((rows[:, :1].expand(-1, edge), rows, rows.new_zeros(len(rows), edge)), dim=1).contiguous()
            self._biases_said[biases] = kept
        return kept

    def _new_pages(self, layer: LayerPages) -> _native.Pages:
        pages = layer.pages
        if pages.dtype is not torch.uint8 or not pages.is_cpu or pages.data_ptr() % 4:
            raise ConfigError(
                f"Pages are {pages.dtype} on {pages.device}; native kernels take aligned uint8 on the CPU."
            )
        if pages.shape[1] < layer.geometry.page_nbytes or pages.stride(1) != 1 or pages.stride(0) % 4:
            raise ConfigError(
                f"Pages are {list(pages.shape)} with strides {pages.stride()}; they must be contiguous runs of "
                f"{layer.geometry.page_nbytes} bytes."
            )
        obstacle = self._plane_obstacle(layer) or self._format_obstacle(layer)
        if obstacle:
            raise ConfigError(f"The native kernels do not take these pages: {obstacle}; set PAGODA_KERNELS=reference.")
        key, value = layer.key, layer.value
        formats = [layer.format.of(slot.plane) for slot in (key, value)]
        told: _native.Pages = self._module.Pages(
            pages.data_ptr(),
            pages.shape[0],
            pages.stride(0),
            layer.geometry.page_tokens,
            key.plane.num_heads,
            self._number_in(formats[0]),
            *(
                self._module.Plane(
                    slot.offset,
                    width,
                    self._encodings.get(format, self._module.Encoding.NONE),
                    format.rotated_channels(slot.plane),
                    format.group_channels(slot.plane),
                )
                for slot, width, format in zip((key, value), (key.plane.width, layer.value_width), formats, strict=True)
            ),
            key.plane.value_width > 0,
            self._constants(layer),
            layer.layer,
            layer.geometry.layer_nbytes or 0,
            *self._summaries(layer),
        )
        return told

    @staticmethod
    def _summaries(layer: LayerPages) -> tuple[int, int]:
        """Where those of pages are, and which are made; they live as long as the layer."""
        summaries, key = layer.summaries, layer.key.plane
        if summaries is None:
            return 0, 0
        numbers, is_made, num_pages = summaries.numbers, summaries.is_made, len(layer.pages)
        shape = (num_pages, key.num_heads, summary_numbers(key))
        is_told = numbers.dtype is torch.bfloat16 and is_made.dtype is torch.uint8 and numbers.is_cpu
        if not is_told or numbers.shape != shape or is_made.shape != (num_pages,):
            raise ConfigError(f"Summaries are {described(numbers)} and {described(is_made)}; they must be {shape}.")
        if not numbers.is_contiguous() or not is_made.is_contiguous():
            raise ConfigError("Summaries of pages must be contiguous.")
        return numbers.data_ptr(), is_made.data_ptr()

    def _constants(self, layer: LayerPages) -> _native.KeyConstants:
        """What keys are kept without; the tensors live as long as the layer."""
        constants = layer.constants
        if constants is None:
            none: _native.KeyConstants = self._module.KeyConstants(0, 0, 0, 0, 0, 0)
            return none
        tensors = (constants.scales, constants.pairs, constants.bases, constants.turns.table)
        if not all(each.is_cpu and each.is_contiguous() for each in tensors) or constants.num_pairs > MOST_PAIRS:
            raise ConfigError(f"Constants of keys are not contiguous tensors of at most {MOST_PAIRS} pairs on the CPU.")
        told: _native.KeyConstants = self._module.KeyConstants(
            *(each.data_ptr() for each in tensors), constants.num_pairs, constants.turns.table.shape[2]
        )
        return told

    def _plane_obstacle(self, layer: LayerPages) -> str | None:
        """Of the device and of the order of numbers, which `csrc/` takes for those of keys and values."""
        key, value = layer.key.plane, layer.value.plane
        if not layer.pages.is_cpu:
            return f"pages are on {layer.pages.device}"
        if key.reduced is not Axis.CHANNEL or len(layer.geometry.slots[layer.layer]) > 2:
            return "a layer keeps other planes than keys and values"
        if value is not key and (value.reduced is not Axis.TOKEN or value.num_heads != key.num_heads):
            return "values are not laid out as one row for each row of keys"
        return None

    def _format_obstacle(self, layer: LayerPages) -> str | None:
        key, value = (layer.format.of(slot.plane) for slot in (layer.key, layer.value))
        for format in (key, value):
            if format not in self._kept_numbers and format not in self._encodings:
                return f"they do not read {format.name} pages"
        if self._number_in(key) != self._number_in(value):
            return f"they do not read keys in {key.name} beside values in {value.name}"
        if layer.constants is not None and key not in WITH_CONSTANTS:
            return f"keys in {layer.format.name} pages are kept as they are, without constants"
        return None

    def _number_in(self, format: Format) -> _native.Number:
        return self._kept_numbers.get(format, self.numbers[torch.bfloat16])

    def _new_tables(self, view: GroupView) -> _native.Tables:
        tensors = (view.page_indices, view.page_starts, view.query_starts, view.context_lengths)
        for tensor in tensors:
            if tensor.dtype is not torch.int32 or not tensor.is_cpu or not tensor.is_contiguous():
                raise ConfigError(f"Page tables are {tensor.dtype} on {tensor.device}; they must be int32 on the CPU.")
        num_sequences = len(view.context_lengths)
        if len(view.page_starts) != num_sequences + 1 or len(view.query_starts) != num_sequences + 1:
            raise ConfigError(f"Page tables of {num_sequences} sequences need {num_sequences + 1} starts.")
        told: _native.Tables = self._module.Tables(
            *(tensor.data_ptr() for tensor in tensors),
            num_sequences,
            len(view.page_indices),
            _address_of_rows("positions", view.positions, view, torch.int32),
            _address_of_rows("slots", view.slots, view, torch.int32),
            _address_of_rows("ancestors", view.ancestors, view, torch.int64),
            view.is_compacted,
            *self._cell_starts(view),
            self._readings(view),
        )
        return told

    @staticmethod
    def _readings(view: GroupView) -> int:
        readings = view.readings
        if readings is None:
            return 0
        is_told = readings.dtype is torch.int32 and readings.is_cpu and readings.is_contiguous()
        if not is_told or readings.shape != (len(view.context_lengths), 2):
            raise ConfigError(f"readings is {described(readings)}; it must be int32 [sequences, 2] on the CPU.")
        return readings.data_ptr()

    @staticmethod
    def _cell_starts(view: GroupView) -> tuple[int, int]:
        """Where those of packed pages are, and how many cells a page has."""
        starts = view.cell_starts
        if starts is None:
            return 0, 0
        is_told = starts.dtype is torch.int32 and starts.is_cpu and starts.is_contiguous() and starts.dim() == 2
        if not is_told or len(starts) != len(view.context_lengths):
            raise ConfigError(
                f"cell_starts is {described(starts)}; it must be int32 [sequences, cells + 1] on the CPU."
            )
        return starts.data_ptr(), starts.shape[1] - 1


def _address_of_rows(name: str, tensor: torch.Tensor | None, view: GroupView, dtype: torch.dtype) -> int:
    """Of a field of page tables that has a number for each new row, or none."""
    if tensor is None:
        return 0
    rows = int(view.query_starts[-1])
    if tensor.dtype is not dtype or not tensor.is_cpu or not tensor.is_contiguous() or tensor.shape != (rows,):
        raise ConfigError(f"{name} is {described(tensor)}; it must be {dtype} [{rows}] on the CPU.")
    return tensor.data_ptr()


def _use_obstacle(use: AttentionUse) -> str | None:
    if use.has_biases and use.rule.slopes is not None:
        return "scores have slopes and biases"
    return None


def checked_sinks(sinks: torch.Tensor, num_heads: int) -> torch.Tensor:
    """`sinks` as contiguous fp32 [num_heads]."""
    if sinks.shape != (num_heads,):
        raise ConfigError(f"sinks is {list(sinks.shape)}; it must be [{num_heads}].")
    return sinks.float().contiguous()


def described(tensor: torch.Tensor) -> str:
    """A tensor in words, for errors."""
    return f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
