"""Calls between `<tool_call>` tags: as JSON (Hermes, Qwen), as XML (Qwen3-Coder) or as pairs of tags (GLM).

Models that learnt several of these mix them, so each call is read as what it looks like. Arguments that stand between
tags are bare text, which may have such tags in it: a tag ends one only if another tag follows.
"""

from __future__ import annotations

import json
import re

from pagoda.server.replies.json_calls import read_block
from pagoda.server.replies.output import Output
from pagoda.server.replies.tape import Reading, Tape, more, skip, starts, until
from pagoda.server.replies.tools import GivenTools

START, END = "<tool_call>", "</tool_call>"
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"
KEY, KEY_END = "<arg_key>", "</arg_key>"
VALUE, VALUE_END = "<arg_value>", "</arg_value>"

NAME = re.compile(r"[\w.:/-]*")


def read_tagged(tape: Tape, out: Output, tools: GivenTools) -> Reading[None]:
    """The calls of one block, from its tag on."""
    yield from starts(tape, START)
    yield from skip(tape)
    if tape.next in ("{", "["):
        yield from read_block(tape, out, START, END)
        return
    if not (yield from starts(tape, FUNCTION)):
        yield from _read_pairs(tape, out, tools)
        return
    while (yield from _read_function(tape, out, tools)):
        yield from skip(tape)
        if not (yield from starts(tape, FUNCTION)):
            break
    yield from starts(tape, END)


def _read_function(tape: Tape, out: Output, tools: GivenTools) -> Reading[bool]:
    """A call as XML, from its name on; whether it is whole."""
    name = yield from _read_name(tape)
    if not name or not (yield from starts(tape, ">")):
        return False
    call = _Call(out, tools, name)
    while True:
        yield from skip(tape)
        mark = yield from starts(tape, PARAMETER, FUNCTION_END, END)
        if mark in (FUNCTION_END, END):
            tape.place -= len(END) if mark == END else 0
            return call.end()
        key = (yield from _read_to(tape, ">")) if mark else None
        value = None if key is None else (yield from _read_value(tape, PARAMETER_END, (PARAMETER, FUNCTION_END, END)))
        if key is None or value is None:
            return call.end(is_whole=False)
        call.add(key, value.removeprefix("\n").removesuffix("\n"))


def _read_pairs(tape: Tape, out: Output, tools: GivenTools) -> Reading[None]:
    """A call as a name and pairs of keys and values. One without pairs may be a word like others."""
    name = yield from _read_name(tape)
    yield from skip(tape)
    mark = (yield from starts(tape, KEY, END)) if name else ""
    if not mark or (mark == END and name not in tools.names):
        return
    call = _Call(out, tools, name)
    while mark == KEY:
        key = yield from _read_to(tape, KEY_END)
        yield from skip(tape)
        has_value = yield from starts(tape, VALUE)
        value = (yield from _read_value(tape, VALUE_END, (KEY, END))) if has_value else None
        if key is None or value is None:
            call.end(is_whole=False)
            return
        call.add(key.strip(), value)
        yield from skip(tape)
        mark = yield from starts(tape, KEY, END)
    call.end(is_whole=bool(mark) or not tape.was_cut)


class _Call:
    """A call whose arguments come one by one. Before the first of them, or its end, it may be text as well."""

    def __init__(self, out: Output, tools: GivenTools, name: str) -> None:
        self._out, self._tools, self._name = out, tools, name
        self._has_arguments = False

    def add(self, key: str, text: str) -> None:
        if not self._has_arguments:
            self._out.begin(self._name)
        value = self._tools.value(self._name, key, text)
        start = ", " if self._has_arguments else "{"
        self._has_arguments = True
        self._out.argue(f"{start}{json.dumps(key, ensure_ascii=False)}: {value}")

    def end(self, is_whole: bool = True) -> bool:
        if is_whole and not self._has_arguments:
            self._out.begin(self._name)
        if is_whole:
            self._out.argue("}" if self._has_arguments else "{}")
        if is_whole or self._has_arguments:
            self._out.end(is_whole)
        return is_whole


def _read_name(tape: Tape) -> Reading[str]:
    start = tape.place
    yield from skip(tape, NAME)
    return tape.text[start : tape.place]


def _read_to(tape: Tape, end: str) -> Reading[str | None]:
    """The text up to `end`, which is taken off; None if there is no end."""
    pieces: list[str] = []
    found = yield from until(tape, (end,), pieces.append)
    return "".join(pieces) if found else None


def _read_value(tape: Tape, end: str, following: tuple[str, ...]) -> Reading[str | None]:
    """The text up to the first `end` after which the text ends too, or one of `following` comes."""
    start = searched = tape.place
    while True:
        found = tape.text.find(end, searched)
        if found < 0:
            searched = max(start, len(tape.text) - len(end) + 1)
            if not (yield from more(tape)):
                tape.place = len(tape.text)
                return None
            continue
        tape.place = found + len(end)
        yield from skip(tape)
        has_ended = tape.has_ended
        if has_ended or (yield from starts(tape, *following)):
            tape.place = found + len(end)
            return tape.text[start:found]
        searched = found + 1
