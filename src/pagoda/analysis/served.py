"""Why a request missed that an engine has served: by its report, and by the closest sequence that came before it.

Where pages went, the report knows best. Where a prompt is another one, the two are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from pagoda.analysis.explain import HARMLESS, Finding, find
from pagoda.analysis.prompt import Prompt, Section
from pagoda.cache.prefix.namespace import Namespace
from pagoda.cache.recent import Looked, closest
from pagoda.cache.report import MissCause

# What a comparison of prompts can say more of.
COMPARED = (MissCause.INPUT_CHANGED, MissCause.NEVER_SEEN, MissCause.UNKNOWN, MissCause.CONTINUED)
# Fewer that are shared, as templates begin all prompts alike, tell nothing of another namespace.
LEAST_SHARED_TOKENS = 16


class Shown(Protocol):
    """Makes of sequences what people can read."""

    def prompt(self, looked: Looked, has_answer: bool) -> Prompt:
        """The prompt alone, or with its answer as the last message."""

    def section(self, looked: Looked, token: int) -> Section:
        """What the token of that index is a part of."""


@dataclass(frozen=True)
class Served:
    """A request, and all that are `known`. `sees_all` is for those who may know of other namespaces."""

    looked: Looked
    known: Sequence[Looked]
    shown: Shown
    sees_all: bool = False

    def find(self, with_context: bool = False) -> tuple[Finding, Looked | None]:
        """The cause, and the sequence that tells it."""
        looked, report = self.looked, self.looked.report
        near, num_shared = closest(looked.prompt_key, self._earlier(own=True))
        missed = max(min(num_shared, looked.num_prompt_tokens - 1) - report.num_read_tokens, report.missed_tokens, 0)
        finding = self._finding(missed, near)
        if report.cause not in COMPARED:
            return finding, near
        if self.sees_all:
            other, num_tokens = closest(looked.prompt_key, self._earlier(own=False))
            if other is not None and num_tokens >= num_shared + LEAST_SHARED_TOKENS:
                return replace(finding, cause=_separation(looked.namespace, other.namespace)), other
        return (finding, None) if near is None else (self._compared(finding, near, with_context), near)

    def _finding(self, missed_tokens: int, near: Looked | None) -> Finding:
        """As the report has it."""
        report = self.looked.report
        token = report.first_missed_token
        return Finding(
            cause=str(report.cause),
            missed_tokens=missed_tokens,
            first_missed=token,
            section=None if token is None else self.shown.section(self.looked, token),
            earlier_tokens=None if near is None else near.num_prompt_tokens,
        )

    def _compared(self, finding: Finding, near: Looked, with_context: bool) -> Finding:
        """What the two prompts tell. If they part nowhere, the rest is new, or was there and could not be read."""
        earlier, later = self.shown.prompt(near, True), self.shown.prompt(self.looked, False)
        compared = find(earlier, later, self.looked.report.num_read_tokens, with_context)
        if compared.cause not in HARMLESS:
            return compared
        if not finding.missed_tokens:
            return replace(finding, cause=compared.cause)
        return replace(finding, cause="concurrent_write_pending" if near.ran_at(self.looked.begin) else "unknown")

    def _earlier(self, own: bool) -> list[Looked]:
        """Those before it of its own namespace, or of others."""
        before = (each for each in self.known if each.begin < self.looked.begin)
        return [each for each in before if (each.namespace == self.looked.namespace) is own]


def _separation(namespace: Namespace, other: Namespace) -> str:
    """What keeps two namespaces apart."""
    if namespace.tenant != other.tenant:
        return "other_tenant"
    return "salt_changed" if namespace.salt != other.salt else "media_changed"
