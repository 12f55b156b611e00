"""How near the attention kernels come to the machine: decode against read bandwidth, prefill against torch's own, what
reading a shared prefix once saves, and what reading the pages alone that matter most does.

Every figure stands beside its limit, measured in the same run: a plain read of memory by the same threads for decode,
`scaled_dot_product_attention` on keys and values laid out and repeated for it in advance for prefill. Each call of the
decode loop reads another layer's pages, so that no cache can hold them.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from rich.console import Console
from rich.table import Table

from pagoda.cache.summaries import KeySummaries
from pagoda.formats.page import PageGeometry
from pagoda.kernels.base import AttentionRule, GroupView, LayerPages
from pagoda.kernels.native import NativeKernels
from pagoda.kernels.native_calls import allocate, instruction_sets, read_bandwidth
from pagoda.layouts.attention import AttentionLayout
from pagoda.layouts.spec import LayerGroup, Reach
from pagoda.registry import lookup, names

POOL_NBYTES = 768 << 20  # more than any cache
WARM_UP_CALLS = 2


@dataclass(frozen=True)
class Shape:
    heads: int
    kv_heads: int
    width: int

    def __str__(self) -> str:
        return f"{self.heads}/{self.kv_heads}x{self.width}"


@dataclass(frozen=True)
class Seconds:
    best: float
    median: float
    worst: float


def measure(call: Callable[[], object], repeats: int) -> Seconds:
    for _ in range(WARM_UP_CALLS):
        call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return Seconds(min(seconds), statistics.median(seconds), max(seconds))


@dataclass(frozen=True)
class Context:
    """Pages of one sequence for many layers, filled with random numbers."""

    geometry: PageGeometry
    pages: torch.Tensor
    page_indices: torch.Tensor

    @classmethod
    def make(cls, shape: Shape, tokens: int, format_name: str, page_tokens: int, pool_nbytes: int) -> Context:
        layout = AttentionLayout(shape.kv_heads, shape.width, shape.width)
        one = PageGeometry(LayerGroup(Reach.FULL, None, (layout,)), lookup("format", format_name), page_tokens)
        num_pages = -(-tokens // page_tokens)
        num_layers = max(1, pool_nbytes // (one.page_nbytes * num_pages))
        geometry = PageGeometry(LayerGroup(Reach.FULL, None, (layout,) * num_layers), one.format, page_tokens)
        pages = allocate(num_pages * geometry.page_nbytes).view(num_pages, geometry.page_nbytes)
        for slot in (slot for planes in geometry.slots for slot in planes):
            # Small numbers, so that no weight underflows; every page holds the same ones.
            values = torch.randn(slot.plane.num_heads, page_tokens, slot.plane.width) / 4
            pages[:, slot.offset : slot.offset + slot.nbytes] = one.format.encode(values, slot.plane)
        return cls(geometry, pages, torch.randperm(num_pages).int())

    @property
    def dtype(self) -> torch.dtype:
        """The type of queries: that of the pages, or bf16 where they hold codes."""
        return self.geometry.format.model_dtype()

    @property
    def num_layers(self) -> int:
        return len(self.geometry.slots)

    def layer(self, index: int) -> LayerPages:
        return LayerPages(self.pages, self.geometry, index % self.num_layers)

    def view(self, rows: int, tokens: int) -> GroupView:
        starts = torch.tensor([0, len(self.page_indices)], dtype=torch.int32)
        return GroupView(self.page_indices, starts, torch.tensor([0, rows]).int(), torch.tensor([tokens]).int())


def decode_seconds(kernels: NativeKernels, shape: Shape, context: Context, tokens: int, repeats: int) -> Seconds:
    """One query row over `tokens` of context; as many calls as there are layers count as one measurement."""
    query = torch.randn(1, shape.heads, shape.width).to(context.dtype)
    view, rule = context.view(1, tokens), AttentionRule(shape.width**-0.5)
    layers = [context.layer(index) for index in range(context.num_layers)]

    def all_layers() -> None:
        for layer in layers:
            kernels.attend(query, layer, view, rule)

    total = measure(all_layers, repeats)
    return Seconds(*(value / len(layers) for value in (total.best, total.median, total.worst)))


def prefill_seconds(kernels: NativeKernels, shape: Shape, context: Context, tokens: int, repeats: int) -> Seconds:
    query = torch.randn(tokens, shape.heads, shape.width).to(context.dtype)
    view, rule = context.view(tokens, tokens), AttentionRule(shape.width**-0.5)
    layer = context.layer(0)
    return measure(lambda: kernels.attend(query, layer, view, rule), repeats)


def torch_seconds(shape: Shape, tokens: int, dtype: torch.dtype, repeats: int) -> Seconds:
    query, key, value = (torch.randn(1, shape.heads, tokens, shape.width).to(dtype) for _ in range(3))
    attention = torch.nn.functional.scaled_dot_product_attention
    return measure(lambda: attention(query, key, value, is_causal=True), repeats)


def shared_seconds(kernels: NativeKernels, shape: Shape, context: Context, batch: int, repeats: int) -> Seconds:
    """One query row each of `batch` sequences that have all pages but their own last one in common."""
    query = torch.randn(batch, shape.heads, shape.width).to(context.dtype)
    shared, page_tokens = context.page_indices[:-batch], context.geometry.page_tokens
    tables = torch.stack([torch.cat([shared, own[None]]) for own in context.page_indices[-batch:]])
    starts = torch.arange(batch + 1).int()
    lengths = torch.full((batch,), (len(shared) + 1) * page_tokens).int()
    view = GroupView(tables.flatten(), starts * tables.shape[1], starts, lengths)
    layers, rule = [context.layer(index) for index in range(context.num_layers)], AttentionRule(shape.width**-0.5)

    def all_layers() -> None:
        for layer in layers:
            kernels.attend(query, layer, view, rule)

    total = measure(all_layers, repeats)
    return Seconds(*(value / len(layers) for value in (total.best, total.median, total.worst)))


def reading_seconds(kernels: NativeKernels, shape: Shape, context: Context, read: int, repeats: int) -> list[float]:
    """One query row over the whole context, over `read` tokens of its choice, and over a context of these; medians."""
    query = torch.randn(1, shape.heads, shape.width).to(context.dtype)
    rule, tokens = AttentionRule(shape.width**-0.5), len(context.page_indices) * context.geometry.page_tokens
    summaries = KeySummaries(context.geometry, len(context.pages))
    layers = [replace(context.layer(index), summaries=summaries.of_layer(index)) for index in range(context.num_layers)]
    whole, budget = context.view(1, tokens), read // context.geometry.page_tokens
    views = (whole, replace(whole, readings=torch.tensor([[budget, 0]]).int()), context.view(1, read))
    samples: list[list[float]] = [[] for _ in views]
    for number in range(WARM_UP_CALLS + repeats):
        for view, found in zip(views, samples, strict=True):
            start = time.perf_counter()
            for layer in layers:
                kernels.attend(query, layer, view, rule)
            if number >= WARM_UP_CALLS:
                found.append((time.perf_counter() - start) / len(layers))
    return [statistics.median(each) for each in samples]


def print_reading(options: argparse.Namespace, console: Console) -> None:
    title = (
        f"decode, pages of {options.block_size}: all tokens, {options.read} of them, and a context of {options.read}"
    )
    table = Table(title=title)
    for column in ("heads", "context", "pages", "kernels", "us all", "us in part", "us short", "faster"):
        table.add_column(column, justify="right")
    for shape, tokens, format in itertools.product(options.shapes, options.contexts, options.formats):
        context = Context.make(shape, tokens, format, options.block_size, POOL_NBYTES)
        for isa in options.isa:
            found = reading_seconds(NativeKernels(isa), shape, context, options.read, options.repeats)
            times = [f"{each * 1e6:.0f}" for each in found]
            table.add_row(str(shape), str(tokens), format, isa, *times, f"{found[0] / found[1]:.2f}x")
    console.print(table)


def print_shared(options: argparse.Namespace, console: Console) -> None:
    table = Table(title=f"decode of sequences that share {options.shared} tokens: each on its own, and read together")
    for column in ("heads", "sequences", "pages", "kernels", "us apart", "us together", "faster"):
        table.add_column(column, justify="right")
    for shape, batch, format in itertools.product(options.shapes, options.batches, options.formats):
        tokens = options.shared + batch * options.block_size
        context = Context.make(shape, tokens, format, options.block_size, POOL_NBYTES)
        for isa in options.isa:
            apart, together = (
                shared_seconds(NativeKernels(isa, shares_prefixes=on), shape, context, batch, options.repeats)
                for on in (False, True)
            )
            times = (f"{apart.median * 1e6:.0f}", f"{together.median * 1e6:.0f}")
            table.add_row(str(shape), str(batch), format, isa, *times, f"{apart.median / together.median:.2f}x")
    console.print(table)


def print_decode(options: argparse.Namespace, console: Console) -> None:
    limit = read_bandwidth(POOL_NBYTES, options.threads)
    table = Table(title=f"decode, pages of {options.block_size}: read limit {limit:.1f} GB/s")
    for column in ("heads", "context", "pages", "kernels", "us best", "median", "worst", "GB/s best", "of limit"):
        table.add_column(column, justify="right")
    for shape, tokens, format in itertools.product(options.shapes, options.contexts, options.formats):
        context = Context.make(shape, tokens, format, options.block_size, POOL_NBYTES)
        nbytes = tokens * sum(slot.nbytes for slot in context.geometry.slots[0]) / options.block_size
        for isa in options.isa:
            seconds = decode_seconds(NativeKernels(isa), shape, context, tokens, options.repeats)
            limit = read_bandwidth(POOL_NBYTES, options.threads)
            times = [f"{value * 1e6:.0f}" for value in (seconds.best, seconds.median, seconds.worst)]
            rate = nbytes / seconds.best / 1e9
            table.add_row(
                str(shape), str(tokens), format, isa, *times, f"{rate:.1f}", f"{rate / limit:.0%} of {limit:.1f}"
            )
    console.print(table)


def print_prefill(options: argparse.Namespace, console: Console) -> None:
    table = Table(title="causal prefill: torch is scaled_dot_product_attention")
    columns = ("heads", "tokens", "pages", "kernels", "ms best", "median", "worst", "GFLOP/s best", "torch's best ms")
    for column in (*columns, "faster"):
        table.add_column(column, justify="right")
    for shape, tokens, format in itertools.product(options.shapes, options.prompts, options.formats):
        context = Context.make(shape, tokens, format, options.block_size, 0)
        for isa in options.isa:
            seconds = prefill_seconds(NativeKernels(isa), shape, context, tokens, options.repeats)
            torch_best = torch_seconds(shape, tokens, context.dtype, options.repeats).best
            rate = 2 * shape.heads * shape.width * tokens * (tokens + 1) / seconds.best / 1e9
            times = (f"{value * 1e3:.1f}" for value in (seconds.best, seconds.median, seconds.worst))
            row = (f"{rate:.0f}", f"{torch_best * 1e3:.1f}", f"{torch_best / seconds.best:.2f}x")
            table.add_row(str(shape), str(tokens), format, isa, *times, *row)
    console.print(table)


def parse_shape(text: str) -> Shape:
    heads, _, rest = text.partition("/")
    kv_heads, _, width = rest.partition("x")
    return Shape(int(heads), int(kv_heads), int(width))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shapes = [Shape(14, 2, 64), Shape(32, 8, 64), Shape(32, 8, 128)]
    add = parser.add_argument
    add("phases", nargs="*", default=["decode", "prefill", "shared"], metavar="decode|prefill|shared|reading")
    add("--isa", nargs="+", default=[instruction_sets()[0]], choices=instruction_sets(), help="instruction sets")
    add("--formats", nargs="+", default=["bf16", "int8"], choices=names("format"), help="formats of the pages")
    add("--shapes", nargs="+", type=parse_shape, default=shapes, help="query heads/KV heads x width, as 14/2x64")
    add("--contexts", nargs="+", type=int, default=[8192, 32768], help="decode: tokens of context")
    add("--prompts", nargs="+", type=int, default=[2048, 8192], help="prefill: tokens")
    add("--shared", type=int, default=2048, help="shared: tokens in common")
    add("--batches", nargs="+", type=int, default=[2, 4, 16], help="shared: sequences")
    add("--read", type=int, default=2048, help="reading: tokens that a row reads")
    add("--block-size", type=int, default=32, help="tokens per page")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--repeats", type=int, default=7, help="measurements per figure")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    console = Console(width=120)
    if "decode" in options.phases:
        print_decode(options, console)
    if "prefill" in options.phases:
        print_prefill(options, console)
    if "shared" in options.phases:
        print_shared(options, console)
    if "reading" in options.phases:
        print_reading(options, console)


if __name__ == "__main__":
    main()
