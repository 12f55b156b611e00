"""Explains why a request missed that was served lately: `/v1/kv/explain`.

Where there are several tenants each asks of its own requests, and hears of nobody else's: neither that another has the
same prompt, nor whom a page went for, nor when. Reads what is remembered in the turn of who asks; quotes no prompt
unasked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Annotated, Any

from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response

from pagoda.analysis.cost import Rates
from pagoda.analysis.difference import TEMPLATE_KINDS
from pagoda.analysis.explain import Reuse, explain
from pagoda.analysis.json_edits import json_objects
from pagoda.analysis.prompt import Message, Prompt, Section, SectionKind
from pagoda.analysis.served import Served
from pagoda.cache.prefix.keys import key_tokens
from pagoda.cache.recent import Looked
from pagoda.errors import HttpError
from pagoda.server.accepted.late_calls import LateCall
from pagoda.server.accepted.service import Service
from pagoda.server.accepted.wire import json_response, tenant_of
from pagoda.server.backend.facts import Lookups
from pagoda.server.ground.tenants import Tenant
from pagoda.tokenizing import decode

LEAST_TIMED_TOKENS = 32

Price = Annotated[float | None, Query(ge=0)]


class Explain:
    """The handler, over one service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def explain(
        self,
        request: Request,
        request_id: Annotated[str, Query(min_length=1, max_length=256)],
        include_text: bool = False,
        prefill_rate: Price = None,
        price_input: Price = None,
        price_cached: Price = None,
    ) -> Response:
        """Why a request missed, by the id of its response or its own: the cause, where, what it cost, what to change.

        Times are told at the `prefill_rate` (tokens a second), else as measured; money at prices of a million tokens.
        """
        tenant = tenant_of(request)
        whose = None if tenant.is_admin else tenant.name
        lookups = await asyncio.wrap_future(self._service.backend.inspector.lookups())
        call = self._service.late_calls.find(whose, request_id)
        looked = _find(lookups, whose, request_id if call is None else call.job_id)
        rates = Rates(prefill_rate or self._measured_rate(whose), price_input, price_cached)
        explaining = partial(self._explained, lookups=lookups, tenant=tenant, rates=rates, with_context=include_text)
        return json_response(await self._service.read(explaining, looked, "request_id", tenant))

    def _explained(
        self, looked: Looked, lookups: Lookups, tenant: Tenant, rates: Rates, with_context: bool
    ) -> dict[str, Any]:
        own = [each for each in lookups.sequences if tenant.is_admin or each.namespace.tenant == tenant.name]
        shown = _ShownSequences(self._service, _decoder(self._service))
        finding, near = Served(looked, own, shown, tenant.is_admin).find(with_context)
        report = looked.report
        page_tokens = self._service.backend.pages.page_tokens or 1
        explanation = explain(finding, Reuse(report.prompt_tokens, report.num_read_tokens, page_tokens), rates)
        known = {each.request_id for each in own}
        return {
            "request_id": looked.request_id,
            **explanation.as_json(),
            "closest_request_id": None if near is None else near.request_id,
            "prefill_rate": rates.prefill,
            "page_tokens": page_tokens,
            "cache_report": asdict(report if tenant.is_admin or report.gone_for in known else report.without_departure),
        }

    def _measured_rate(self, whose: str | None) -> float | None:
        """Tokens of prompts computed in a second, before the first token came; None where too few were."""
        ended = self._service.recent.of(whose).ended
        timed = [
            (each.prompt_tokens - each.cached_tokens) / each.ttft_seconds
            for each in ended
            if each.ttft_seconds and each.prompt_tokens - each.cached_tokens >= LEAST_TIMED_TOKENS
        ]
        return median(timed) if timed else None


@dataclass(frozen=True)
class _ShownSequences:
    """Sequences as text, with the sections that their calls had."""

    service: Service
    decode: Callable[[list[int]], str]

    def prompt(self, looked: Looked, has_answer: bool) -> Prompt:
        token_ids = key_tokens(looked.key if has_answer else looked.prompt_key)
        text = self.decode(token_ids)
        sections = self._sections(looked, token_ids, text)
        return Prompt(
            token_ids=token_ids,
            text=text,
            sections=sections,
            messages=_messages(sections, text),
            tools=[
                tool
                for section in sections
                if section.kind is SectionKind.TOOLS
                for tool in json_objects(text[section.start : section.end])
            ],
        )

    def section(self, looked: Looked, token: int) -> Section:
        """Of a token that has words of the template and of a message, the message."""
        token_ids = key_tokens(looked.prompt_key)
        text = self.decode(token_ids)
        prompt = Prompt(token_ids, text, self._sections(looked, token_ids, text))
        start, end = (len(self.decode(token_ids[:stop])) for stop in (token, token + 1))
        sections = [prompt.section_at(place) for place in (start, max(end - 1, start))]
        return next((each for each in sections if each.kind not in TEMPLATE_KINDS), sections[0])

    def _sections(self, looked: Looked, token_ids: list[int], text: str) -> tuple[Section, ...]:
        """What the call has said, and the answer, if there is one, as one message more."""
        call: LateCall | None = self.service.late_calls.find(looked.namespace.tenant, looked.request_id)
        if call is None or not call.sections:
            return ()
        if len(token_ids) <= looked.num_prompt_tokens:
            return call.sections
        start = len(self.decode(token_ids[: looked.num_prompt_tokens]))
        index = 1 + max(section.message or 0 for section in call.sections)
        return (*call.sections, Section(SectionKind.MESSAGE, start, len(text), index, "assistant"))


def _messages(sections: Sequence[Section], text: str) -> list[Message]:
    """Those that were not found are empty."""
    found = {each.message: each for each in sections if each.message is not None}
    return [
        Message("", "") if each is None else Message(each.role or "", text[each.start : each.end])
        for each in map(found.get, range(max(found, default=-1) + 1))
    ]


def _decoder(service: Service) -> Callable[[list[int]], str]:
    tokenizer = service.backend.texts.tokenizer
    return (lambda _: "") if tokenizer is None else partial(decode, tokenizer)


def _find(lookups: Lookups, whose: str | None, job_id: str) -> Looked:
    """Raises HttpError 404, which says what to do."""
    if not lookups.most_nbytes:
        raise HttpError(
            404,
            "Nothing is remembered of requests; start the server with --miss-memory-bytes 16MiB.",
            param="request_id",
            code="miss_memory_off",
        )
    found = (each for each in lookups.sequences if whose in (None, each.namespace.tenant))
    looked = next((each for each in found if each.request_id == job_id), None)
    if looked is None:
        raise HttpError(
            404,
            f"No request {job_id!r} is remembered; give the id of a response (chatcmpl-..., resp_..., msg_...) or its "
            "x-request-id, ask soon after it, or start the server with more --miss-memory-bytes.",
            param="request_id",
            code="request_not_found",
        )
    return looked
