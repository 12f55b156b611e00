"""What the Triton kernels take on a card, beside what the card and torch can do."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from pagoda.formats.page import PageGeometry, summary_numbers
from pagoda.kernels.base import AttentionRule, GroupView, LayerPages, LayerSummaries
from pagoda.kernels.triton import tiles
from pagoda.kernels.triton.attention import TritonAttention
from pagoda.kernels.triton.plan import Room, tables_of
from pagoda.kernels.triton.shapes import Tile
from pagoda.layouts.attention import AttentionLayout
from pagoda.layouts.spec import LayerGroup, Reach
from pagoda.registry import lookup

HEADS, KV_HEADS, WIDTH, PAGE_TOKENS = 32, 8, 128, 16
CONTEXT, PROMPT, READ_TOKENS = 32 * 1024, 8 * 1024, 2048
BATCHES = (1, 8, 64)
FORMATS = ("bf16", "int8", "int4", "fp8_e4m3", "k8v4")
RULE = AttentionRule(WIDTH**-0.5)
REPEATS = 10

FEW_TILES = [
    Tile(16, tokens, warps, stages)
    for tokens, warps, stages in (
        (32, 1, 2), (32, 1, 3), (32, 1, 4), (32, 2, 3), (32, 2, 4), (32, 4, 4),
        (64, 1, 2), (64, 1, 3), (64, 2, 2), (64, 2, 3), (64, 2, 4), (64, 4, 2), (64, 4, 3), (64, 4, 4), (64, 8, 3),
        (128, 2, 2), (128, 4, 2), (128, 4, 3), (128, 8, 2), (128, 8, 3),
    )
]  # fmt: skip
MANY_TILES = [
    Tile(rows, tokens, warps, stages)
    for rows, tokens, warps, stages in (
        (256, 32, 8, 3), (256, 32, 8, 2), (256, 64, 8, 3), (256, 64, 8, 2), (128, 64, 8, 3), (128, 64, 8, 2),
        (128, 64, 4, 3), (128, 32, 4, 3), (128, 128, 8, 2), (64, 64, 4, 3),
    )
]  # fmt: skip
# Tiles that are timed with other numbers of programs, and other splits.
VARIED_TILES = (Tile(16, 64, 1, 2), Tile(16, 64, 2, 3), Tile(16, 64, 4, 3))
PROGRAMS = (2, 4, 8, 32)
SPLITS = (256, 512, 1024)


@dataclass(frozen=True)
class Setting:
    """Pages of `batch` sequences of `context` tokens, in the second of two layers; and what replaces the table."""

    format: str
    batch: int
    context: int
    table: tiles.Tiles = tiles.HOPPER

    def build(self, rows: int) -> tuple[TritonAttention, LayerPages, GroupView, torch.Tensor]:
        """With the last `rows` rows of each sequence as queries; views are on the card."""
        layout = AttentionLayout(KV_HEADS, WIDTH, WIDTH)
        format = lookup("format", self.format)
        geometry = PageGeometry(LayerGroup(Reach.FULL, None, (layout,) * 2), format, PAGE_TOKENS)
        pages = self.context // PAGE_TOKENS
        pool = torch.empty(self.batch * pages, geometry.page_nbytes, dtype=torch.uint8, device="cuda")
        layer, kernels = LayerPages(pool, geometry, 1), TritonAttention(self.table)
        order = torch.randperm(self.batch * pages, dtype=torch.int32)
        key, value = (torch.randn(self.context, KV_HEADS, WIDTH, device="cuda").bfloat16() for _ in range(2))
        for sequence in range(self.batch):
            own = order[sequence * pages : (sequence + 1) * pages]
            kernels.store(key, value, layer, view_of(own, 1, self.context, self.context, "cpu"))
        query = torch.randn(self.batch * rows, HEADS, WIDTH, device="cuda").bfloat16()
        return kernels, layer, view_of(order, self.batch, self.context, rows, "cuda"), query

    @property
    def nbytes(self) -> int:
        """Of keys and values that a decode step reads."""
        layout, format = AttentionLayout(KV_HEADS, WIDTH, WIDTH), lookup("format", self.format)
        page = sum(format.plane_nbytes(plane, PAGE_TOKENS) for plane in layout.planes)
        return self.batch * self.context // PAGE_TOKENS * page


def view_of(order: torch.Tensor, batch: int, context: int, rows: int, device: str) -> GroupView:
    steps = torch.arange(batch + 1, dtype=torch.int32)
    lengths = torch.full((batch,), context, dtype=torch.int32)
    tensors = (order, steps * (context // PAGE_TOKENS), steps * rows, lengths)
    return GroupView(*(each.to(device) for each in tensors))


def view_on_host(view: GroupView) -> GroupView:
    tensors = (view.page_indices, view.page_starts, view.query_starts, view.context_lengths)
    return GroupView(*(each.cpu() for each in tensors))


def seconds_of(work: Callable[[], Any], repeats: int = REPEATS, flushes: bool = True) -> float:
    """The median, with a cold second-level cache."""
    work()
    other = torch.empty(1 << 27 if flushes else 1, dtype=torch.uint8, device="cuda")
    times = []
    for _ in range(repeats):
        other.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def decode_seconds(setting: Setting, most_pages: int | None = None) -> float:
    """A decode step of one layer, replayed from a graph; of rows that read `most_pages`, if that is given."""
    kernels, layer, view, query = setting.build(1)
    if most_pages is not None:
        layer, view = in_part(layer, view, most_pages)
    kernels.record(view, tables_of(view), Room.of(view))
    kernels.attend(query, layer, view, RULE)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernels.attend(query, layer, view, RULE)
    return seconds_of(graph.replay)


def in_part(layer: LayerPages, view: GroupView, most_pages: int) -> tuple[LayerPages, GroupView]:
    """Where all rows choose so many pages, which are summarised when they first do."""
    plane, count = layer.key.plane, len(layer.pages)
    numbers = torch.zeros(count, plane.num_heads, summary_numbers(plane), dtype=torch.bfloat16, device="cuda")
    summaries = LayerSummaries(numbers, torch.zeros(count, dtype=torch.uint8, device="cuda"))
    readings = torch.tensor([[most_pages, 0]] * len(view.context_lengths), dtype=torch.int32, device="cuda")
    return replace(layer, summaries=summaries), replace(view, readings=readings)


def prefill_seconds(setting: Setting) -> float:
    kernels, layer, view, query = setting.build(setting.context)
    on_host = view_on_host(view)
    return seconds_of(lambda: kernels.attend(query, layer, on_host, RULE))


def copy_rate(nbytes: int = 1 << 32) -> float:
    """Bytes read and written a second."""
    source = torch.empty(nbytes, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * nbytes / seconds_of(lambda: target.copy_(source))


def with_few(tile: Tile) -> tiles.Tiles:
    return replace(tiles.HOPPER, few=tile, few_codes=tile)


def with_many(tile: Tile) -> tiles.Tiles:
    return replace(tiles.HOPPER, many=tile, many_codes=tile)


def sweep_settings() -> dict[str, Setting]:
    """By name; those of 8 k are prefills."""
    settings = {}
    for format, tile in itertools.product(("bf16", "int8", "int4"), FEW_TILES):
        if format == "bf16" or tile.tokens >= 64:
            settings[f"few {format} {brief(tile)}"] = Setting(format, 8, CONTEXT, with_few(tile))
    for format, tile in itertools.product(("bf16", "int4"), VARIED_TILES):
        for programs in PROGRAMS:
            table = replace(with_few(tile), programs_per_processor=programs)
            settings[f"few {format} {brief(tile)} programs={programs}"] = Setting(format, 8, CONTEXT, table)
        for split, batch in [*((split, 1) for split in SPLITS), (SPLITS[-1], 8)]:
            table = replace(with_few(tile), head_split_tokens=1024, few_split_tokens=(split, split))
            settings[f"few {format} {brief(tile)} split={split} of {batch}"] = Setting(format, batch, CONTEXT, table)
    for format in ("bf16", "int4"):
        settings[f"few {format} default"] = Setting(format, 8, CONTEXT)
        settings[f"few {format} default of one"] = Setting(format, 1, CONTEXT)
    for format, tile in itertools.product(("bf16", "int8"), MANY_TILES):
        if format == "bf16" or tile.tokens >= 64:
            settings[f"many {format} {brief(tile)}"] = Setting(format, 1, PROMPT, with_many(tile))
    return settings


def brief(tile: Tile) -> str:
    return f"{tile.rows}x{tile.tokens}w{tile.num_warps}s{tile.num_stages}"


def to_compile(parts: list[str]) -> list[str]:
    """Items that leave compiled kernels behind for the parts that are timed."""
    items = []
    if {"decode", "graph"} & set(parts):
        items += [f"compile:decode/{format}" for format in FORMATS]
    if "prefill" in parts:
        items += [f"compile:prefill/{format}" for format in FORMATS]
    if "flex" in parts:
        items.append("compile:flex")
    if "sweep" in parts:
        items += [f"compile:sweep/{name}" for name in sweep_settings() if "programs" not in name]
    return items


def compile_only(name: str) -> dict[str, Any]:
    """Run once what a part will time, on few tokens."""
    part, _, rest = name.partition("/")
    if part == "flex":
        return {"seconds": flex_seconds()}
    setting = sweep_settings()[rest] if part == "sweep" else Setting(rest, 8, CONTEXT)
    is_prefill = part == "prefill" or rest.startswith("many")
    context = 256 if is_prefill else 1024
    kernels, layer, view, query = replace(setting, batch=2, context=context).build(context if is_prefill else 1)
    on_host = view_on_host(view)
    kernels.attend(query, layer, on_host, RULE)
    torch.cuda.synchronize()
    return {}


def timed(part: str) -> Iterator[dict[str, Any]]:
    return {
        "decode": time_decode,
        "reading": time_reading,
        "prefill": time_prefill,
        "flex": time_flex,
        "store": time_store,
        "graph": check_graph,
        "sweep": time_sweep,
    }[part]()


def time_decode() -> Iterator[dict[str, Any]]:
    rate = copy_rate()
    yield {"copy_gb_per_second": round(rate / 1e9)}
    for batch in BATCHES:
        plain = 0.0
        for format in FORMATS:
            setting = Setting(format, batch, CONTEXT)
            seconds = decode_seconds(setting)
            plain = plain or seconds
            yield {
                "format": format,
                "batch": batch,
                "microseconds": round(seconds * 1e6, 1),
                "share_of_copy_rate": round(setting.nbytes / seconds / rate, 3),
                "times_bf16": round(plain / seconds, 2),
            }
            torch.cuda.empty_cache()


def time_reading() -> Iterator[dict[str, Any]]:
    """Rows that choose 2,048 tokens of theirs, against those that read all."""
    for format, batch in itertools.product(("bf16", "int8"), BATCHES):
        setting = Setting(format, batch, CONTEXT)
        whole, part = decode_seconds(setting), decode_seconds(setting, READ_TOKENS // PAGE_TOKENS)
        yield {
            "format": format,
            "batch": batch,
            "microseconds": round(part * 1e6, 1),
            "times_whole": round(whole / part, 2),
        }
        torch.cuda.empty_cache()


def prefill_flops(tokens: int) -> float:
    return 4 * HEADS * WIDTH * tokens * tokens / 2


def time_prefill() -> Iterator[dict[str, Any]]:
    flash = flash_seconds(PROMPT)
    yield {"what": "torch flash", "teraflops": round(prefill_flops(PROMPT) / flash / 1e12), "times_flash": 1.0}
    for format in FORMATS:
        seconds = prefill_seconds(Setting(format, 1, PROMPT))
        yield {
            "what": format,
            "teraflops": round(prefill_flops(PROMPT) / seconds / 1e12),
            "times_flash": round(flash / seconds, 3),
        }


def heads_first(tokens: int, heads: int) -> torch.Tensor:
    return torch.randn(1, heads, tokens, WIDTH, device="cuda").bfloat16()


def flash_seconds(tokens: int) -> float:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    query, key, value = (heads_first(tokens, HEADS) for _ in range(3))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return seconds_of(lambda: torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True))


def flex_seconds() -> float:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    mask = create_block_mask(lambda _batch, _head, row, token: row >= token, None, None, PROMPT, PROMPT, "cuda")
    query, key, value = heads_first(PROMPT, HEADS), heads_first(PROMPT, KV_HEADS), heads_first(PROMPT, KV_HEADS)
    attend = torch.compile(flex_attention)
    return seconds_of(lambda: attend(query, key, value, block_mask=mask, enable_gqa=True))


def time_flex() -> Iterator[dict[str, Any]]:
    seconds, flash = flex_seconds(), flash_seconds(PROMPT)
    yield {
        "what": "FlexAttention",
        "teraflops": round(prefill_flops(PROMPT) / seconds / 1e12),
        "times_flash": round(flash / seconds, 3),
    }


def time_store() -> Iterator[dict[str, Any]]:
    for format in FORMATS:
        for batch, rows in ((1, PROMPT), (64, 1)):
            kernels, layer, _, _ = Setting(format, batch, PROMPT).build(1)
            order = torch.arange(batch * PROMPT // PAGE_TOKENS, dtype=torch.int32)
            view = view_of(order, batch, PROMPT, rows, "cpu")
            key, value = (torch.randn(batch * rows, KV_HEADS, WIDTH, device="cuda").bfloat16() for _ in range(2))
            seconds = seconds_of(lambda run=(kernels, key, value, layer, view): run[0].store(*run[1:]))
            read = 2 * key.numel() * key.element_size()
            yield {
                "format": format,
                "rows": batch * rows,
                "microseconds": round(seconds * 1e6, 1),
                "read_gb_per_second": round(read / seconds / 1e9, 1),
            }


def check_graph() -> Iterator[dict[str, Any]]:
    """A recorded step follows the lengths in its tables: the bits of a step that is not recorded."""
    for format in ("bf16", "int8", "int4"):
        kernels, layer, view, query = Setting(format, 8, 4096).build(1)
        kernels.record(view, tables_of(view), Room.of(view))
        kernels.attend(query, layer, view, RULE)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = kernels.attend(query, layer, view, RULE)
        for lengths in ([4096] * 8, [1, 17, 500, 512, 513, 2000, 4095, 4096], [3000, 1, 1, 1, 1, 1, 1, 9]):
            view.context_lengths.copy_(torch.tensor(lengths, dtype=torch.int32))
            query.normal_()
            graph.replay()
            torch.cuda.synchronize()
            on_host = view_on_host(view)
            assert torch.equal(out, TritonAttention().attend(query, layer, on_host, RULE)), f"{format} {lengths}"
        yield {"format": format, "replays": "as computed"}


def time_sweep() -> Iterator[dict[str, Any]]:
    for name, setting in sweep_settings().items():
        try:
            seconds = prefill_seconds(setting) if name.startswith("many") else decode_seconds(setting)
        except Exception as error:
            yield {"setting": name, "refused": str(error)[:200]}
            continue
        line = {"setting": name, "microseconds": round(seconds * 1e6, 1)}
        if name.startswith("many"):
            yield {**line, "teraflops": round(prefill_flops(PROMPT) / seconds / 1e12)}
        else:
            yield {**line, "gb_per_second": round(setting.nbytes / seconds / 1e9)}
        torch.cuda.empty_cache()


def print_tables(results: dict[str, Any]) -> None:
    for line in results["lines"]:
        if "error" in line:
            print(f"FAILED {line['item']}: {line['error'].strip().splitlines()[-1][:300]}")
    told = {}
    for line in results["lines"]:
        if line["item"].startswith("time:") and "error" not in line:
            values = {name: value for name, value in line.items() if name not in ("item", "card")}
            if line["item"] not in told:
                print(f"\n{line['item'].removeprefix('time:')}")
                told[line["item"]] = True
            print("  " + "  ".join(f"{name}={value}" for name, value in values.items()))
    shares = [line["share_of_tolerance"] for line in results["lines"] if "share_of_tolerance" in line]
    bits = [
        f"{line['item'].removeprefix('case:')} {line['few_as_many']}"
        for line in results["lines"]
        if "few_as_many" in line
    ]
    print(f"\n{len(shares)} cases right, largest error {max(shares, default=0)} of what is allowed")
    print(f"bits the same in every batch: {len(bits)} cases; few rows as many rows: {', '.join(bits)}")
    print(f"seconds: {results['part_seconds']}")
