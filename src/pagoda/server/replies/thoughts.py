"""Finds the marks between which a chat template has a model think, and whether a prompt has opened them already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pagoda.server.replies.output import Output
from pagoda.server.replies.tape import Reading, Tape, skip, starts, until


@dataclass(frozen=True)
class ThoughtMarks:
    """What stands around a thought."""

    start: str
    end: str


KNOWN = (
    ThoughtMarks("<think>", "</think>"),
    ThoughtMarks("[THINK]", "[/THINK]"),
    ThoughtMarks("<seed:think>", "</seed:think>"),
    ThoughtMarks("<|START_THINKING|>", "<|END_THINKING|>"),
)


def find_thoughts(template: str) -> ThoughtMarks | None:
    """The marks that a template uses; None if it knows no thoughts."""
    return next((marks for marks in KNOWN if marks.start in template and marks.end in template), None)


def has_opened(marks: ThoughtMarks, prompt: str) -> bool:
    """Whether what follows the prompt is a thought."""
    return prompt.rstrip().endswith(marks.start)


def read_thought(
    tape: Tape, out: Output, marks: ThoughtMarks, is_open: bool, ends: Sequence[str] = ()
) -> Reading[None]:
    """The thought that a reply begins with, if it does. One of `ends` ends it as well, and stays on the tape."""
    start = tape.place
    yield from skip(tape)
    has_started = yield from starts(tape, marks.start)
    if has_started or is_open:
        mark = yield from until(tape, (marks.end, *ends), out.think)
        tape.place -= len(mark) if mark in ends else 0
        yield from skip(tape)
    elif not tape.was_cut:
        tape.place = start
