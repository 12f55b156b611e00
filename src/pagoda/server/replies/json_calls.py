"""Reads calls written as JSON objects, between marks or without any.

From its opening brace on an object is read for itself, so marks, braces and line breaks within strings mean nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from pagoda.server.replies.json_text import Found, parsed, read_json, read_value
from pagoda.server.replies.output import Output
from pagoda.server.replies.tape import Reading, Tape, skip, starts

# What stands between the calls of one block: blanks, and what makes a list of them.
SEPARATORS = re.compile(r"[\s,;\[\]]*")
BLANKS = re.compile(r"[\s,;]*")
COMMAS = re.compile(r"[\s,]*")
FENCES = ("```json", "```")

ARGUMENTS = ("arguments", "parameters")
KEYS = frozenset({"name", "id", "type", "function", *ARGUMENTS})


def read_block(tape: Tape, out: Output, start: str, end: str = "") -> Reading[None]:
    """Calls up to `end`, or as many as there are. The mark `start` of another block is passed over."""
    marks = (start, end) if end else (start,)
    while True:
        yield from skip(tape, BLANKS)
        mark = yield from starts(tape, *marks)
        if tape.next == "{" and not mark:
            if (yield from read_call(tape, out)) is not Found.WHOLE:
                return
        elif tape.next in ("[", "]") and not mark:
            tape.place += 1
        elif mark != start:
            return


def read_call(tape: Tape, out: Output, names: Collection[str] | None = None) -> Reading[Found]:
    """One call, from its brace on. With `names` it has to be of one of these, and say nothing but that.

    If it is something else the tape stays where it was, unless a part of the call may have been seen.
    """
    start, num_begun, call = tape.place, out.num_begun, _Members()
    tape.place += 1
    found = yield from _read_members(tape, out, call, names)
    if call.has_begun:
        out.end(found is Found.WHOLE or (found is Found.CUT and call.has_arguments))
    elif found is Found.WHOLE:
        found = _say_members(call.fields, out, names)
    if found is Found.WRONG and out.num_begun == num_begun:
        tape.place = start
    return found


def read_forced(tape: Tape, out: Output) -> Reading[None]:
    """A reply that has to be a call; what is none is left on the tape."""
    yield from skip(tape)
    if tape.next == "{":
        start = tape.place
        found = yield from read_call(tape, out)
        if found is Found.CUT and not tape.is_cut and not out.num_begun:
            tape.place = start


def read_bare(tape: Tape, out: Output, names: Collection[str], is_usual: bool) -> Reading[None]:
    """A reply that is nothing but calls of tools with these `names`, in JSON without marks; else it stays on the tape.

    What is no call may follow where that is how the model usually writes them (`is_usual`).
    """
    start, before, num_tried = tape.place, out.hold(), out.num_tried
    if is_usual:
        out.release()
    found = yield from _read_all(tape, out, names)
    is_known = out.num_tried > num_tried or is_usual
    if found is Found.WRONG:
        is_read = is_usual and out.num_begun > before.num_begun
    else:
        is_read = out.num_begun > before.num_begun or (found is Found.CUT and tape.was_cut and is_known)
    if not is_read:
        out.rewind(before)
        tape.place = start
    out.release()


def _read_all(tape: Tape, out: Output, names: Collection[str]) -> Reading[Found]:
    """Calls up to the end of the text, each of which may stand in a fence."""
    while True:
        yield from skip(tape, SEPARATORS)
        if (yield from starts(tape, *FENCES)):
            yield from skip(tape, SEPARATORS)
        if tape.next != "{":
            return Found.WHOLE if tape.has_ended else Found.WRONG
        found = yield from read_call(tape, out, names)
        if found is not Found.WHOLE:
            return found


@dataclass
class _Members:
    """What an object has said so far; its arguments are passed on as they come, if its name came before."""

    fields: dict[str, Any] = field(default_factory=dict)
    has_begun: bool = False
    has_arguments: bool = False  # all of them


def _read_members(tape: Tape, out: Output, call: _Members, names: Collection[str] | None) -> Reading[Found]:
    while True:
        yield from skip(tape, COMMAS)
        if tape.next == "}":
            tape.place += 1
            return Found.WHOLE
        if tape.next != '"':
            return Found.CUT if tape.has_ended else Found.WRONG
        found, key = yield from read_json(tape)
        if found is Found.WHOLE:
            found = yield from _read_member(tape, out, call, key)
        if found is not Found.WHOLE:
            return found
        if names is not None and not _may_be_call(call.fields, names):
            return Found.WRONG


def _read_member(tape: Tape, out: Output, call: _Members, key: str) -> Reading[Found]:
    yield from skip(tape)
    if tape.next != ":":
        return Found.CUT if tape.has_ended else Found.WRONG
    tape.place += 1
    yield from skip(tape)
    name = call.fields.get("name")
    if key in ARGUMENTS and tape.next == "{" and isinstance(name, str) and not call.has_begun:
        call.has_begun = True
        out.begin(name)
        found = yield from read_value(tape, out.argue)
        call.has_arguments = found is Found.WHOLE
        return found
    found, call.fields[key] = yield from read_json(tape)
    return found


def _may_be_call(fields: Mapping[str, Any], names: Collection[str]) -> bool:
    return fields.keys() <= KEYS and ("name" not in fields or _is_one_of(fields["name"], names))


def _is_one_of(name: Any, names: Collection[str]) -> bool:
    return isinstance(name, str) and name in names


def _say_members(fields: Mapping[str, Any], out: Output, names: Collection[str] | None) -> Found:
    """A call whose arguments could not be passed on as they came."""
    inner = fields.get("function")
    if isinstance(inner, dict):
        fields = inner
    elif isinstance(inner, str):
        fields = {"name": inner, **fields}
    name, arguments = fields.get("name"), _arguments(fields)
    is_sure = names is None or (_is_one_of(name, names) and any(key in fields for key in ARGUMENTS))
    if not isinstance(name, str) or arguments is None or not is_sure:
        return Found.WRONG
    out.begin(name)
    out.argue(json.dumps(arguments, ensure_ascii=False))
    out.end()
    return Found.WHOLE


def _arguments(fields: Mapping[str, Any]) -> dict[str, Any] | None:
    """None if they are no object, nor one written as a string."""
    arguments = next((fields[key] for key in ARGUMENTS if fields.get(key) is not None), "")
    if isinstance(arguments, str):
        try:
            arguments = parsed(arguments or "{}")
        except ValueError:
            return None
    return arguments if isinstance(arguments, dict) else None
