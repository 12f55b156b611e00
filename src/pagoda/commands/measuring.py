"""How fast this machine is, and what each kernel reaches of it.

Every figure stands beside its limit, measured a moment before. Knows kernels and pages with numbers of no meaning.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pagoda.formats.page import PageGeometry
from pagoda.kernels.base import AttentionRule, GroupView, LayerPages
from pagoda.kernels.native import NativeKernels
from pagoda.kernels.native_calls import allocate, read_bandwidth
from pagoda.layouts.attention import AttentionLayout
from pagoda.layouts.spec import LayerGroup, Reach
from pagoda.registry import lookup

if TYPE_CHECKING:
    from pagoda.llm import LLM

STREAMED_NBYTES = 256 << 20  # more than caches hold
COLUMNS, DEPTH = 4096, 2048
KV_HEADS, HEADS, WIDTH = 8, 32, 128
PAGE_TOKENS = 32
FORMATS = ("bf16", "int8", "int4")
REPEATS = 3
DECODED_TOKENS = 48
PROMPT_TOKENS = 64


@dataclass(frozen=True)
class Rate:
    """So much of something a second, and what share of its limit that is, if it has one."""

    name: str
    value: str
    share: float | None = None

    def __str__(self) -> str:
        return self.value if self.share is None else f"{self.value}, {self.share:.0%} of its limit"


def machine_rates(kernels: NativeKernels) -> Iterator[Rate]:
    """The limits, and what products and attention reach of them."""
    yield Rate("memory read, small pages", f"{read_bandwidth(in_huge_pages=False):.1f} GB/s")
    peak = kernels.peak_rate()
    yield Rate("arithmetic", f"{2 * peak / 1e9:.0f} GFLOP/s in bf16")
    limit = read_bandwidth()
    yield Rate("memory read", f"{limit:.1f} GB/s in huge pages")
    for rows in (1, 8):
        rate = _linear_rate(kernels, rows)
        yield Rate(f"linear layer, {rows} row{'s' * (rows > 1)}", f"{rate:.1f} GB/s", rate / limit)
    for name in FORMATS:
        limit = read_bandwidth()
        yield Rate(f"attention over {name} pages", *_of(_attention_rate(kernels, name), limit))
    products = _linear_rate(kernels, 64) * 1e9 / 2 * 64
    yield Rate("linear layer, 64 rows", f"{2 * products / 1e9:.0f} GFLOP/s", products / peak)


def model_rate(llm: LLM) -> Rate | None:
    """Decode steps of one sequence, beside reading all weights once for each token, but for the table of embeddings.

    None if sequences are too short for some steps.
    """
    from pagoda.sampling_params import SamplingParams

    model, most = llm.engine.model, llm.engine.max_model_len
    prompt = [token % model.vocab_size for token in range(1, 1 + min(PROMPT_TOKENS, most // 2))]
    num_steps = min(DECODED_TOKENS, most - len(prompt)) - 1
    if num_steps < 1:
        return None
    params = SamplingParams(temperature=0, max_tokens=num_steps + 1, ignore_eos=True)
    speeds, limits = [], []
    for _ in range(REPEATS):
        before = read_bandwidth()
        times = llm.generate([prompt], params, use_tqdm=False)[0].metrics.token_times
        speeds.append(num_steps / (times[-1] - times[0]))
        limits.append((before + read_bandwidth()) / 2 * 1e9 / (model.weight_nbytes - model.table_nbytes))
    share = statistics.median(speed / limit for speed, limit in zip(speeds, limits, strict=True))
    speed, limit = statistics.median(speeds), statistics.median(limits)
    return Rate("decode", f"{speed:.1f} tokens/s alone; reading all weights allows {limit:.1f}", share)


def _of(rate: float, limit: float) -> tuple[str, float]:
    return f"{rate:.1f} GB/s", rate / limit


def _linear_rate(kernels: NativeKernels, rows: int) -> float:
    """GB/s of weights."""
    nbytes = COLUMNS * DEPTH * 2
    memory = allocate(STREAMED_NBYTES)
    numbers = memory.view(torch.bfloat16)
    numbers.fill_(0.01)
    weights = numbers[: STREAMED_NBYTES // nbytes * COLUMNS * DEPTH].view(-1, COLUMNS, DEPTH)
    input = torch.ones(rows, DEPTH, dtype=torch.bfloat16)

    def run() -> None:
        for weight in weights:
            kernels.linear(input, weight, None)

    return len(weights) * nbytes / _seconds(run) / 1e9


def _attention_rate(kernels: NativeKernels, name: str) -> float:
    """GB/s of pages that one query of a sequence reads."""
    format, layout = lookup("format", name), AttentionLayout(KV_HEADS, WIDTH, WIDTH)
    geometry = PageGeometry(LayerGroup(Reach.FULL, None, (layout,)), format, PAGE_TOKENS)
    num_pages = STREAMED_NBYTES // geometry.page_nbytes
    memory = allocate(num_pages * geometry.page_nbytes)
    pages = memory.view(num_pages, geometry.page_nbytes)
    for slot in geometry.slots[0]:
        numbers = torch.randn(slot.plane.num_heads, PAGE_TOKENS, slot.plane.width) / 4
        pages[:, slot.offset : slot.offset + slot.nbytes] = format.encode(numbers, slot.plane)
    query = torch.randn(1, HEADS, WIDTH).to(format.model_dtype())
    layer, rule = LayerPages(pages, geometry, 0), AttentionRule(WIDTH**-0.5)
    starts, spans, lengths = (torch.tensor(each).int() for each in ([0, num_pages], [0, 1], [num_pages * PAGE_TOKENS]))
    view = GroupView(torch.randperm(num_pages).int(), starts, spans, lengths)
    return pages.nbytes / _seconds(lambda: kernels.attend(query, layer, view, rule)) / 1e9


def _seconds(run: Callable[[], object]) -> float:
    """The median of a few times, after one that does not count."""
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
