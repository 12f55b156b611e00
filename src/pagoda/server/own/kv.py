"""Shows the cache to people and programs that look after it, and pins prompts in it: `/v1/kv`.

Where there are several tenants each sees what is its own and how large the cache is. Only admins see what all do
together: it would tell one tenant of another. The backend answers between two steps. `/v1/kv/events` sends the whole
state and then what changes, for as long as somebody looks.
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator
from dataclasses import asdict
from functools import lru_cache
from hashlib import blake2b
from time import monotonic, time
from typing import Annotated, Any

from fastapi import Query
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from pagoda.cache.inspector import CacheStats
from pagoda.cache.leases import Breakpoint, LeaseInfo
from pagoda.cache.prefix.outline import Branch, Outline
from pagoda.cache.residency.residency import TierReport
from pagoda.machine import resident_memory_nbytes
from pagoda.sampling_params import SamplingParams
from pagoda.server.accepted.exchange import submit
from pagoda.server.accepted.service import Service
from pagoda.server.accepted.wire import json_response, origin_of, tenant_of
from pagoda.server.answered import sse
from pagoda.server.answered.record import Record
from pagoda.server.asked.conversation import ConversationReader
from pagoda.server.ground.messages import Call, Job, Work, new_id
from pagoda.server.ground.tenants import Tenant
from pagoda.server.own.said import SaidBody, SaidReader
from pagoda.server.watched.recent import Past
from pagoda.server.watched.spent import spent
from pagoda.tokenizing import decode

SECONDS_BETWEEN_EVENTS = 0.5
MOST_SHOWN_PAGES = 20_000
MOST_BRANCHES = 1000
SHOWN_TOKENS = 48
MOST_TEXTS = 2048


class PinBody(SaidBody):
    """Of `/v1/kv/pin`: what is to be computed, if it is not held, and kept."""

    ttl_seconds: float = Field(gt=0, le=30 * 24 * 3600)


class Kv:
    """The handlers, over one service."""

    def __init__(self, service: Service, conversations: ConversationReader) -> None:
        self._service = service
        self._said = SaidReader(service, conversations)
        self._text = lru_cache(MOST_TEXTS)(self._decoded)  # leases are told of twice a second, and seldom new

    async def status(self, request: Request) -> Response:
        """Pages by group and state, hit rates, bytes, leases, requests in flight; of a tenant its own."""
        return json_response(await self._status(tenant_of(request)))

    async def tree(self, request: Request, limit: Annotated[int, Query(ge=1, le=MOST_BRANCHES)] = 100) -> Response:
        """The prefix tree: those of `limit` branches first that saved most."""
        tenant = tenant_of(request)
        whose = _whose(tenant)
        found = await asyncio.wrap_future(self._service.backend.inspector.outline(limit, SHOWN_TOKENS, whose))
        roots = await self._service.read(self._shown_outlines, found, "limit", tenant)
        return json_response({"roots": roots, "page_tokens": self._service.backend.pages.page_tokens})

    async def pin(self, body: PinBody, request: Request) -> Response:
        """Compute a prompt and keep it for a time."""
        service = self._service
        service.check_model(body.model)
        read = await self._said.read(body, request)
        marks = (Breakpoint(len(read.prompt.token_ids), body.ttl_seconds),)
        call = Call(
            call_id=new_id("pin_"),
            origin=origin_of(request),
            works=[Work(read.prompt, SamplingParams(max_tokens=0), breakpoints=marks)],
            param="prompt",
            cache_salt=body.cache_salt or "",
        )
        answer = submit(service, call, request)
        await sse.finish(answer, request)
        record = Record.of(answer.jobs)
        lease = answer.jobs[0].lease_results[0]
        return json_response(
            {
                "granted": lease.granted,
                "tokens": record.num_prompt_tokens,
                "new_bytes": lease.new_nbytes,
                "ttl_seconds": body.ttl_seconds,
                "kv": record.kv(),
            }
        )

    async def events(self, request: Request) -> Response:
        """Server-sent events: `state` has everything, `change` what is different since, twice a second."""
        return StreamingResponse(self._events(tenant_of(request)), headers=sse.HEADERS, media_type="text/event-stream")

    async def _events(self, tenant: Tenant) -> AsyncIterator[bytes]:
        number, num_ended, num_samples, shown = 0, 0, 0, [b""]
        past, hours = self._service.recent.of(_whose(tenant)), self._service.hours.of(_whose(tenant))
        while not self._service.is_draining:
            status = await self._status(tenant)
            pages = await self._pages() if self._sees_all(tenant) else []
            kind = "change" if number and [len(each) for each in pages] == [len(each) for each in shown] else "state"
            if kind == "state":
                status["pages"] = [b64encode(states).decode() for states in pages]
            else:
                status["changed_pages"] = [_changes(*pair) for pair in zip(shown, pages, strict=True)]
            status["recent"] = past.since(num_ended, self._sees_all(tenant))
            status["hours"] = hours.since(num_samples)
            shown, num_ended, num_samples = pages, past.num_ended, hours.num_kept
            yield f"id: {number}\n".encode() + sse.named({"type": kind, "number": number, **status})
            number += 1
            await asyncio.sleep(SECONDS_BETWEEN_EVENTS)

    async def _status(self, tenant: Tenant) -> dict[str, Any]:
        service, sees_all = self._service, self._sees_all(tenant)
        facts = service.backend.pages
        stats, leases = await asyncio.wrap_future(service.backend.inspector.stats_and_leases())
        own = [each for each in leases if _whose(tenant) in (None, each.tenant)]
        return {
            "time": time(),
            "uptime_seconds": time() - service.started,
            "model": service.names[0],
            "sees_all": sees_all,
            "groups": self._groups(stats, sees_all),
            "page_stride": self._stride,
            "memory": {"pages": facts.nbytes} | ({"process": resident_memory_nbytes()} if sees_all else {}),
            "format_loss": stats.format_loss,
            "constants": facts.constants,
            "cache": _counts_of_all(stats) if sees_all else _counts_of(service.recent.of(tenant.name)),
            "miss_memory": self._miss_memory(stats, sees_all),
            "tiers": [_shown_tier(each, sees_all) for each in stats.tiers],
            "leases": [self._lease(each) for each in sorted(own, key=lambda each: each.expires_in_seconds)],
            "requests": self._jobs(tenant),
        }

    def _miss_memory(self, stats: CacheStats, sees_all: bool) -> dict[str, int]:
        """What it takes to explain misses."""
        used = {"bytes": stats.miss_memory_nbytes} if sees_all else {}
        return used | {"limit": self._service.backend.pages.miss_memory_nbytes}

    def _sees_all(self, tenant: Tenant) -> bool:
        return tenant.is_admin or not self._service.tenants.are_several

    def _groups(self, stats: CacheStats, sees_all: bool) -> list[dict[str, Any]]:
        return [
            {
                "name": kind.name,
                "format": kind.format_name,
                "page_nbytes": kind.page_nbytes,
                "page_tokens": kind.page_tokens,
                **(asdict(counts) if sees_all else {"total": counts.total}),
            }
            for kind, counts in zip(self._service.backend.pages.kinds, stats.groups, strict=True)
        ]

    def _jobs(self, tenant: Tenant) -> list[dict[str, Any]]:
        """Those in flight, the oldest first."""
        calls, now = self._service.in_flight.items(), monotonic()
        own = (answer for answer, call in calls if tenant.is_admin or call.origin.tenant is tenant)
        return [_shown_job(job, now, self._sees_all(tenant)) for answer in own for job in answer.jobs]

    async def _pages(self) -> list[bytes]:
        return await asyncio.wrap_future(self._service.backend.inspector.page_states(self._stride))

    def _shown_outlines(self, outlines: list[Outline]) -> list[dict[str, Any]]:
        return [
            {
                "tenant": each.namespace.tenant,
                "salted": bool(each.namespace.salt),
                "hidden": each.num_hidden,
                "branches": [self._shown_branch(branch) for branch in each.branches],
            }
            for each in outlines
        ]

    def _shown_branch(self, branch: Branch) -> dict[str, Any]:
        return {
            "id": blake2b(branch.first_key, digest_size=8).hexdigest(),
            "start": branch.start,
            "tokens": branch.num_tokens,
            "pages": branch.num_pages,
            "hits": branch.num_hits,
            "in_use": branch.num_in_use,
            "leased": branch.num_leased,
            "text": self._decoded(tuple(branch.first_tokens)),
            "hidden": branch.num_hidden,
            "children": [self._shown_branch(child) for child in branch.children],
        }

    def _lease(self, info: LeaseInfo) -> dict[str, Any]:
        return {
            "tenant": info.tenant,
            "text": self._text(info.first_tokens),
            "tokens": info.num_tokens,
            "bytes": info.nbytes,
            "expires_in_seconds": info.expires_in_seconds,
            "age_seconds": info.age_seconds,
            "ttl_seconds": info.ttl_seconds,
            "hits": info.num_hits,
        }

    def _decoded(self, tokens: tuple[int, ...]) -> str | None:
        """The beginning of a text, None if nobody can tell."""
        tokenizer = self._service.backend.texts.tokenizer
        return None if tokenizer is None else decode(tokenizer, list(tokens))

    @property
    def _stride(self) -> int:
        """One page in so many is shown."""
        return -(-max(self._service.backend.pages.num_pages, default=0) // MOST_SHOWN_PAGES) or 1


def _shown_job(job: Job, now: float, sees_all: bool) -> dict[str, Any]:
    return {
        "id": job.job_id,
        "state": "waiting" if job.metrics.first_scheduled is None else "running",
        "prompt_tokens": len(job.prompt),
        "cached_tokens": job.num_cached_tokens or 0,
        "output_tokens": job.num_output_tokens,
        "seconds": now - job.metrics.arrival,
        "preemptions": job.metrics.num_preemptions,
        "spent": spent(job.time, sees_all),
    }


def _whose(tenant: Tenant) -> str | None:
    """Whose leases, requests and prefixes a tenant sees: None is everybody's."""
    return None if tenant.is_admin else tenant.name


def _shown_tier(tier: TierReport, sees_all: bool) -> dict[str, Any]:
    """What a tier holds and has done; to those who do not see all, whether it is well."""
    stats = tier.stats
    if not sees_all:
        return {"name": tier.name, "fault": None if stats.fault is None else "It is off."}
    return {
        "name": tier.name,
        "fault": stats.fault,
        "records": stats.num_records,
        "bytes": stats.nbytes,
        "limit": stats.limit_nbytes,
        "shared_bytes": stats.shared_nbytes,
        "loaded_records": tier.num_loaded,
        "loaded_bytes": tier.loaded_nbytes,
        "written_bytes": stats.written_nbytes,
        "waiting_bytes": tier.staged_nbytes,
        "skipped": tier.num_skipped,
        "dropped": stats.num_dropped,
        "refused": stats.num_refused,
        "damaged": stats.num_damaged,
        "errors": stats.num_errors,
    }


def _counts_of_all(stats: CacheStats) -> dict[str, Any]:
    return {
        "hit_rate": stats.hit_rate,
        "hit_tokens": stats.hit_tokens,
        "queried_tokens": stats.queried_tokens,
        "evicted_pages": stats.evicted_pages,
        "reset_pages": stats.reset_pages,
        "expired_pages": stats.expired_pages,
        "revoked_leases": stats.revoked_leases,
        "running_tokens": stats.tokens_stored + stats.omitted_tokens,
        "omitted_tokens": stats.omitted_tokens,
        "compressed_prefix_pages": stats.compacted_pages,
        "compressed_prefix_hits": stats.compacted_hits,
        "sparse_read_pages": stats.read_pages,
        "sparse_skipped_pages": stats.skipped_pages,
    }


def _counts_of(past: Past) -> dict[str, Any]:
    return {"hit_rate": past.hit_rate, "hit_tokens": past.hit_tokens, "queried_tokens": past.queried_tokens}


def _changes(before: bytes, after: bytes) -> list[list[int]]:
    """Pages that are something else now, as (page, state)."""
    return [[page, new] for page, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
