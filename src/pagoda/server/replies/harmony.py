"""Reads the replies of gpt-oss: messages with a channel each, some of which are thoughts, some calls.

A message is `<|start|>assistant`, a header, `<|message|>`, its content and the mark that ends it; the prompt has the
start of the first. The header may name a channel and, in front of it or behind, whom the message is to.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from pagoda.server.replies.json_text import Found, read_value
from pagoda.server.replies.output import Output
from pagoda.server.replies.tape import Reading, Tape, skip, starts, until
from pagoda.server.replies.tools import GivenTools

START, CHANNEL, CONSTRAIN, MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
ENDS = ("<|end|>", "<|return|>", "<|call|>")
MARKS = (START, CHANNEL, CONSTRAIN, MESSAGE, *ENDS)

TO = " to="
CHANNEL_NAME = re.compile(re.escape(CHANNEL) + r"\s*(\w+)")
FUNCTION = re.compile(r"to=functions\.([\w.:/-]+)")


def read_harmony(tape: Tape, out: Output, tools: GivenTools) -> Reading[None]:
    """All messages; text that is none is shown."""
    while not tape.has_ended:
        tape.forget()
        mark = yield from starts(tape, TO, *MARKS)
        if mark in (TO, START, CHANNEL):
            tape.place -= len(mark)
            yield from _read_message(tape, out, tools)
        elif not mark:
            yield from _say_all(tape, out.say)


def _say_all(tape: Tape, say: Callable[[str], None]) -> Reading[None]:
    """What comes before the next mark, which stays on the tape."""
    mark = yield from until(tape, MARKS, say)
    tape.place -= len(mark)


def _read_message(tape: Tape, out: Output, tools: GivenTools) -> Reading[None]:
    pieces: list[str] = []
    yield from until(tape, (MESSAGE,), pieces.append)
    header = "".join(pieces)
    channel, function = CHANNEL_NAME.search(header), FUNCTION.search(header)
    say = out.say
    if function is not None and tools.names:
        yield from _read_call(tape, out, function[1])
    elif channel is not None and channel[1] == "analysis":
        out.think("\n")
        say = out.think
    else:
        out.part()
    yield from _say_all(tape, say)


def _read_call(tape: Tape, out: Output, name: str) -> Reading[None]:
    """The content of a call. What is no object is left to be shown."""
    yield from skip(tape)
    is_empty = (yield from starts(tape, *ENDS)) or (tape.has_ended and not tape.is_cut)
    if tape.next == "{" and not is_empty:
        out.begin(name)
        found = yield from read_value(tape, out.argue)
        out.end(found is Found.WHOLE)
    elif is_empty:
        out.begin(name)
        out.argue("{}")
        out.end()
