"""Why a prompt missed: which cause, where, what could have been read, what that cost, and what to change.

An explanation quotes no prompt, unless `context` is asked for. Knows neither files nor servers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pagoda.analysis.causes import MEANINGS, VendorNames, vendor_names
from pagoda.analysis.cost import NO_RATES, Rates
from pagoda.analysis.difference import Difference, num_repeated
from pagoda.analysis.namespaces import Part
from pagoda.analysis.prompt import Prompt, Section, SectionKind
from pagoda.analysis.recognition import TOOL_CAUSES, cause_of

CONTEXT_CHARACTERS = 60
HARMLESS = ("none", "continued")
# What may change in the last message, where it costs nothing.
EXPECTED_LAST = ("message_edited", "timestamp", "random_id", "counter")
LAST_ADVICE = "Nothing: what changes with every request stands last."
BEHIND_ADVICE = (
    "Put what changes with every request, as a question or the time, at the end of the last message: behind documents "
    "and all else that stays as it is."
)
REPEATED_CHARACTERS = 256  # what is said again after the difference, and is worth a change
OTHER_NAMESPACE = "other_namespace"
SEPARATE = (OTHER_NAMESPACE, "model_changed", "salt_changed")  # prompts that share nothing, whatever their tokens
HELD_BEFORE = ("evicted", "ttl_expired", "reset", "failed")


@dataclass(frozen=True)
class Context:
    """What stands around the place where two prompts part."""

    before: str
    earlier: str
    later: str

    @classmethod
    def of(cls, difference: Difference) -> Context:
        start, stop = max(difference.place - CONTEXT_CHARACTERS, 0), difference.place + CONTEXT_CHARACTERS
        earlier, later = difference.earlier.text, difference.later.text
        return cls(later[start : difference.place], earlier[difference.place : stop], later[difference.place : stop])


@dataclass(frozen=True)
class Place:
    """Where a prompt misses: the token and its page, and the part of the conversation that it belongs to."""

    token: int
    page: int
    page_offset: int
    section: str
    message: int | None = None
    role: str | None = None

    @classmethod
    def of(cls, token: int, page_tokens: int, section: Section | None) -> Place:
        section = section or Section(SectionKind.PROMPT, 0, 0)
        return cls(token, *divmod(token, page_tokens), str(section.kind), section.message, section.role)


@dataclass(frozen=True)
class Explanation:
    """Counts are in tokens: `prompt_tokens` = `reused_tokens` + `computed_tokens`. `missed_tokens` of the computed ones
    would have been read, had the prompt gone on where the earlier one ended. What nobody can tell is None.
    `parts` are those in which the pages of two servers differ.
    """

    cause: str
    words: str
    advice: str
    vendor: VendorNames
    place: Place | None
    prompt_tokens: int
    reused_tokens: int
    missed_tokens: int
    missed_seconds: float | None = None
    missed_price: float | None = None
    price: float | None = None
    earlier_tokens: int | None = None
    context: Context | None = None
    parts: tuple[Part, ...] = ()

    @property
    def computed_tokens(self) -> int:
        return self.prompt_tokens - self.reused_tokens

    @property
    def sentence(self) -> str:
        """All of it in one, for people."""
        if self.place is None or self.cause in HARMLESS:
            return self.words
        if self.place.token == 0 and not self._was_held_in_part:
            differing = "; ".join(part.words for part in self.parts)
            return f"The whole prompt misses. {self.words}" + (f" They differ in {differing}." if differing else "")
        text = f"The prompt misses from token {self.place.token:,} on, in {where(self.place)}. {self.words}"
        if self._was_held_in_part:
            text += f" That is so of {self.missed_tokens:,} of the {self.computed_tokens:,} tokens that were computed."
        if self.reused_tokens < self.place.token:
            text += f" Of those before it {self.reused_tokens:,} could be read."
        return text

    @property
    def _was_held_in_part(self) -> bool:
        """The last token is computed whatever is held."""
        return self.cause in HELD_BEFORE and self.missed_tokens < self.computed_tokens - 1

    def as_json(self) -> dict[str, Any]:
        plain = asdict(self)
        plain["vendor"] = self.vendor._asdict()
        plain["parts"] = [asdict(part) | {"name": part.name} for part in self.parts]
        plain["computed_tokens"] = self.computed_tokens
        plain["sentence"] = self.sentence
        return plain


@dataclass(frozen=True)
class Reuse:
    """How many tokens of `prompt_tokens` were or would be read, in pages of `page_tokens`."""

    prompt_tokens: int
    read_tokens: int
    page_tokens: int


@dataclass(frozen=True)
class Finding:
    """A cause, and what it was found by. Without a `first_missed` token nothing was missed that is known to be."""

    cause: str
    missed_tokens: int = 0
    first_missed: int | None = None
    section: Section | None = None
    earlier_tokens: int | None = None
    context: Context | None = None
    is_in_last: bool = False  # whether it is in the last message
    is_followed: bool = False  # whether much that is the same comes behind it in there
    parts: tuple[Part, ...] = ()


def find(
    earlier: Prompt, later: Prompt, read_tokens: int, with_context: bool = False, parts: Sequence[Part] = ()
) -> Finding:
    """Why `later` had to compute what it did, after `earlier`: of what they share it could read so many tokens.

    `parts` are those in which their servers differ.
    """
    difference = Difference(earlier, later)
    cause = OTHER_NAMESPACE if parts else cause_of(difference)
    is_parted = not difference.is_continued
    if cause in SEPARATE:
        missed = min(len(earlier.token_ids), len(later.token_ids) - 1)
        return Finding(cause, missed, first_missed=0, earlier_tokens=len(earlier.token_ids), parts=tuple(parts))
    section = None if cause in HARMLESS else difference.section
    if cause in TOOL_CAUSES:  # where there were none, their place is the template's
        section = Section(SectionKind.TOOLS, difference.place, difference.place)
    return Finding(
        cause=cause,
        missed_tokens=max(min(len(earlier.token_ids), len(later.token_ids) - 1) - read_tokens, 0),
        first_missed=difference.num_common_tokens if is_parted else None,
        section=section,
        earlier_tokens=len(earlier.token_ids),
        context=Context.of(difference) if with_context and is_parted else None,
        is_in_last=section is not None and section.message == len(later.messages) - 1,
        is_followed=num_repeated(difference.edit) >= REPEATED_CHARACTERS,
    )


def explain(finding: Finding, reuse: Reuse, rates: Rates = NO_RATES) -> Explanation:
    """All that there is to say of a finding."""
    named = "model_changed" if any(part.is_of_model for part in finding.parts) else finding.cause
    meaning, place, missed = MEANINGS[finding.cause], finding.first_missed, finding.missed_tokens
    return Explanation(
        cause=finding.cause,
        words=meaning.words,
        advice=_advice(finding),
        vendor=vendor_names(named, finding.section),
        place=None if place is None else Place.of(place, reuse.page_tokens, finding.section),
        prompt_tokens=reuse.prompt_tokens,
        reused_tokens=reuse.read_tokens,
        missed_tokens=missed,
        missed_seconds=rates.seconds(missed),
        missed_price=rates.surcharge(missed),
        price=rates.price(reuse.prompt_tokens - reuse.read_tokens, reuse.read_tokens),
        earlier_tokens=finding.earlier_tokens,
        context=finding.context,
        parts=finding.parts,
    )


def _advice(finding: Finding) -> str:
    if not finding.is_in_last or finding.cause not in EXPECTED_LAST:
        return MEANINGS[finding.cause].advice
    return BEHIND_ADVICE if finding.is_followed else LAST_ADVICE


def where(place: Place) -> str:
    """In words: "the system prompt", "message 3 (user)"."""
    if place.message is not None and place.section != SectionKind.SYSTEM:
        return f"message {place.message} ({place.role})"
    named = {
        SectionKind.TOOLS: "the tools",
        SectionKind.SYSTEM: "the system prompt",
        SectionKind.MARKER: "what the chat template writes between messages",
        SectionKind.GENERATION: "what the chat template writes after the last message",
    }
    return named.get(SectionKind(place.section), "the prompt")
