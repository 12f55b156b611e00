"""Remembers of late calls by which ids clients know them, and where the sections of their prompts are. No text."""

from __future__ import annotations

from dataclasses import dataclass

from pagoda.analysis.prompt import Section
from pagoda.server.answered.latest import Latest
from pagoda.server.ground.messages import Call

MOST_REMEMBERED = 4096
CALL_NBYTES, SECTION_NBYTES = 512, 128  # with what Python needs for them


@dataclass(frozen=True)
class LateCall:
    """The id of a call, which its answer has as well, and the sections of its first prompt."""

    call_id: str
    sections: tuple[Section, ...]

    @property
    def job_id(self) -> str:
        """What the backend calls its first job."""
        return f"{self.call_id}-0"


class LateCalls:
    """By tenant, under the ids of calls, of their jobs and of the HTTP requests that brought them.

    Those of one tenant take at most `most_nbytes`.
    """

    def __init__(self, most_nbytes: int) -> None:
        self._calls = Latest[LateCall](3 * MOST_REMEMBERED, most_nbytes)

    def add(self, call: Call, request_id: str) -> None:
        late = LateCall(call.call_id, call.works[0].sections)
        nbytes = CALL_NBYTES + SECTION_NBYTES * len(late.sections)
        for name in (call.call_id, late.job_id, request_id):
            self._calls.put(call.origin.tenant.name, name, late, nbytes)

    def find(self, tenant: str | None, name: str) -> LateCall | None:
        """A call of `tenant`, or of anybody (None)."""
        return self._calls.find_any(name) if tenant is None else self._calls.find(tenant, name)
