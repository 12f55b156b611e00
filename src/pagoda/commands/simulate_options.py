"""The options of `pagoda simulate`. Imports nothing that takes time: `--help` must be quick."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path

from pagoda.config import WRITE_POLICIES, EngineConfig
from pagoda.registry import names

ROUTINGS = ("round-robin", "least-loaded", "prefix-aware")


def add_simulate_options(parser: ArgumentParser) -> None:
    parser.add_argument("trace", type=Path, help="the file to replay")
    _add_cache(parser)
    _add_tiers(parser)
    _add_trace(parser)
    _add_time(parser)
    _add_output(parser)


def _add_cache(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("cache").add_argument
    policies = ", ".join(names("eviction"))
    add(
        "--policy",
        nargs="+",
        metavar="NAME",
        help=f"which pages go first: {policies}, belady (the best there could be) or all (default: lru)",
    )
    add("--capacity", nargs="+", metavar="SIZE", help="how large the cache is (default: ten sizes from 1%% to inf)")
    add(
        "--block-size",
        type=_positive,
        metavar="TOKENS",
        help="tokens per page (default: as the trace has them, else 32)",
    )
    add("--model", metavar="MODEL", help="whose pages they are: a directory, a config.json, or a name as for `plan`")
    add("--kv-cache-dtype", metavar="FORMAT", help="format of the pages of --model (default: auto)")
    add("--ttl", type=float, metavar="SECONDS", help="forget what nobody has used for so long")
    add("--tenants", type=Path, metavar="FILE", help="the file that `pagoda serve --tenants` takes, for their quotas")
    add("--replicas", type=_positive, default=1, metavar="N", help="servers, each with a cache (default: 1)")
    add("--routing", default="round-robin", choices=ROUTINGS, help="who serves a request (default: round-robin)")


def _add_tiers(parser: ArgumentParser) -> None:
    add = parser.add_argument_group(
        "tiers", "Below each cache; sizes as for --capacity, rates for the time model as 5GB/s, or tokens."
    ).add_argument
    add("--kv-host-bytes", metavar="SIZE", help="memory for pages that leave the cache (default: none)")
    add("--kv-disk-bytes", metavar="SIZE", help="disk for pages (default: none)")
    add(
        "--kv-write",
        choices=WRITE_POLICIES,
        default=EngineConfig.kv_write,
        help="when pages go to disk (default: %(default)s)",
    )
    add("--kv-host-rate", metavar="RATE", help="how much is read from host memory in a second (default: no limit)")
    add("--kv-disk-rate", metavar="RATE", help="how much is read from disk in a second (default: no limit)")


def _add_trace(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("trace").add_argument
    add("--trace-block", type=_positive, metavar="TOKENS", help="tokens of a block with a hash (default: found out)")
    add("--time-unit", choices=("s", "ms"), help="of timestamps that are numbers (default: ms in JSON, s in CSV)")
    add("--tokenizer", type=Path, metavar="PATH", help="tokenizer directory for texts (default: the embedded model's)")
    add("--requests", type=_positive, metavar="N", help="replay the first N requests only")
    add("--strict", action="store_true", help="end at the first line that is no request, instead of leaving it out")


def _add_time(parser: ArgumentParser) -> None:
    config = EngineConfig
    add = parser.add_argument_group(
        "time", "With rates requests arrive when they did, wait and are batched."
    ).add_argument
    add("--prefill-rate", type=float, metavar="N", help="tokens of prompts computed in a second")
    add("--decode-rate", type=float, metavar="N", help="tokens that one sequence alone generates in a second")
    add("--rates", type=Path, metavar="FILE", help="take both from what `pagoda bench --json FILE` has measured")
    add("--speed", type=float, metavar="X", help="let requests arrive X times as fast as they did")
    add("--request-rate", type=float, metavar="N", help="let N arrive in a second by chance, whatever the trace says")
    add(
        "--max-num-seqs",
        type=_positive,
        default=config.max_num_seqs,
        metavar="N",
        help=f"sequences that run at once (default: {config.max_num_seqs})",
    )
    add(
        "--max-num-batched-tokens",
        type=_positive,
        default=config.max_num_batched_tokens,
        metavar="N",
        help=f"tokens computed in one step (default: {config.max_num_batched_tokens})",
    )


def _add_output(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("output").add_argument
    add("--json", action="store_true", help="print every figure as JSON")
    add("--csv", type=Path, metavar="FILE", help="write a row for each run (-: to standard output)")
    add("--plot", type=Path, metavar="FILE", help="draw the curves (needs the plot extra)")
    add("--force", action="store_true", help="write over files")
    add("--processes", type=_positive, metavar="N", help="runs at once (default: one per processor)")


def _positive(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 1 << 31:
        raise ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)
