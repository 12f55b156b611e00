"""Compiles the forms of outputs beside everything else, for each tenant one at a time.

A form that takes long to compile keeps only its own tenant waiting. It is given up when its client goes, when its
answer comes too late to be of use, and when the server shuts down.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Event

from pagoda.engine.constraint import Constraint
from pagoda.errors import HttpError, RequestCancelledError
from pagoda.sampling_params import StructuredOutputs
from pagoda.server.backend.base import Forms
from pagoda.server.ground.errors import client_gone, too_late

MOST_WAITING = 32  # of one tenant
NUM_THREADS = 8  # which wait for the children that compile


class Compiling:
    """Compiles by the forms of a backend. Used on the event loop's thread only."""

    def __init__(self, forms: Forms) -> None:
        self._forms = forms
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="pagoda-compiler")
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._waiting: Counter[str] = Counter()
        self._is_closed = Event()

    async def compile(
        self,
        form: StructuredOutputs,
        tenant: str,
        until_gone: Callable[[], Awaitable[None]],
        seconds: float | None,
    ) -> Constraint | None:
        """What enforces `form`. Raises a RequestError that says what is wrong with it, else HttpError."""
        if self._waiting[tenant] >= MOST_WAITING:
            message = f"{MOST_WAITING} forms of this key wait to be compiled; try later, or send simpler ones."
            raise HttpError(429, message, code="too_many_forms", retry_after_seconds=1)
        is_useless = Event()
        compiled = asyncio.ensure_future(self._in_turn(form, tenant, is_useless))
        gone = asyncio.ensure_future(until_gone())
        self._waiting[tenant] += 1
        try:
            await asyncio.wait((compiled, gone), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if compiled.done():
                return compiled.result()
        except RequestCancelledError:
            raise HttpError(503, "The server is shutting down; try another one.", code="shutting_down") from None
        finally:
            self._waiting[tenant] -= 1
            is_useless.set()
            compiled.cancel()
            gone.cancel()
        if gone.done():
            raise client_gone()
        raise too_late()

    def close(self) -> None:
        """Give up what is compiled, and compile no more."""
        self._is_closed.set()
        self._threads.shutdown(wait=False)

    async def _in_turn(self, form: StructuredOutputs, tenant: str, is_useless: Event) -> Constraint | None:
        def is_wanted() -> bool:
            return not (is_useless.is_set() or self._is_closed.is_set())

        async with self._turns[tenant]:
            if self._is_closed.is_set():
                raise RequestCancelledError("The server is shutting down.")
            compile = partial(self._forms.compile, form, tenant, is_wanted)
            return await asyncio.get_running_loop().run_in_executor(self._threads, compile)
