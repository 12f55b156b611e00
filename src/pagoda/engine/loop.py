"""Runs an engine in a thread of its own, so that callers wait for tokens and never for each other.

Callers hand in work through a queue; between two steps the loop takes it up. Every submitted request ends with
exactly one final event, whatever happens: cancel, error, close. Nothing that is raised ends the thread, not even what
is no Exception, as libraries in Rust raise it when they panic. A process that was forked has the loop's data and not
its thread, so there it takes no work.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any

import torch

from pagoda.engine.ends import TokenEvent
from pagoda.engine.engine import Engine
from pagoda.engine.request import Request
from pagoda.errors import EngineClosedError, RequestError
from pagoda.machine import keep_freed_memory

logger = logging.getLogger(__name__)

CLOSED_MESSAGE = "The engine is closed; make a new LLM."
FORKED_MESSAGE = (
    "The engine runs in the process that this one was forked from, and threads do not come along; start processes by "
    "'spawn', and make the LLM there."
)

# Receives each event of a request, and whether it is the last one.
Listener = Callable[[TokenEvent, bool], None]


class EngineLoop:
    """The thread that steps the engine while there is work."""

    def __init__(self, engine: Engine, num_threads: int | None) -> None:
        self._engine = engine
        self._num_threads = num_threads
        self._inbox: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._listeners: dict[str, Listener] = {}
        self._observers: list[Callable[[], None]] = []
        self._is_closed = False
        self._process_id = os.getpid()
        self._closing = threading.Lock()  # held while work is handed in, so that none comes after the last
        self._thread = threading.Thread(target=self._run, name="pagoda-engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def is_forked(self) -> bool:
        return os.getpid() != self._process_id

    def submit(self, requests: Sequence[Request], listeners: Sequence[Listener]) -> None:
        """Queue requests that `Engine.validate` accepts, all before the same step; does not wait.

        A listener is called on the loop's thread for each event of its request. Raises EngineClosedError.
        """
        added = self.call(lambda: self._add(requests, listeners))
        if added.done():  # a closed loop says so at once
            added.result()

    def cancel(self, request_id: str) -> None:
        """End a request soon. Its listener gets the last event."""
        self.call(lambda: self._deliver(self._engine.cancel(request_id)))

    def observe(self, observer: Callable[[], None]) -> Callable[[], None]:
        """Call `observer` on the loop's thread whenever the listeners have got the events of a step, or of a cancel.

        What is returned ends that.
        """
        self._observers = [*self._observers, observer]
        return lambda: self._stop_observing(observer)

    def call(self, function: Callable[[], Any]) -> Future[Any]:
        """Run `function` on the loop's thread between two steps, unless the future is cancelled before that."""
        future: Future[Any] = Future()

        def run() -> None:
            # Whoever asked may have gone, as clients of a server do: a result of a cancelled future would end the loop.
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        if self.is_forked:  # before the lock, which a thread of the other process may have held
            future.set_exception(EngineClosedError(FORKED_MESSAGE))
            return future
        with self._closing:
            if self._is_closed:
                future.set_exception(EngineClosedError(CLOSED_MESSAGE))
            else:
                self._inbox.put(run)
        return future

    def close(self) -> None:
        """Cancel what is running and end the thread."""
        if self.is_forked:
            return
        with self._closing:
            self._is_closed = True
            self._inbox.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _stop_observing(self, observer: Callable[[], None]) -> None:
        self._observers = [each for each in self._observers if each is not observer]

    def _add(self, requests: Sequence[Request], listeners: Sequence[Listener]) -> None:
        for request, listener in zip(requests, listeners, strict=True):
            self._listeners[request.request_id] = listener
            try:
                self._engine.add(request)
            except BaseException as error:
                failure = error if isinstance(error, RequestError) else RequestError(f"It cannot start: {error!r}")
                self._deliver(self._engine.refuse(request, failure))

    def _run(self) -> None:
        keep_freed_memory()
        if self._num_threads is not None:
            torch.set_num_threads(self._num_threads)
        try:
            while self._take_work():
                if self._engine.has_work:
                    self._deliver(self._step())
        finally:  # whatever ended it, nobody is left waiting
            with self._closing:
                self._is_closed = True
            for request_id in list(self._listeners):
                self._deliver(self._engine.cancel(request_id))
            while not self._inbox.empty():
                if (work := self._inbox.get()) is not None:
                    work()
            self._engine.close()

    def _step(self) -> list[TokenEvent]:
        """One step; a bug of ours must not leave callers waiting for ever."""
        try:
            return self._engine.step()
        except BaseException as error:
            logger.exception("The engine failed; every request in it is ended")
            return self._engine.fail_all(RequestError(f"The engine failed: {error!r}"))

    def _take_work(self) -> bool:
        """Run what callers handed in; waits if there is nothing else to do. False once the loop is closed."""
        block = not self._engine.has_work
        while True:
            try:
                work = self._inbox.get(block=block)
            except Empty:
                return True
            if work is None:
                return False
            work()
            block = False

    def _deliver(self, events: list[TokenEvent]) -> None:
        outstanding = Counter(event.sequence.request.request_id for event in events)
        for event in events:
            request = event.sequence.request
            outstanding[request.request_id] -= 1
            is_last = request.is_finished and not outstanding[request.request_id]
            listener = self._listeners.get(request.request_id)
            if is_last:
                self._listeners.pop(request.request_id, None)
            if listener is not None:
                self._tell(listener, event, is_last)
        for observer in self._observers:
            try:
                observer()
            except BaseException:
                logger.exception("An observer of the engine failed")

    def _tell(self, listener: Listener, event: TokenEvent, is_last: bool) -> None:
        """If a listener fails its request ends, which it is told as the last."""
        request = event.sequence.request
        try:
            listener(event, is_last)
        except BaseException as error:
            logger.exception("The listener of request %s failed", request.request_id)
            self._listeners.pop(request.request_id, None)
            request.error = request.error or RequestError(f"What came of this request could not be told: {error!r}")
            self._engine.cancel(request.request_id)
            self._tell_end(listener, event)

    def _tell_end(self, listener: Listener, event: TokenEvent) -> None:
        try:
            listener(event, True)
        except BaseException:
            logger.exception("The listener of request %s failed again", event.sequence.request.request_id)
