"""Defines what handlers, the service and a backend hand one another: calls, their works, jobs and news.

Data, and a job as it looks from outside. Knows no API, and not who computes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from uuid import uuid4

from pagoda.analysis.prompt import Section
from pagoda.analysis.time import RequestTime
from pagoda.cache.leases import Breakpoint, LeaseResult
from pagoda.cache.report import CacheReport
from pagoda.cache.session_parts import Written
from pagoda.engine.request import FinishReason, RequestMetrics, TokenLogprobs
from pagoda.outputs import RequestOutput, StreamChunk
from pagoda.sampling_params import SamplingParams
from pagoda.server.ground.tenants import Tenant

if TYPE_CHECKING:
    from pagoda.engine.constraint import Constraint
    from pagoda.prompts import ReadPrompt

News = StreamChunk | RequestOutput | Exception


async def _for_ever() -> None:
    await asyncio.Event().wait()


class Scope(NamedTuple):
    """Whose pages and texts these are; nothing of others is hit or recalled."""

    tenant: str
    cache_salt: str = ""


class SessionText(NamedTuple):
    """What is known of a session beside its tokens: a title, the messages that its prompt was made of, and which of the
    tokens a text was written in.
    """

    title: str
    messages: list[Any] | None
    written: Written | None = None


@dataclass(frozen=True)
class Origin:
    """Who calls, how long the answer is of use, and the headers that say to which trace it belongs.

    The request came at `arrival`, on the monotonic clock. `until_gone` returns when the client closes the connection.
    """

    tenant: Tenant
    timeout_seconds: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    arrival: float = field(default_factory=monotonic)
    until_gone: Callable[[], Awaitable[None]] = _for_ever


@dataclass(frozen=True)
class Work:
    """One prompt to continue. The answer of one with a `scope` is a turn that may come back.

    Its text has those special tokens that are `shown`. `sections` are the pieces of the prompt's text, if it has any.
    """

    prompt: ReadPrompt
    params: SamplingParams
    constraint: Constraint | None = None
    breakpoints: tuple[Breakpoint, ...] = ()
    scope: Scope | None = None
    shown: frozenset[int] = frozenset()
    sections: tuple[Section, ...] = ()


@dataclass(frozen=True)
class Call:
    """What one HTTP request asks for, and for whom. `streams` wants chunks as they come.

    `param` is the field that has the prompts.
    """

    call_id: str
    origin: Origin
    works: Sequence[Work]
    param: str
    streams: bool = False
    cache_salt: str = ""

    @property
    def num_samples(self) -> int:
        return sum(work.params.n for work in self.works)

    @property
    def scope(self) -> Scope:
        """Whose pages it may hit."""
        return Scope(self.origin.tenant.name, self.cache_salt)


class Job(Protocol):
    """One work of a call as it stands now, read only: a backend goes on with it meanwhile."""

    @property
    def job_id(self) -> str: ...

    @property
    def prompt(self) -> list[int]:
        """Token ids."""

    @property
    def text(self) -> str | None:
        """The prompt as it was given, if that was text."""

    @property
    def params(self) -> SamplingParams: ...

    @property
    def metrics(self) -> RequestMetrics: ...

    @property
    def time(self) -> RequestTime:
        """Where its time has gone so far."""

    @property
    def num_encoder_tokens(self) -> int:
        """What an encoder reads beside the prompt."""

    @property
    def num_cached_tokens(self) -> int | None:
        """Of the prompt, those that were not computed again; None before anything is computed."""

    @property
    def num_cached_encoder_tokens(self) -> int: ...

    @property
    def cache_report(self) -> CacheReport | None:
        """Why no more was cached; None before anything is computed."""

    @property
    def num_output_tokens(self) -> int:
        """Of all samples, so far."""

    @property
    def first_output_tokens(self) -> list[int]:
        """Of the first sample, so far."""

    @property
    def finish_reasons(self) -> list[FinishReason | None]:
        """Of each sample; None while it goes on."""

    @property
    def prompt_logprobs(self) -> list[TokenLogprobs] | None:
        """Of all tokens of the prompt but the first, as far as they are known; None if nobody asks for them."""

    @property
    def breakpoints(self) -> tuple[Breakpoint, ...]: ...

    @property
    def lease_results(self) -> list[LeaseResult]:
        """What has come of the breakpoints so far, in their order."""

    @property
    def error(self) -> Exception | None:
        """What has ended it, if that was an error."""


def new_id(prefix: str) -> str:
    return f"{prefix}{uuid4().hex}"
