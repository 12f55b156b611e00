"""Decode attention of one layer with latents: over pages of them, and over the keys and values expanded from them.

Sizes per head are DeepSeek's (128 + 64 channels of queries and keys, 128 of values, latents of 512). Over latents the
two up-projections are part of the time. Each call reads another layer's pages, so that no cache can hold them.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable

import torch

from pagoda.formats.page import PageGeometry
from pagoda.kernels.base import AttentionRule, GroupView, LayerPages
from pagoda.kernels.native import NativeKernels
from pagoda.kernels.native_calls import allocate
from pagoda.layouts.attention import AttentionLayout
from pagoda.layouts.base import Layout
from pagoda.layouts.latent import LatentLayout
from pagoda.layouts.spec import LayerGroup, Reach
from pagoda.registry import lookup

PAGE_TOKENS = 32
NOPE, ROTARY, VALUE, LATENT = 128, 64, 128, 512
RULE = AttentionRule(scale=(NOPE + ROTARY) ** -0.5)
POOL_NBYTES = 512 << 20  # more than any cache


def make_layers(layout: Layout, tokens: int, format_name: str) -> tuple[list[LayerPages], GroupView]:
    """Layers full of small random numbers: enough that no cache holds them, two at least."""
    format = lookup("format", format_name)
    num_pages = -(-tokens // PAGE_TOKENS)
    one = PageGeometry(LayerGroup(Reach.FULL, None, (layout,)), format, PAGE_TOKENS)
    count = max(2, POOL_NBYTES // (one.page_nbytes * num_pages))
    geometry = PageGeometry(LayerGroup(Reach.FULL, None, (layout,) * count), format, PAGE_TOKENS)
    pages = allocate(num_pages * geometry.page_nbytes).view(num_pages, geometry.page_nbytes)
    for slot in (slot for planes in geometry.slots for slot in planes):
        values = torch.randn(slot.plane.num_heads, PAGE_TOKENS, slot.plane.width) / 4
        pages[:, slot.offset : slot.offset + slot.nbytes] = format.encode(values.bfloat16(), slot.plane)
    spans = ([0, num_pages], [0, 1], [tokens])
    view = GroupView(torch.arange(num_pages).int(), *(torch.tensor(span).int() for span in spans))
    return [LayerPages(pages, geometry, layer) for layer in range(count)], view


def over_latents(heads: int, tokens: int, format_name: str, kernels: NativeKernels) -> Callable[[], object]:
    layers, view = make_layers(LatentLayout(LATENT, ROTARY), tokens, format_name)
    following = itertools.cycle(layers)
    count = max(2, POOL_NBYTES // (2 * heads * (NOPE + VALUE) * LATENT))
    weights = itertools.cycle(torch.randn(count, heads, NOPE + VALUE, LATENT, dtype=torch.bfloat16) / 16)
    nope, rotary = torch.randn(1, heads, NOPE).bfloat16(), torch.randn(1, heads, ROTARY).bfloat16()

    def call() -> object:
        into, out_of = next(weights).split([NOPE, VALUE], dim=1)
        query = torch.cat((kernels.multiply_heads(nope, into), rotary), dim=-1)
        out = kernels.attend(query, next(following), view, RULE)
        return kernels.multiply_heads(out, out_of.transpose(1, 2))

    return call


def over_expanded(heads: int, tokens: int, format_name: str, kernels: NativeKernels) -> Callable[[], object]:
    layers, view = make_layers(AttentionLayout(heads, NOPE + ROTARY, VALUE), tokens, format_name)
    following = itertools.cycle(layers)
    query = torch.randn(1, heads, NOPE + ROTARY).bfloat16()
    return lambda: kernels.attend(query, next(following), view, RULE)


def milliseconds(calls: list[Callable[[], object]], repeats: int) -> list[list[float]]:
    """Times of each call, taken in turns."""
    times: list[list[float]] = [[] for _ in calls]
    for repeat in range(repeats + 1):
        for call, own in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            if repeat:
                own.append(1e3 * (time.perf_counter() - start))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, nargs="+", default=[16, 128])
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--formats", nargs="+", default=["bf16", "int8"])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    kernels = NativeKernels()
    print(f"{kernels.name}, {arguments.context} tokens: median milliseconds (lowest to highest)")
    with torch.inference_mode():
        for heads, name in itertools.product(arguments.heads, arguments.formats):
            calls = [make(heads, arguments.context, name, kernels) for make in (over_latents, over_expanded)]
            latents, expanded = milliseconds(calls, arguments.repeats)
            ratio = statistics.median(expanded) / statistics.median(latents)
            shown = [
                f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})" for each in (latents, expanded)
            ]
            print(f"{heads} heads, {name}: latents {shown[0]}, expanded {shown[1]}: {ratio:.1f} times as fast")


if __name__ == "__main__":
    main()
