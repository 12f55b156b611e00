"""Why a request missed that an engine has served: by its report, and by the closest sequence that came before it.

Where pages went, the report knows best. Where a prompt is another one, the two are compared. Of several causes that is
told which costs more tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol

from pagoda.analysis.explain import HARMLESS, Finding, find
from pagoda.analysis.likeness import Likeness
from pagoda.analysis.prompt import Prompt, Section
from pagoda.cache.prefix.namespace import Namespace
from pagoda.cache.recent import Looked, closest, most_alike
from pagoda.cache.report import MissCause

# What a comparison of prompts can say more of.
COMPARED = (MissCause.INPUT_CHANGED, MissCause.NEVER_SEEN, MissCause.UNKNOWN, MissCause.CONTINUED)
# Then nothing is read, whatever the prompt says.
UNREADABLE = (MissCause.DISABLED, MissCause.PROMPT_LOGPROBS)
# So many tokens more must be shared with another namespace than with the own one.
LEAST_SHARED_TOKENS = 16
# A prompt of fewer may begin another one by chance.
LEAST_WHOLE_TOKENS = 4


class Shown(Protocol):
    """Makes of sequences what people can read."""

    def prompt(self, looked: Looked, has_answer: bool) -> Prompt:
        """The prompt alone, or with its answer as the last message."""

    def section(self, looked: Looked, token: int) -> Section:
        """What the token of that index is a part of."""


class Near(NamedTuple):
    """An earlier sequence that a request begins like, to so many tokens, or was made of."""

    looked: Looked
    num_shared: int
    agrees: bool  # what follows, too


@dataclass(frozen=True)
class Served:
    """A request, and all that are `known`. `sees_all` is for those who may know of other namespaces."""

    looked: Looked
    known: Sequence[Looked]
    shown: Shown
    sees_all: bool = False

    def find(self, with_context: bool = False) -> tuple[Finding, Looked | None]:
        """The cause, and the sequence that tells it."""
        near = self._nearest(self._earlier(own=True))
        lost = self._lost(near)
        if self.looked.report.cause in UNREADABLE:
            return lost, None if near is None else near.looked
        if self.sees_all and (other := self._nearest(self._earlier(own=False))) is not None:
            separated = self._separated(other)
            least = (0 if near is None else near.num_shared) + LEAST_SHARED_TOKENS
            if separated.missed_tokens > lost.missed_tokens and other.num_shared >= least:
                return separated, other.looked
        return (lost, None) if near is None else (self._dearer(lost, near, with_context), near.looked)

    def _lost(self, near: Near | None) -> Finding:
        """As the report has it: what was shared and could not be read."""
        report = self.looked.report
        token = report.first_missed_token
        return Finding(
            cause=str(report.cause),
            missed_tokens=max(self._num_unread(near), report.missed_tokens),
            first_missed=token,
            section=None if token is None else self.shown.section(self.looked, token),
            earlier_tokens=None if near is None else near.looked.num_prompt_tokens,
        )

    def _separated(self, other: Near) -> Finding:
        """As it is where a sequence of another namespace has more of the prompt than those of its own."""
        return replace(
            self._lost(other),
            cause=_separation(self.looked.namespace, other.looked.namespace),
            missed_tokens=self._num_unread(other),
        )

    def _num_unread(self, near: Near | None) -> int:
        limit = self.looked.num_prompt_tokens - 1
        return 0 if near is None else max(min(near.num_shared, limit) - self.looked.report.num_read_tokens, 0)

    def _dearer(self, lost: Finding, near: Near, with_context: bool) -> Finding:
        """What costs more tokens: those that were shared and not read, or those beyond the place where both part."""
        report, earlier = self.looked.report, self.shown.prompt(near.looked, True)
        compared = find(earlier, self._prompt, report.num_read_tokens, with_context)
        is_harmless = compared.cause in HARMLESS
        num_edited = max(compared.missed_tokens - self._num_unread(near), 0) if near.agrees else 0
        if not is_harmless and (not lost.missed_tokens or num_edited > lost.missed_tokens):
            return replace(compared, missed_tokens=lost.missed_tokens + num_edited)
        if report.cause not in COMPARED:
            return lost
        if is_harmless and not lost.missed_tokens:
            return replace(lost, cause=compared.cause)
        return replace(lost, cause=self._unread(near))

    def _unread(self, near: Near) -> str:
        """Why what `near` has as well was not read, where the report speaks of what follows."""
        if near.looked.ran_at(self.looked.begin):
            return "concurrent_write_pending"
        if self.looked.report.gone_at is not None:
            return str(self.looked.report.cause)
        is_held = self.looked.report.known_tokens >= min(near.num_shared, self.looked.num_prompt_tokens - 1)
        return str(MissCause.CHECKPOINT_MISSING if is_held else MissCause.UNKNOWN)

    def _nearest(self, earlier: Sequence[Looked]) -> Near | None:
        """The one that begins most like the request; if all begin otherwise, the one that is most like it."""
        key = self.looked.prompt_key
        first, num_shared = closest(key, earlier)
        if first is not None:
            likeness, is_whole = self._likeness(first), num_shared >= max(first.num_prompt_tokens, LEAST_WHOLE_TOKENS)
            if is_whole or likeness.begins_alike:
                return Near(first, num_shared, is_whole or likeness.agrees)
        best, num_shared = most_alike(key, earlier)
        return Near(best, num_shared, True) if best is not None and self._likeness(best).is_edit else None

    def _likeness(self, other: Looked) -> Likeness:
        return Likeness(self.shown.prompt(other, False), self._prompt)

    @cached_property
    def _prompt(self) -> Prompt:
        return self.shown.prompt(self.looked, False)

    def _earlier(self, own: bool) -> list[Looked]:
        """Those before it of its own namespace, or of others, as they were when it was looked up."""
        looked = self.looked
        before = (each for each in self.known if each.begin < looked.begin)
        return [
            replace(each, key=each.prompt_key) if each.ran_at(looked.begin) else each
            for each in before
            if (each.namespace == looked.namespace) is own
        ]


def _separation(namespace: Namespace, other: Namespace) -> str:
    """What keeps two namespaces apart."""
    if namespace.tenant != other.tenant:
        return "other_tenant"
    return "salt_changed" if namespace.salt != other.salt else "media_changed"
