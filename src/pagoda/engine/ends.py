"""The requests that have not ended, and what their callers are still to hear of them.

Every request hears its end exactly once, whatever happens to it and wherever that is raised. Knows the scheduler, which
has to let go of whoever ends; neither model nor cache.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any, NamedTuple, TypeVar

from pagoda.engine.request import FinishReason, Phase, Request, Sequence
from pagoda.engine.scheduler import Scheduler
from pagoda.errors import RequestError

logger = logging.getLogger(__name__)

Returned = TypeVar("Returned")


class TokenEvent(NamedTuple):
    """What a step did to a sequence: a new token, or its end without one."""

    sequence: Sequence
    token_id: int | None


class Ends:
    """`requests` by their ids. Events wait until somebody takes them."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.requests: dict[str, Request] = {}
        self._scheduler = scheduler
        self._events: list[TokenEvent] = []

    def take_events(self) -> list[TokenEvent]:
        """What has happened since this was asked last."""
        events, self._events = self._events, []
        return events

    def tell(self, sequence: Sequence, token: int | None) -> None:
        """A token was added to `sequence`, or it ended without one."""
        self._events.append(TokenEvent(sequence, token))

    def contain(self, sequence: Sequence, action: Callable[..., Returned], *arguments: Any) -> Returned | None:
        """What `action` returns for a sequence, None if it raises: that ends its request alone.

        Libraries in Rust that panic raise what is no Exception.
        """
        try:
            return action(sequence, *arguments)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if not isinstance(error, RequestError):
                logger.exception("Request %s failed", sequence.request.request_id)
                error = RequestError(f"This request failed: {error!r}")
            self.fail([sequence], error)
            return None

    def finish(
        self, sequence: Sequence, reason: FinishReason, keep_pages: bool = True, now: float | None = None
    ) -> None:
        """End one sequence, with its last token if that came `now`; whoever ends it tells of it."""
        sequence.finish_reason = reason
        self._scheduler.remove(sequence, keep_pages)
        if sequence.request.is_finished:
            _note_end(sequence.request, monotonic() if now is None else now)
            self.requests.pop(sequence.request.request_id, None)

    def end(self, request: Request, reason: FinishReason, keep_pages: bool = True) -> None:
        """Finish what is unfinished of a request."""
        for sequence in [each for each in request.sequences if each.phase is not Phase.FINISHED]:
            try:
                self.finish(sequence, reason, keep_pages)
            except Exception:
                logger.exception("A sequence of request %s could not be ended; trying again", request.request_id)
                self.finish(sequence, reason, keep_pages=False)
            self.tell(sequence, None)

    def fail(self, sequences: Iterable[Sequence], error: Exception, keep_pages: bool = False) -> None:
        """End the requests of `sequences` with `error`, and forget their pages if what is in them is in doubt."""
        for request in {sequence.request: None for sequence in sequences}:
            request.error = error
            self.end(request, FinishReason.ERROR, keep_pages)


def _note_end(request: Request, now: float) -> None:
    metrics = request.metrics
    metrics.ended = now
    if metrics.first_scheduled is None:
        metrics.phases.queue = now - metrics.arrival
