"""Stands between HTTP handlers and a backend: accepts calls or says why not, and knows those in flight.

Handlers run on an event loop, a backend on its own thread; nothing here waits for it but through an `Answer`. Text
becomes tokens on further threads, since a long prompt takes longer than a step.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from time import monotonic, time
from typing import TypeVar

from pagoda.engine.constraint import Constraint
from pagoda.errors import HttpError, PagodaError
from pagoda.sampling_params import SamplingParams, StructuredOutputs
from pagoda.server.accepted.compiling import Compiling
from pagoda.server.accepted.contents import Contents
from pagoda.server.accepted.late_calls import LateCalls
from pagoda.server.accepted.quotas import Quotas, check_limit
from pagoda.server.answered.answer import Answer, Outbox
from pagoda.server.asked.conversation import ReadConversation
from pagoda.server.asked.reader import Reader
from pagoda.server.asked.transcripts import Transcripts
from pagoda.server.backend.base import Backend
from pagoda.server.ground.errors import CLIENT_GONE, failed, refused, too_late
from pagoda.server.ground.messages import Call, Job, Origin, Scope, Work
from pagoda.server.ground.options import ServerOptions
from pagoda.server.ground.tenants import Tenant, Tenants
from pagoda.server.watched.hours import Hours
from pagoda.server.watched.metrics import Metrics
from pagoda.server.watched.recent import Recent

logger = logging.getLogger(__name__)

Given = TypeVar("Given")
Result = TypeVar("Result")

READER_THREADS = 4  # of several tenants: what some of them send does not hold up the others


class Service:
    """Serves many clients with one backend."""

    def __init__(self, backend: Backend, options: ServerOptions, tenants: Tenants, model_name: str) -> None:
        self.backend = backend
        self.options = options
        self.names = options.served_model_name or (model_name,)
        self.tenants = tenants
        self._quotas = Quotas(options.max_queued_requests, tenants)
        self.metrics = Metrics(self.names[0], backend.pages, options.metrics_compat)
        self.started = time()
        self.is_draining = False
        self.on_end: Callable[[Job, Mapping[str, str]], None] = lambda *_: None
        self.log_request: Callable[[Job, Scope], None] = lambda *_: None
        self._answers: dict[Answer, Call] = {}
        self._deadlines: dict[Answer, asyncio.TimerHandle] = {}
        self.recent = Recent()
        self.hours = Hours()
        self.contents = Contents()
        self.late_calls = LateCalls(backend.pages.miss_memory_nbytes)
        self._sampling: asyncio.Task[None] | None = None
        tokenizer = backend.texts.tokenizer
        self.transcripts = None if tokenizer is None else Transcripts(tokenizer, backend.model.eos_token_ids)
        self._compiling = Compiling(backend.forms)
        # Beside each other tokenizers of two languages would change each other's.
        is_shared = tenants.are_several and not backend.model.has_encoder
        self.reader = Reader(READER_THREADS if is_shared else 1)
        self._outbox: Outbox | None = None
        self._stop_observing: Callable[[], None] = lambda: None

    def start(self) -> None:
        """On the event loop that handlers run on."""
        self._outbox = Outbox(asyncio.get_running_loop(), self.options.stream_interval_seconds)
        self._stop_observing = self.backend.observe(self._outbox.flush)
        self._sampling = asyncio.create_task(self.hours.run(self._jobs_in_flight))

    def stop(self) -> None:
        self._stop_observing()
        if self._sampling is not None:
            self._sampling.cancel()
        for name in self.reader.close():
            logger.warning("What tenant %r sent is still being read; the server ends without it.", name)
        self._compiling.close()

    @property
    def in_flight(self) -> dict[Answer, Call]:
        return self._answers

    @property
    def num_waiting(self) -> int:
        """Jobs that have not been scheduled yet."""
        return self._waiting_by_tenant().total()

    async def read(self, function: Callable[[Given], Result], given: Given, param: str, tenant: Tenant) -> Result:
        """Run what reads prompts, beside the event loop and in the turn of `tenant`.

        Raises HttpError for what it refuses in the field `param`.
        """
        try:
            return await self.reader.run(tenant.name, partial(function, given))
        except PagodaError as error:
            raise refused(error, param) from error

    async def work(self, read: ReadConversation, params: SamplingParams, form_param: str, origin: Origin) -> Work:
        """A conversation to go on with, in the form that `params` wants, else in its own.

        Raises HttpError if that cannot be had, which the field `form_param` asks for, else the tools.
        """
        form, param = params.structured_outputs or read.form, form_param if params.structured_outputs else "tools"
        constraint = await self.constraint(form, param, origin) if form else None
        least = self.options.min_cacheable_tokens
        breakpoints = tuple(each for each in read.breakpoints if each.num_tokens >= least)
        return Work(read.prompt, params, constraint, breakpoints, read.scope, read.style.shown_tokens, read.sections)

    async def constraint(self, form: StructuredOutputs, param: str, origin: Origin) -> Constraint | None:
        """What holds an output to `form`; one that is known already waits for no other."""
        tenant = origin.tenant
        known = await self.read(partial(self.backend.forms.find, tenant=tenant.name), form, param, tenant)
        if known is not None:
            return known
        try:
            return await self._compiling.compile(form, tenant.name, origin.until_gone, self.seconds_left(origin))
        except PagodaError as error:
            raise refused(error, param) from error

    def check_model(self, name: str) -> None:
        """Raises HttpError 404 for a model that is not served."""
        if name not in self.names:
            raise HttpError(
                404,
                f"The model {name!r} is not served; there is {self.names[0]!r}.",
                param="model",
                code="model_not_found",
            )

    def check_room(self, tenant: Tenant, param: str, num_prompts: int = 1, num_samples: int = 1) -> None:
        """Raise HttpError if so much more is not accepted of a tenant: before work is spent on reading it, if need be.

        The field `param` has the prompts.
        """
        if self.is_draining:
            raise HttpError(
                503, "The server is shutting down; try another one.", code="shutting_down", retry_after_seconds=1
            )
        retry_after = self._retry_after()
        mine = [other for other in self._answers.values() if other.origin.tenant is tenant]
        check_limit(tenant, num_samples, sum(other.num_samples for other in mine), param, retry_after)
        self._quotas.check_queue(tenant, num_prompts, self._waiting_by_tenant(), param, retry_after)

    def count_error(self, tenant: str | None, status: int) -> None:
        """A request was refused or failed; None if nobody knows whose it was."""
        self.metrics.count_error(status)
        if status != CLIENT_GONE:
            self.hours.add_error(tenant)

    def submit(self, call: Call) -> Answer:
        """Hand a call to the backend. Raises HttpError, before anything has happened, if it is not accepted."""
        assert self._outbox is not None, "start() was not called"
        self.check_room(call.origin.tenant, call.param, len(call.works), call.num_samples)
        seconds = self.seconds_left(call.origin)
        try:
            prepared = self.backend.prepare(call)
            answer = Answer(prepared.jobs, cancel=prepared.cancel, on_end=self._ended)
            prepared.start(partial(self._outbox.put, answer))
        except PagodaError as error:
            raise refused(error, call.param) from error
        self._answers[answer] = call
        self._set_deadline(answer, seconds)
        return answer

    def drain(self) -> None:
        """Accept no more; what is in flight goes on."""
        self.is_draining = True
        self._compiling.close()

    def cut(self) -> None:
        """End what is still in flight."""
        if self._answers:
            logger.warning("%d requests did not end in time and are cut.", len(self._answers))
        self.reader.close()
        for answer in list(self._answers):
            answer.fail(HttpError(503, "The server is shutting down and the time to finish has passed.", code="cut"))

    def _jobs_in_flight(self) -> Iterator[tuple[str, Job]]:
        """With their tenants."""
        for answer, call in self._answers.items():
            for job in answer.jobs:
                yield call.origin.tenant.name, job

    def _waiting_by_tenant(self) -> Counter[str]:
        return Counter(tenant for tenant, job in self._jobs_in_flight() if job.metrics.first_scheduled is None)

    def _retry_after(self) -> int:
        """Seconds after which about half of what is in flight has ended."""
        return max(1, math.ceil(self.recent.mean_seconds / 2))

    def seconds_left(self, origin: Origin) -> float | None:
        """Until the answer is of no use any more, None if it always is. Raises HttpError 504."""
        limits = (origin.timeout_seconds, self.options.request_timeout_seconds)
        limit = min((each for each in limits if each is not None), default=None)
        if limit is None:
            return None
        left = origin.arrival + limit - monotonic()
        if left <= 0:
            raise too_late()
        return left

    def _set_deadline(self, answer: Answer, seconds: float | None) -> None:
        if seconds is not None:
            self._deadlines[answer] = asyncio.get_running_loop().call_later(seconds, answer.fail, too_late())

    def _ended(self, answer: Answer) -> None:
        deadline = self._deadlines.pop(answer, None)
        if deadline is not None:
            deadline.cancel()  # it would keep the answer until then
        call = self._answers.pop(answer, None)
        if call is not None:
            self.metrics.count(answer)
            self._remember(call, answer)
            self.recent.add(call.origin.tenant.name, answer.jobs)
            self.hours.add(call.origin.tenant.name, answer.jobs)
            if call.streams and answer.error is not None:  # others' statuses say it
                self.count_error(call.origin.tenant.name, failed(answer.error).status)
            for job in answer.jobs:
                self.on_end(job, call.origin.headers)
                self.log_request(job, call.scope)

    def _remember(self, call: Call, answer: Answer) -> None:
        for work, output in zip(call.works, answer.outputs, strict=True):
            if self.transcripts is not None and work.scope is not None and output is not None:
                for sample in output.outputs:
                    self.transcripts.remember(work.scope, work.prompt, sample)
