"""Writes docs/cli.md from the argument parser, so that the reference cannot differ from `--help`.

Tables rather than help texts: argparse lays its help out differently from one Python version to the next.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from pagoda.cli import build_parser

TARGET = Path(__file__).parent.parent / "docs" / "cli.md"

INTRODUCTION = """# The command line

Written by `make docs` from the parser itself; `pagoda COMMAND --help` shows the same.

Standard output carries results alone; reports and errors go to standard error. Exit status: 0 done, 1 the model or a
request failed, 2 the command or an option is wrong, 130 interrupted.

Environment: `PAGODA_KERNELS` (auto, native, reference, triton),
`PAGODA_KERNEL_ISA` (amx, avx512_bf16, avx512, avx2, baseline),
`PAGODA_LOG_LEVEL` (DEBUG, INFO, WARNING, ERROR), `PAGODA_POISON_PAGES` (1 fills fresh pages with NaN, for debugging),
`PAGODA_CACHE_DIR` (keeps what was measured of models; by default the user's cache folder, empty for none).
"""


def reference() -> str:
    """The whole document."""
    return "\n".join([INTRODUCTION, *_commands("pagoda", build_parser())])


def _commands(name: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each, sub in action.choices.items():
                yield from _command(f"{name} {each}", sub)


def _command(name: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    yield f"## {name}\n"
    yield f"{parser.description}\n"
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.dest != "help"]
        actions = [action for action in actions if not isinstance(action, argparse._SubParsersAction)]
        if actions:
            yield from _table(group.title or "", actions)
    yield f"```\n{parser.epilog}\n```\n"
    yield from _commands(name, parser)


def _table(title: str, actions: list[argparse.Action]) -> Iterator[str]:
    yield f"| {title} | |"
    yield "|---|---|"
    for action in actions:
        yield f"| {_signature(action)} | {(action.help or '').replace('%%', '%').replace('|', '/')} |"
    yield ""


def _signature(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{action.dest}`"
    flags = ", ".join(f"`{flag}`" for flag in action.option_strings)
    if action.nargs == 0:
        return flags
    value = action.metavar or "{" + ",".join(action.choices or ()) + "}"
    return f"{flags} `{value}`"


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
