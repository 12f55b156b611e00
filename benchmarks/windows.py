"""Memory of layers with a window while one sequence grows long, against what the window needs.

    python benchmarks/windows.py

A model with the cache of Gemma 3 1B (26 layers, one KV head of 256 channels, a window of 512 in five of six layers) and
narrow layers besides, so that a long prompt takes seconds. After every step the pages of each group are counted.
"""

from __future__ import annotations

import argparse
import random

from transformers import Gemma3TextConfig

from pagoda.cache.groups.rule import window_pages
from pagoda.config import EngineConfig
from pagoda.engine.engine import Engine
from pagoda.engine.request import new_request
from pagoda.kernels.dispatch import choose_kernels
from pagoda.models.loader import model_from_config
from pagoda.sampling_params import SamplingParams
from pagoda.units import format_nbytes

NUM_LAYERS = 26
EVERY = 6
WINDOW = 512


def make_engine(tokens: int) -> Engine:
    kinds = ["sliding_attention" if (index + 1) % EVERY else "full_attention" for index in range(NUM_LAYERS)]
    shape = Gemma3TextConfig(
        num_hidden_layers=NUM_LAYERS,
        layer_types=kinds,
        sliding_window=WINDOW,
        hidden_size=64,
        intermediate_size=64,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        vocab_size=1000,
        max_position_embeddings=2 * tokens,
    )
    config = EngineConfig(kv_cache_memory_bytes=8 << 30)
    return Engine(model_from_config(shape, dtype="bfloat16"), choose_kernels(config.environment), config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=32 * 1024)
    arguments = parser.parse_args()
    engine = make_engine(arguments.tokens)
    generator = random.Random(0)
    prompt = [generator.randrange(10, 1000) for _ in range(arguments.tokens)]
    engine.add(new_request("long", prompt, SamplingParams(max_tokens=2 * WINDOW, ignore_eos=True)))
    most = [0] * len(engine.memory.geometries)
    tokens = 0
    while engine.has_work:
        engine.step()
        for sequence in engine._cache.sequences:
            tokens = sequence.num_tokens
            if tokens >= arguments.tokens:
                most = [max(old, len(table.held)) for old, table in zip(most, sequence.tables, strict=True)]
    print("| group | layers | pages held at most while decoding | bytes | the window needs | every token would take |")
    print("|---|---|---|---|---|---|")
    for geometry, num_pages in zip(engine.memory.geometries, most, strict=True):
        group, size = geometry.group, geometry.page_tokens
        every = -(-tokens // size)
        needed = every if group.span is None else window_pages(group.span, size, 1)
        described = [format_nbytes(count * geometry.page_nbytes) for count in (num_pages, needed, every)]
        print(
            f"| {group.reach} {group.span or ''} | {len(group.layouts)} | {num_pages} | {described[0]} | "
            f"{described[1]} ({needed} pages) | {described[2]} ({every} pages) |"
        )


if __name__ == "__main__":
    main()
