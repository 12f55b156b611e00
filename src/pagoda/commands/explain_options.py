"""The options of `pagoda explain`. Imports nothing that is slow: `--help` must be quick."""

from __future__ import annotations

import math
from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path

from pagoda.formats.page import PAGE_TOKENS_MULTIPLE


def add_explain_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "files", nargs="*", type=Path, metavar="FILE", help="the earlier request, which was computed, and the later one"
    )
    add(
        "--model", type=Path, metavar="PATH", help="checkpoint whose tokenizer and layers count (default: the embedded)"
    )
    add("--tokenizer", type=Path, metavar="PATH", help="tokenizer directory, if it is not the model's")
    add("--chat-template", type=Path, metavar="FILE", help="a Jinja file that replaces the tokenizer's chat template")
    add("--block-size", type=page_size, metavar="TOKENS", help="tokens per page (default: the servers', else 32)")
    add(
        "--url",
        action="append",
        default=[],
        metavar="URL",
        help="a running server, as http://localhost:8000: why its --request-id missed; or, given twice, the servers "
        "that the two files went to, the earlier one first",
    )
    add("--request-id", metavar="ID", help="with --url: the id of a response, or of a request")
    add("--api-key", metavar="KEY", help="with --url: the key to send, an admin's with two servers")
    add(
        "--identity",
        type=Path,
        nargs=2,
        metavar="FILE",
        help="instead of two --url: what GET /v1/kv/identity answered at the time of each of the two requests",
    )
    add("--prefill-rate", type=not_negative, metavar="N", help="tokens computed in a second, to tell times")
    add("--price-input", type=not_negative, metavar="X", help="price of a million tokens of prompts that are computed")
    add("--price-cached", type=not_negative, metavar="X", help="price of a million tokens of prompts that are read")
    add("--show-text", action="store_true", help="quote what stands where the prompts part")
    add("--json", action="store_true", help="print the report as JSON")


def page_size(text: str) -> int:
    """Tokens of a page, for argparse."""
    if not text.isdecimal() or int(text) <= 0 or int(text) % PAGE_TOKENS_MULTIPLE:
        raise ArgumentTypeError(f"{text!r} is no positive multiple of {PAGE_TOKENS_MULTIPLE} tokens")
    return int(text)


def not_negative(text: str) -> float:
    """A number of 0 or more, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ArgumentTypeError(f"{text!r} is no number of 0 or more")
    return value
