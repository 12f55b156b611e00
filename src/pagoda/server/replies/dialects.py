"""Knows how the chat templates of each family have models write calls, and tells them apart by their words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from pagoda.server.replies import harmony, marked, tagged
from pagoda.server.replies.json_calls import read_block
from pagoda.server.replies.output import Output
from pagoda.server.replies.shapes import CallShape, Slot
from pagoda.server.replies.tape import Reading, Tape, starts
from pagoda.server.replies.tools import GivenTools

PYTHON_TAG = "<|python_tag|>"


@dataclass(frozen=True)
class Dialect:
    """`read` reads calls from where one of `starts` comes; without these it reads whole replies.

    signs: the words of a template, of which it has all of one line. marks: what has to be seen in the text beside
    `starts`, though it may be special tokens; none of it is shown. id_length: of the ids of calls, where the template
    insists on that. is_bare: whether calls stand without marks too, as JSON. shape: how calls are spelled, if marks
    tell them from text.
    """

    name: str
    signs: tuple[tuple[str, ...], ...]
    read: Callable[[Tape, Output, GivenTools], Reading[None]]
    starts: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    id_length: int | None = None
    is_bare: bool = False
    shape: CallShape | None = None


def _read_python_tag(tape: Tape, out: Output, _: GivenTools) -> Reading[None]:
    yield from starts(tape, PYTHON_TAG)
    yield from read_block(tape, out, PYTHON_TAG)


HARMONY = Dialect(
    name="harmony",
    signs=((harmony.CHANNEL, harmony.MESSAGE),),
    read=harmony.read_harmony,
    marks=harmony.MARKS,
)
KIMI = Dialect(
    name="kimi",
    signs=((marked.KIMI_CALL,),),
    read=marked.read_kimi,
    starts=(marked.KIMI_START, marked.KIMI_CALL),
    marks=(marked.KIMI_ARGUMENTS, marked.KIMI_CALL_END, marked.KIMI_END),
    shape=CallShape(
        start=marked.KIMI_START,
        call=(
            *(marked.KIMI_CALL, "functions.", Slot.NAME, ":", Slot.NUMBER),
            *(marked.KIMI_ARGUMENTS, Slot.ARGUMENTS, marked.KIMI_CALL_END),
        ),
        end=marked.KIMI_END,
        has_sections=True,
    ),
)
DEEPSEEK = Dialect(
    name="deepseek",
    signs=((marked.DEEPSEEK_CALL,),),
    read=marked.read_deepseek,
    starts=(marked.DEEPSEEK_START, marked.DEEPSEEK_CALL),
    marks=(marked.DEEPSEEK_SEPARATOR, marked.DEEPSEEK_CALL_END, marked.DEEPSEEK_END),
    shape=CallShape(
        start=marked.DEEPSEEK_START,
        call=(
            *(marked.DEEPSEEK_CALL, Slot.NAME, marked.DEEPSEEK_SEPARATOR),
            *(Slot.ARGUMENTS, marked.DEEPSEEK_CALL_END),
        ),
        end=marked.DEEPSEEK_END,
        has_sections=True,
    ),
)
DEEPSEEK_FENCED = replace(
    DEEPSEEK,
    signs=((marked.DEEPSEEK_CALL, marked.FENCE),),
    shape=CallShape(
        start=marked.DEEPSEEK_START,
        call=(
            *(Slot.GAP, marked.DEEPSEEK_CALL, "function", marked.DEEPSEEK_SEPARATOR, Slot.NAME),
            *("\n```json\n", Slot.ARGUMENTS, "\n```", marked.DEEPSEEK_CALL_END),
        ),
        end=marked.DEEPSEEK_END,
        has_sections=True,
    ),
)
MISTRAL = Dialect(
    name="mistral",
    signs=((marked.MISTRAL_START,),),
    read=marked.read_mistral,
    starts=(marked.MISTRAL_START,),
    marks=(marked.MISTRAL_ID, marked.MISTRAL_ARGUMENTS),
    id_length=9,
    shape=CallShape(marked.MISTRAL_START, (Slot.GAP, Slot.CALLS)),
)
MISTRAL_NAMES = replace(
    MISTRAL,
    signs=((marked.MISTRAL_START, marked.MISTRAL_ARGUMENTS),),
    shape=CallShape(marked.MISTRAL_START, (Slot.NAME, marked.MISTRAL_ARGUMENTS, Slot.ARGUMENTS)),
)
MISTRAL_IDS = replace(
    MISTRAL,
    signs=((marked.MISTRAL_START, marked.MISTRAL_ID),),
    shape=CallShape(
        marked.MISTRAL_START, (Slot.NAME, marked.MISTRAL_ID, Slot.ID, marked.MISTRAL_ARGUMENTS, Slot.ARGUMENTS)
    ),
)
GLM = Dialect(
    name="glm",
    signs=((tagged.START, tagged.KEY),),
    read=tagged.read_tagged,
    starts=(tagged.START,),
    marks=(tagged.END, tagged.KEY, tagged.KEY_END, tagged.VALUE, tagged.VALUE_END),
    shape=CallShape(
        start=tagged.START,
        call=(Slot.NAME, Slot.GAP, Slot.PAIRS),
        end=tagged.END,
        pair=(
            *(tagged.KEY, Slot.KEY, tagged.KEY_END, Slot.GAP),
            *(tagged.VALUE, Slot.VALUE, tagged.VALUE_END, Slot.GAP),
        ),
    ),
)
XML = Dialect(
    name="xml",
    signs=((tagged.FUNCTION, tagged.PARAMETER),),
    read=tagged.read_tagged,
    starts=(tagged.START, tagged.FUNCTION),
    marks=(tagged.END,),
    shape=CallShape(
        start=tagged.START,
        call=(Slot.GAP, tagged.FUNCTION, Slot.NAME, ">\n", Slot.PAIRS, tagged.FUNCTION_END, Slot.GAP),
        end=tagged.END,
        pair=(tagged.PARAMETER, Slot.KEY, ">\n", Slot.VALUE, f"\n{tagged.PARAMETER_END}\n"),
    ),
)
HERMES = Dialect(
    name="hermes",
    signs=((tagged.START,),),
    read=tagged.read_tagged,
    starts=(tagged.START,),
    marks=(tagged.END,),
    shape=CallShape(tagged.START, (Slot.GAP, Slot.CALL, Slot.GAP), tagged.END),
)
LLAMA3 = Dialect(
    name="llama3_json",
    signs=((PYTHON_TAG,), ("<|eom_id|>",), ("<|start_header_id|>", '"parameters": ')),
    read=_read_python_tag,
    starts=(PYTHON_TAG,),
    is_bare=True,
)
# Of several whose signs a template has, the first one is meant.
DIALECTS = (
    *(HARMONY, KIMI, DEEPSEEK_FENCED, DEEPSEEK, MISTRAL_IDS, MISTRAL_NAMES, MISTRAL),
    *(GLM, XML, HERMES, LLAMA3),
)


def find_dialect(template: str) -> Dialect | None:
    """The dialect of a chat template; None if it has models write calls in another way, or none."""
    known = (each for each in DIALECTS if any(all(sign in template for sign in signs) for signs in each.signs))
    return next(known, None)
