"""Reads calls whose name and arguments stand between marks of their own: those of Mistral, DeepSeek and Kimi.

The arguments are JSON in all of them, and are read for themselves.
"""

from __future__ import annotations

import re

from pagoda.server.replies.json_calls import read_block
from pagoda.server.replies.json_text import Found, read_value
from pagoda.server.replies.output import Output
from pagoda.server.replies.tape import Reading, Tape, skip, starts, until
from pagoda.server.replies.tools import GivenTools

MISTRAL_START, MISTRAL_ID, MISTRAL_ARGUMENTS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"

BAR = "\N{FULLWIDTH VERTICAL LINE}"
DEEPSEEK_START, DEEPSEEK_END = f"<{BAR}tool▁calls▁begin{BAR}>", f"<{BAR}tool▁calls▁end{BAR}>"
DEEPSEEK_CALL, DEEPSEEK_CALL_END = f"<{BAR}tool▁call▁begin{BAR}>", f"<{BAR}tool▁call▁end{BAR}>"
DEEPSEEK_SEPARATOR = f"<{BAR}tool▁sep{BAR}>"

KIMI_START, KIMI_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
KIMI_CALL, KIMI_ARGUMENTS, KIMI_CALL_END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"

NAME = re.compile(r"[\w.:/-]{1,256}")
KIMI_NAME = re.compile(r"(?:functions\.)?([\w.:/-]+?)(?::\d+)?")
FENCE = "```"


def read_mistral(tape: Tape, out: Output, _: GivenTools) -> Reading[None]:
    """A list in JSON, or one call as `name[ARGS]{...}`."""
    yield from starts(tape, MISTRAL_START)
    yield from skip(tape)
    if tape.next in ("{", "["):
        yield from read_block(tape, out, MISTRAL_START)
        return
    name, mark = yield from _read_to(tape, MISTRAL_ARGUMENTS, MISTRAL_ID, "{")
    if mark == MISTRAL_ID:
        mark = (yield from _read_to(tape, MISTRAL_ARGUMENTS))[1]
    tape.place -= mark == "{"
    if mark:
        yield from _read_arguments(tape, out, name, (MISTRAL_START,))


def read_deepseek(tape: Tape, out: Output, _: GivenTools) -> Reading[None]:
    """Calls as `name`, a mark and JSON (V3.1), or as `function`, a mark, `name` and JSON in a fence (V3, R1)."""
    yield from starts(tape, DEEPSEEK_START)
    yield from skip(tape)
    while (yield from starts(tape, DEEPSEEK_CALL)):
        name, mark = yield from _read_to(tape, DEEPSEEK_SEPARATOR, DEEPSEEK_CALL_END)
        yield from skip(tape)
        if mark == DEEPSEEK_SEPARATOR and tape.next not in ("{", ""):
            name, mark = yield from _read_to(tape, "\n", DEEPSEEK_CALL_END)
            yield from skip(tape)
            yield from starts(tape, FENCE + "json", FENCE)
        if not mark or not (yield from _read_arguments(tape, out, name, (FENCE, DEEPSEEK_CALL_END))):
            return
        yield from skip(tape)
        yield from starts(tape, FENCE)
        yield from skip(tape)
        yield from starts(tape, DEEPSEEK_CALL_END)
        yield from skip(tape)
    yield from starts(tape, DEEPSEEK_END)


def read_kimi(tape: Tape, out: Output, _: GivenTools) -> Reading[None]:
    """Calls as an id, which has the name in it, a mark and JSON."""
    yield from starts(tape, KIMI_START)
    yield from skip(tape)
    while (yield from starts(tape, KIMI_CALL)):
        call_id, mark = yield from _read_to(tape, KIMI_ARGUMENTS, KIMI_CALL_END)
        tape.place -= len(mark) if mark == KIMI_CALL_END else 0
        found = KIMI_NAME.fullmatch(call_id)
        ends = (KIMI_CALL_END,)
        if not mark or found is None or not (yield from _read_arguments(tape, out, found[1], ends, call_id)):
            return
        yield from skip(tape)
        yield from starts(tape, KIMI_CALL_END)
        yield from skip(tape)
    yield from starts(tape, KIMI_END)


def _read_to(tape: Tape, *marks: str) -> Reading[tuple[str, str]]:
    """The text before the first of `marks`, without blanks, and that mark, which is taken off."""
    pieces: list[str] = []
    mark = yield from until(tape, marks, pieces.append)
    return "".join(pieces).strip(), mark


def _read_arguments(
    tape: Tape, out: Output, name: str, ends: tuple[str, ...], call_id: str | None = None
) -> Reading[bool]:
    """A call of `name`, whose arguments come next, or one of `ends` if it has none; whether it is whole."""
    if NAME.fullmatch(name) is None:
        return False
    yield from skip(tape)
    if tape.next != "{" and not (yield from starts(tape, *ends)) and (not tape.has_ended or tape.is_cut):
        return False
    out.begin(name, call_id)
    found = Found.WHOLE
    if tape.next == "{":
        found = yield from read_value(tape, out.argue)
    else:
        out.argue("{}")
    out.end(found is Found.WHOLE)
    return found is Found.WHOLE
