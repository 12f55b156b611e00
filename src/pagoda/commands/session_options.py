"""The options of `pagoda session`. Imports nothing that is slow: `--help` must be quick."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

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
