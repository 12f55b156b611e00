"""Reads one reply as it comes: its thoughts, its text and its tool calls, in order.

What does not parse is text, as the model wrote it. A call that turns out to be none after some of it was given away
ends there, and what follows is text. Of a reply that is cut off, the call that it broke off in is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pagoda.engine.request import FinishReason
from pagoda.outputs import CompletionOutput
from pagoda.server.replies.dialects import HARMONY
from pagoda.server.replies.json_calls import read_bare, read_forced
from pagoda.server.replies.output import Output
from pagoda.server.replies.pieces import Block, Piece, blocks_of
from pagoda.server.replies.style import ReplyStyle
from pagoda.server.replies.tape import Reading, Tape, until
from pagoda.server.replies.thoughts import read_thought
from pagoda.server.replies.tools import GivenTools


@dataclass(frozen=True)
class Terms:
    """What a reply may have in it.

    tools: that may be called, in the words of chat templates. is_forced: whether it has to be a call, in JSON. is_form:
    whether it has that or another form, so that there are no thoughts, nor calls but that one.
    """

    tools: Sequence[Mapping[str, Any]] = ()
    is_forced: bool = False
    is_form: bool = False
    id_prefix: str = "call_"
    most_calls: int | None = None


class ReplyReader:
    """Reads one reply, of which others may see pieces as they come unless it `is_whole`."""

    def __init__(self, style: ReplyStyle, terms: Terms, is_whole: bool = False) -> None:
        id_length = None if style.dialect is None else style.dialect.id_length
        most_calls = 1 if style.is_single else terms.most_calls
        self._output = Output(terms.id_prefix, id_length, most_calls, is_whole)
        self._tape = Tape()
        self._reading = _read(self._tape, self._output, style, terms)
        next(self._reading, None)

    @property
    def num_calls(self) -> int:
        """Whole ones, so far."""
        return self._output.num_calls

    @property
    def has_thought(self) -> bool:
        return self._output.has_thought

    def push(self, text: str, is_last: bool = False, is_cut: bool = False) -> list[Piece]:
        """More of the text: what it settles. The last of it may be cut, so that the model had more to say."""
        tape = self._tape
        tape.text += text
        tape.is_last, tape.is_cut = is_last, is_cut
        next(self._reading, None)
        if is_last:
            self._output.finish()
        return self._output.take()


def is_cut(reason: FinishReason | None, stop_reason: int | str | None) -> bool:
    """Whether a sample that ended so had more to say: it came to its limit, or to a string that ends it."""
    return reason is FinishReason.LENGTH or isinstance(stop_reason, str)


def read_sample(sample: CompletionOutput, style: ReplyStyle, terms: Terms) -> list[Block]:
    """The blocks of a reply that has ended."""
    reader = ReplyReader(style, terms, is_whole=True)
    return blocks_of(reader.push(sample.text, True, is_cut(sample.finish_reason, sample.stop_reason)))


def _read(tape: Tape, out: Output, style: ReplyStyle, terms: Terms) -> Reading[None]:
    tools = GivenTools(() if terms.is_form else terms.tools)
    if terms.is_forced:
        yield from read_forced(tape, out)
    elif not terms.is_form:
        if style.thoughts is not None and style.dialect is not HARMONY:
            # Models may go on from a thought to calls; special tokens can begin nothing else.
            starts = () if style.dialect is None else style.dialect.starts
            ends = [mark for mark in starts if mark in style.hidden]
            yield from read_thought(tape, out, style.thoughts, style.is_thinking, ends)
        if tools.names:
            is_bare = style.dialect is not None and style.dialect.is_bare
            yield from read_bare(tape, out, tools.names, is_bare)
        if style.dialect is HARMONY:
            yield from style.dialect.read(tape, out, tools)
    yield from _read_text(tape, out, style, tools)


def _read_text(tape: Tape, out: Output, style: ReplyStyle, tools: GivenTools) -> Reading[None]:
    """Text with calls in it, if there are tools."""
    dialect = style.dialect if tools.names else None
    begins = () if dialect is None else dialect.starts
    while not tape.has_ended:
        tape.forget()
        # Once there was a call, marks of the kind that stand alone are what is left of it.
        rests = dialect.marks if dialect is not None and out.num_begun else ()
        mark = yield from until(tape, (*begins, *style.hidden, *rests), out.say)
        if dialect is None or mark not in begins or not mark:
            continue
        after, num_begun = tape.place, out.num_begun
        tape.place -= len(mark)
        yield from dialect.read(tape, out, tools)
        if out.num_begun == num_begun and not tape.was_cut:
            tape.place = after
            out.say("" if mark in style.hidden else mark)
