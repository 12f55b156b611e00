"""Prefix hits of models whose layers do not all keep every token, against a model that keeps all of them.

    python benchmarks/hybrid.py --plot docs/images/hybrid.png

Replays conversations and prompts with a shared beginning through the cache alone, without a model. The model to compare
with attends everywhere and forgets nothing. The others hold the same tokens, in as many pages as those take, and

- hybrids of published sizes have room for snapshots of their recurrent states: a share of all bytes of their cache,
- a model with windows (Gemma 3) has a quarter of the pages for its windowed layers.

Conversations are those of a service (Mooncake's trace, whose blocks of 512 tokens are told apart by hashes), first to
come first served; their answers are not in the trace, so that a state after an answer is never of use. In made-up
conversations it is: each turn continues the one before, answer included, while others run between.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from pagoda.cache.cache import Cache, CacheGroup, NoBytes
from pagoda.cache.eviction.lru import LRU
from pagoda.cache.groups.pages import PageGroup
from pagoda.cache.groups.rule import KeepAll
from pagoda.cache.groups.state import SnapshotRule, StateGroup
from pagoda.cache.inspector import Inspector
from pagoda.layouts.spec import CacheSpec
from pagoda.planning.memory import MIN_INTERVAL_TOKENS, WINDOW_SHARE
from pagoda.planning.spec import spec_from_config

TRACE = Path(__file__).parents[2] / "shared" / "data" / "traces" / "mooncake_conversation_trace.jsonl.gz"
PAGE_TOKENS = 32
STEP_TOKENS = 2048
BLOCK_TOKENS = 512
NUMBER_NBYTES = 2
SHARES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4)
# Every page of every workload at once.
PLENTY = 1 << 20

Turn = tuple[list[int], list[int]]  # prompt and answer
Workload = Callable[[], Iterator[Turn]]

HYBRIDS: dict[str, dict[str, Any]] = {
    "Falcon-H1 7B": {
        "model_type": "falcon_h1",
        "num_hidden_layers": 44,
        "hidden_size": 3072,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "mamba_d_ssm": 3072,
        "mamba_n_heads": 24,
        "mamba_n_groups": 1,
        "mamba_d_state": 256,
        "mamba_d_conv": 4,
    },
    "Jamba 1.5 mini 52B": {
        "model_type": "jamba",
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "attn_layer_period": 8,
        "attn_layer_offset": 4,
        "mamba_expand": 2,
        "mamba_d_state": 16,
        "mamba_d_conv": 4,
    },
    "Qwen3-Next 80B": {
        "model_type": "qwen3_next",
        "num_hidden_layers": 48,
        "full_attention_interval": 4,
        "hidden_size": 2048,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_conv_kernel_dim": 4,
    },
}
WINDOWS = {
    "model_type": "gemma3_text",
    "num_hidden_layers": 26,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "hidden_size": 1152,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
}


@dataclass(frozen=True)
class Replayed:
    """Tokens hit, of all tokens asked for; pages that were filled."""

    hit_tokens: int
    queried_tokens: int
    num_pages: int


def service(path: Path, count: int) -> Workload:
    """The first `count` requests of the trace."""

    def turns() -> Iterator[Turn]:
        with gzip.open(path, "rt") as file:
            for line, _ in zip(file, range(count), strict=False):
                row = json.loads(line)
                blocks = [[block] * BLOCK_TOKENS for block in row["hash_ids"]]
                prompt = [token for block in blocks for token in block][: row["input_length"]]
                yield prompt, [-1 - row["timestamp"] % 1_000_000] * row["output_length"]

    return turns


def conversations(count: int, turns: int) -> Workload:
    """So many at once, each after one of four system prompts; a turn adds some hundred tokens, as with tools."""

    def all_turns() -> Iterator[Turn]:
        generator = random.Random(0)
        systems = [_tokens(generator, 800) for _ in range(4)]
        histories = [list(generator.choice(systems)) for _ in range(count)]
        order = [index for index in range(count) for _ in range(turns)]
        generator.shuffle(order)
        for index in order:
            prompt = histories[index] + _tokens(generator, int(generator.lognormvariate(6, 0.8)) + 1)
            answer = _tokens(generator, int(generator.lognormvariate(5.5, 0.6)) + 1)
            yield prompt, answer
            histories[index] = prompt + answer

    return all_turns


def shared_prompts(count: int) -> Workload:
    """Short questions, each about one of a few long texts."""

    def turns() -> Iterator[Turn]:
        generator = random.Random(1)
        texts = [_tokens(generator, length) for length in (1500, 3000, 6000, 12000)]
        for _ in range(count):
            yield generator.choice(texts) + _tokens(generator, generator.randrange(20, 200)), _tokens(generator, 150)

    return turns


def replay(groups: list[CacheGroup], workload: Workload) -> Replayed:
    """One request after the other, in steps as the engine takes them."""
    cache = Cache(groups, [NoBytes() for _ in groups])
    for prompt, answer in workload():
        hit = cache.match("", prompt, len(prompt) - 1)
        sequence = cache.attach(hit, len(prompt))
        # The last token of an answer is drawn and never computed.
        tokens = prompt + answer[:-1]
        while sequence.num_tokens < len(tokens):
            done = sequence.num_tokens
            end = min(done + STEP_TOKENS, len(prompt) if done < len(prompt) else len(tokens))
            reserved = cache.reserve(sequence, end - done)
            assert reserved, "the pool is too small for one sequence"
            cache.commit(sequence, tokens, end)
        cache.release(sequence, tokens)
    stats = Inspector(cache).stats()
    return Replayed(stats.hit_tokens, stats.queried_tokens, groups[0].holdings.counts.idle)


def hybrid_groups(spec: CacheSpec, num_pages: int, share: float) -> list[CacheGroup]:
    """Pages for everything, and snapshots that take `share` of all bytes; one more slot is the running sequence's."""
    page_nbytes = PAGE_TOKENS * spec.elements_per_token * NUMBER_NBYTES
    state_nbytes = spec.state_nbytes(NUMBER_NBYTES)
    num_snapshots = int(num_pages * page_nbytes * share / (1 - share) / state_nbytes)
    token_nbytes = spec.elements_per_token * NUMBER_NBYTES
    interval = max(int(state_nbytes / (share * token_nbytes)), MIN_INTERVAL_TOKENS) if share else None
    states = StateGroup(num_snapshots + 2, LRU(), SnapshotRule(interval, PAGE_TOKENS))
    return [PageGroup(num_pages + 1, PAGE_TOKENS, LRU(), KeepAll()), states]


def window_groups(spec: CacheSpec, num_pages: int) -> list[CacheGroup]:
    return [
        PageGroup(num_pages + 1 if group.span is None else int(num_pages * WINDOW_SHARE), PAGE_TOKENS, LRU(), group)
        for group in sorted(spec.groups, key=lambda group: group.span is not None)
    ]


def plot(curves: dict[str, dict[str, list[float]]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    for axes, (title, models) in zip(figure.subplots(1, len(curves), sharey=True), curves.items(), strict=True):
        for model, ratios in models.items():
            axes.plot([100 * share for share in SHARES], [100 * ratio for ratio in ratios], marker="o", label=model)
        axes.axhline(95, color="grey", linestyle=":")
        axes.set(title=title, xlabel="snapshots, % of the cache's bytes")
    figure.axes[0].set_ylabel("token hits, % of full attention")
    figure.axes[-1].legend()
    figure.savefig(path, dpi=130)


def _tokens(generator: random.Random, count: int) -> list[int]:
    return [generator.randrange(1 << 30) for _ in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, default=TRACE)
    parser.add_argument("--requests", type=int, default=600, help="of the trace")
    parser.add_argument("--plot", type=Path, help="write a PNG here")
    arguments = parser.parse_args()
    workloads = {
        "service": service(arguments.trace, arguments.requests),
        "one conversation": conversations(count=1, turns=40),
        "conversations": conversations(count=8, turns=20),
        "shared prompts": shared_prompts(400),
    }
    curves: dict[str, dict[str, list[float]]] = {}
    print("| workload | tokens, mean | hit rate | model | " + " | ".join(f"{share:.0%}" for share in SHARES) + " |")
    print("|---|---|---|---|" + "---|" * len(SHARES))
    for name, workload in workloads.items():
        full = replay([PageGroup(PLENTY, PAGE_TOKENS, LRU(), KeepAll())], workload)
        length = mean(len(prompt) for prompt, _ in workload())
        head = f"| {name} | {length:,.0f} | {full.hit_tokens / full.queried_tokens:.1%}"
        curves[name] = {}
        for model, config in HYBRIDS.items():
            spec = spec_from_config(config)
            ratios = [
                replay(hybrid_groups(spec, full.num_pages, share), workload).hit_tokens / full.hit_tokens
                for share in SHARES
            ]
            curves[name][model] = ratios
            print(f"{head} | {model} | " + " | ".join(f"{ratio:.1%}" for ratio in ratios) + " |", flush=True)
        windows = replay(window_groups(spec_from_config(WINDOWS), full.num_pages), workload)
        print(
            f"{head} | Gemma 3 1B | {windows.hit_tokens / full.hit_tokens:.1%} |" + " |" * (len(SHARES) - 1), flush=True
        )
    if arguments.plot:
        plot(curves, arguments.plot)


if __name__ == "__main__":
    main()
