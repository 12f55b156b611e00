"""The options of `pagoda kv` and of what it does. Imports nothing that takes time: `--help` must be quick."""

from __future__ import annotations

import argparse
import re
from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path
from typing import Any

from pagoda.commands.options import add_engine_options, add_model_options
from pagoda.errors import ConfigError
from pagoda.units import parse_nbytes

EXAMPLES = """examples:
  pagoda kv ls /var/cache/pagoda
  pagoda kv verify /var/cache/pagoda
  pagoda kv gc /var/cache/pagoda --bytes 10GiB --older 30d
  pagoda kv export /var/cache/pagoda manuals.pages
  pagoda kv import /srv/pagoda manuals.pages
  pagoda kv warm /srv/pagoda manuals/*.txt --model ~/models/Qwen2.5-0.5B-Instruct

DIR is what `pagoda serve --kv-disk DIR` writes to. While a server writes there it can be listed, verified and exported,
and not changed. Ages are in seconds, or with a unit: 90m, 12h, 30d."""
FILE_OPERANDS = {"export": " FILE", "import": " FILE", "warm": " FILE..."}
# What of the engine's options a folder decides.
TIER_FIELDS = ("kv_host_bytes", "kv_disk", "kv_remote", "kv_remote_ttl_seconds", "kv_write")
_SECONDS_OF_UNIT = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def add_kv_options(parser: ArgumentParser) -> None:
    actions = parser.add_subparsers(
        dest="action", required=True, metavar="ls|verify|gc|export|import|warm", parser_class=type(parser)
    )
    listing = _action(actions, "ls", "what lies in a folder of pages", "DIR --json")
    listing.add_argument("--json", action="store_true", help="print it as JSON")
    verify = _action(
        actions, "verify", "check every byte of a folder of pages; the exit status is 1 if any is wrong", "DIR"
    )
    verify.add_argument("--json", action="store_true", help="print it as JSON")
    _add_gc(_action(actions, "gc", "remove pages from a folder", "DIR --bytes 10GiB --older 30d"))
    export = _action(actions, "export", "copy all pages of a folder into one file", "DIR manuals.pages")
    export.add_argument("file", type=Path, metavar="FILE", help="the file to write")
    export.add_argument("--force", action="store_true", help="write over the file if it exists")
    reading = _action(actions, "import", "put the pages of such a file into a folder", "DIR manuals.pages")
    reading.add_argument("file", type=Path, metavar="FILE", help="the file to read")
    reading.add_argument(
        "--bytes", type=_size, metavar="SIZE", help="let the oldest go rather than have more than this"
    )
    _add_warm(
        _action(
            actions,
            "warm",
            "compute documents once, and write their pages to a folder for servers to read",
            "DIR manuals/*.txt --model ~/models/Qwen2.5-0.5B-Instruct --prefix system.txt",
        )
    )


def _action(actions: Any, name: str, summary: str, example: str) -> ArgumentParser:
    parser: ArgumentParser = actions.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        usage=f"pagoda kv {name} [options] DIR{FILE_OPERANDS.get(name, '')}",
        epilog=f"example: pagoda kv {name} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="the folder")
    return parser


def _add_gc(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--bytes", type=_size, metavar="SIZE", help="let the oldest go until no more than this are left")
    add("--older", type=_age, metavar="AGE", help="remove pages that were made longer ago")
    add("--identity", type=_digest, metavar="HEX", help="remove pages of the identity whose digest begins like this")


def _add_warm(parser: ArgumentParser) -> None:
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="a document: text, JSON with a prompt or messages, or a line of that for each document (.jsonl)",
    )
    add = parser.add_argument
    add("--prefix", type=Path, metavar="FILE", help="text that comes before each: a system prompt")
    add("--chat-template", type=Path, metavar="FILE", help="a Jinja file that replaces the tokenizer's chat template")
    add("--tenant", default="", metavar="NAME", help="whose requests may find them, where a server has tenants")
    add("--json", action="store_true", help="print it as JSON")
    add_model_options(parser)
    add_engine_options(parser, without=TIER_FIELDS)


def _size(text: str) -> int:
    try:
        return parse_nbytes(text)
    except ConfigError as error:
        raise ArgumentTypeError(str(error)) from error


def _age(text: str) -> float:
    match = re.fullmatch(r"(\d{1,12}(?:\.\d+)?)([smhd]?)", text.strip())
    if match is None:
        raise ArgumentTypeError(f"{text!r} is no age; write seconds, or a number with a unit such as 90m, 12h or 30d.")
    return float(match[1]) * _SECONDS_OF_UNIT[match[2]]


def _digest(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{1,32}", text.lower()):
        raise ArgumentTypeError(f"{text!r} is no beginning of a digest; take one from `pagoda kv ls`.")
    return text.lower()
