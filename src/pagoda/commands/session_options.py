"""The options of `pagoda session`. Imports nothing that is slow: `--help` must be quick."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pagoda.commands.options import add_engine_options, add_model_options, add_sampling_options

SAVE_EXAMPLES = """examples:
  pagoda session save --file prompt.txt talk.pagoda
  pagoda session save --model ~/models/Qwen2.5-0.5B-Instruct --file chat.json talk.pagoda

The file has text, or, if its name ends in .json, a list of messages or of token ids."""

LOAD_EXAMPLES = """examples:
  pagoda session load talk.pagoda
  pagoda session load talk.pagoda "And then?" --model ~/models/Qwen2.5-0.5B-Instruct

How many tokens came from the file, and how many were computed, is told on standard error."""

SHOW_EXAMPLES = """examples:
  pagoda session show talk.pagoda
  pagoda session show talk.pagoda --show-text
  pagoda session show talk.pagoda --json"""

VERIFY_EXAMPLES = """examples:
  pagoda session verify talk.pagoda
  pagoda session verify sessions/*.pagoda

The exit status is 1 if anything is damaged."""


def add_session_options(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="action", parser_class=type(parser))
    save = _action(
        actions, "save", "compute a prompt or a conversation, and write it with its pages", " OUT", SAVE_EXAMPLES
    )
    save.add_argument("out", type=Path, metavar="OUT", help="the file to write")
    save.add_argument(
        "--file", type=Path, required=True, metavar="FILE", help="text, or messages in a .json; - is stdin"
    )
    save.add_argument("--name", default="", metavar="NAME", help="what it is called")
    save.add_argument("--title", default="", metavar="TEXT", help="what it is about, on one line")
    save.add_argument("--force", action="store_true", help="write over OUT if it exists")
    add_model_options(save)
    add_engine_options(save)
    load = _action(actions, "load", "go on from a session", " FILE [prompt]", LOAD_EXAMPLES)
    load.add_argument("file", type=Path, metavar="FILE", help="a session of this model")
    load.add_argument("prompt", nargs="?", help="what is said next (default: nothing, the model goes on)")
    add_model_options(load)
    add_sampling_options(load, max_tokens=128)
    add_engine_options(load)
    show = _action(actions, "show", "what a session file says of itself", " FILE", SHOW_EXAMPLES)
    show.add_argument("file", type=Path, metavar="FILE", help="a session; no model is needed")
    show.add_argument("--show-text", action="store_true", help="quote the messages that were saved with it")
    show.add_argument("--json", action="store_true", help="print it as JSON")
    verify = _action(actions, "verify", "read every page of session files", " FILE...", VERIFY_EXAMPLES)
    verify.add_argument("files", type=Path, nargs="+", metavar="FILE", help="sessions; no model is needed")
    verify.add_argument("--json", action="store_true", help="print what was found as JSON")


def _action(
    actions: argparse._SubParsersAction[Any], name: str, summary: str, operands: str, examples: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        usage=f"pagoda session {name} [options]{operands}",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser
