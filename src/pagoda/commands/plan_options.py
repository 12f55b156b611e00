"""The options of `pagoda plan`: the fields of `PlanOptions` under the same names, and what to do with the answer."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pagoda.commands.options import size
from pagoda.config import DTYPES, QUANTIZATIONS, EngineConfig
from pagoda.errors import ConfigError
from pagoda.units import parse_bandwidth, parse_flops

Value = TypeVar("Value")


def add_plan_options(parser: ArgumentParser) -> None:
    add: Any = parser.add_argument
    add(
        "model",
        nargs="?",
        help="a folder, a GGUF file, a config.json, or the name of a configuration that comes with Pagoda",
    )
    add("--list", action="store_true", help="name the configurations that come with Pagoda, and where they are from")
    _add_machine_options(parser.add_argument_group("machine"))
    _add_load_options(parser.add_argument_group("load"))
    _add_engine_options(parser.add_argument_group("engine"))
    group: Any = parser.add_argument_group("answer")
    group.add_argument("--explain", action="store_true", help="show each formula with its values in it")
    group.add_argument("--json", action="store_true", help="print everything as JSON")
    group.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw memory and users over context (needs the plot extra)"
    )
    group.add_argument("--force", action="store_true", help="write over FILE if it exists")


def _add_machine_options(group: Any) -> None:
    machines = "H100, H200, A100, B200, L4, RTX 4090, M3 Max, or this, which is measured"
    group.add_argument("--machine", metavar="NAME", help=f"a preset: {machines}")
    group.add_argument("--gpus", type=int, metavar="N", help="devices that divide the heads of the model (default: 1)")
    group.add_argument("--memory", type=size, metavar="SIZE", help="memory of one device, such as 80GiB")
    group.add_argument("--bandwidth", type=_as(parse_bandwidth), metavar="RATE", help="how fast it reads, as 3.35TB/s")
    group.add_argument("--flops", type=_as(parse_flops), metavar="RATE", help="how fast it multiplies, as 990TFLOPS")


def _add_load_options(group: Any) -> None:
    longest = "by default the model's longest"
    group.add_argument("--context", type=int, metavar="N", help=f"tokens of a user, prompt and answer; {longest}")
    group.add_argument("--output-tokens", type=int, metavar="N", help="how many of them are generated; by default 256")
    group.add_argument("--users", type=int, metavar="N", help="users at once (default: 1)")
    group.add_argument("--shared-prefix", type=int, metavar="N", help="tokens that all prompts begin with")
    group.add_argument(
        "--kv-compression", metavar="POLICY", help="which tokens users keep, such as snapkv:tokens=1024 (default: none)"
    )
    group.add_argument(
        "--sparse-attention",
        metavar="METHOD",
        help="how much of their pages generated tokens read, such as quest:tokens=2048 (default: none)",
    )
    group.add_argument("--encoder-tokens", type=int, metavar="N", help="tokens that an encoder reads for each user")


def _add_engine_options(group: Any) -> None:
    group.add_argument("--dtype", choices=DTYPES, help="precision of the weights; by default the checkpoint's")
    group.add_argument("--quantization", choices=QUANTIZATIONS, help="bits that weights are rounded to (default: none)")
    group.add_argument("--weights", type=size, metavar="SIZE", help="bytes of all weights, if they are kept otherwise")
    group.add_argument(
        "--kv-cache-dtype",
        nargs="+",
        metavar="FORMAT",
        help="formats of the pages, the first for all other answers (default: auto, then others to compare)",
    )
    group.add_argument(
        "--kv-cache-memory-bytes", type=size, metavar="SIZE", help="memory for pages, instead of what memory leaves"
    )
    block = EngineConfig.block_size
    group.add_argument("--block-size", type=int, metavar="TOKENS", help=f"tokens per page (default: {block})")
    step, seats = EngineConfig.max_num_batched_tokens, EngineConfig.max_num_seqs
    group.add_argument("--max-num-batched-tokens", type=int, metavar="N", help=f"tokens of a step (default: {step})")
    group.add_argument("--max-num-seqs", type=int, metavar="N", help=f"sequences that run at once (default: {seats})")


def _as(parse: Callable[[str], Value]) -> Callable[[str], Value]:
    """`parse` as argparse wants it, which drops the message of a ValueError."""

    def parsed(text: str) -> Value:
        try:
            return parse(text)
        except ConfigError as error:
            raise ArgumentTypeError(str(error)) from error

    return parsed
