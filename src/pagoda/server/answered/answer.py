"""Collects the news of one call on the event loop, and carries them there from the backend's thread.

All news of a step cross over in one call, so the backend is disturbed once per step and not once per token, and less
often where steps are short. News that nobody has taken yet are merged: a slow reader costs no more memory than its
text. They are given out in portions, between which others have their turn, since writing log-probabilities takes a
while.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from time import monotonic

from pagoda.outputs import RequestOutput, StreamChunk
from pagoda.server.ground.errors import client_gone, failed
from pagoda.server.ground.messages import Job, News

MOST_TOKENS_AT_ONCE = 256
QUIET_SECONDS = 2.0  # after which whoever reads an answer is told that there is nothing new


class Answer:
    """Gives the news of several jobs. Used on the event loop's thread only.

    Iterating gives lists of (job, chunk), in the order of the call's prompts, and an empty one where nothing comes
    for a while. `outputs` are complete at the end.
    """

    def __init__(self, jobs: Sequence[Job], cancel: Callable[[], None], on_end: Callable[[Answer], None]) -> None:
        self.jobs = jobs
        self.outputs: list[RequestOutput | None] = [None] * len(jobs)
        self.error: Exception | None = None
        self._cancel = cancel
        self._on_end = on_end
        self._pending: dict[tuple[int, int], list[StreamChunk]] = {}
        self._news = asyncio.Event()

    @property
    def has_ended(self) -> bool:
        return self.error is not None or None not in self.outputs

    def put(self, index: int, news: News) -> None:
        """News of the job `index`."""
        if self.has_ended:
            return
        if isinstance(news, StreamChunk):
            _append(self._pending.setdefault((index, news.index), []), news)
            self.outputs[index] = news.output
        elif isinstance(news, RequestOutput):
            self.outputs[index] = news
        else:
            self.error = news
            self._cancel()
        self._news.set()
        if self.has_ended:
            self._on_end(self)

    def fail(self, error: Exception) -> None:
        """End everything with `error`, unless it has ended."""
        self.put(0, error)

    def cancel(self) -> None:
        """Nobody wants the rest."""
        if not self.has_ended:
            self.fail(client_gone())

    async def __aiter__(self) -> AsyncIterator[list[tuple[int, StreamChunk]]]:
        """Raises HttpError if a job fails; what came before is given first."""
        events = asyncio.get_running_loop()
        while True:
            timer = events.call_later(QUIET_SECONDS, self._news.set)
            await self._news.wait()
            timer.cancel()
            self._news.clear()
            pending, self._pending = self._pending, {}
            if not pending:
                yield []
            for portion in _portions(pending):
                yield portion
                await asyncio.sleep(0)
            if self._pending:  # they came while the last ones were sent
                continue
            if self.error is not None:
                raise failed(self.error)
            if self.has_ended:
                return

    async def wait(self) -> list[RequestOutput]:
        """All outputs. Raises HttpError if a job fails."""
        while not self.has_ended:
            await self._news.wait()
            self._news.clear()
        if self.error is not None:
            raise failed(self.error)
        return [output for output in self.outputs if output is not None]


class Outbox:
    """Carries news from the backend's thread to an event loop, once per step and not more often than every
    `interval_seconds`.

    What begins or ends a sample does not wait, and takes all else along; every sample ends, so nothing stays behind.
    Used on the backend's thread.
    """

    def __init__(self, events: asyncio.AbstractEventLoop, interval_seconds: float) -> None:
        self._events = events
        self._interval_seconds = interval_seconds
        self._items: list[tuple[Answer, int, News]] = []
        self._is_urgent = False
        self._next_flush = 0.0

    def put(self, answer: Answer, index: int, news: News) -> None:
        self._items.append((answer, index, news))
        if not isinstance(news, StreamChunk) or news.is_first or news.finish_reason is not None:
            self._is_urgent = True

    def flush(self) -> None:
        """After each step."""
        now = monotonic()
        if not self._items or (now < self._next_flush and not self._is_urgent) or self._events.is_closed():
            return
        items, self._items = self._items, []
        self._is_urgent = False
        self._next_flush = now + self._interval_seconds
        self._events.call_soon_threadsafe(_hand_out, items)


def _hand_out(items: list[tuple[Answer, int, News]]) -> None:
    for answer, index, news in items:
        answer.put(index, news)


def _append(chunks: list[StreamChunk], news: StreamChunk) -> None:
    if chunks and len(chunks[-1].token_ids) < MOST_TOKENS_AT_ONCE:
        news = _merged(chunks.pop(), news)
    chunks.append(news)


def _portions(pending: dict[tuple[int, int], list[StreamChunk]]) -> Iterator[list[tuple[int, StreamChunk]]]:
    """All chunks in order, about so many tokens at a time."""
    portion, num_tokens = list[tuple[int, StreamChunk]](), 0
    for index, chunk in ((index, chunk) for (index, _), chunks in sorted(pending.items()) for chunk in chunks):
        portion.append((index, chunk))
        num_tokens += len(chunk.token_ids)
        if num_tokens >= MOST_TOKENS_AT_ONCE:
            yield portion
            portion, num_tokens = [], 0
    if portion:
        yield portion


def _merged(first: StreamChunk, second: StreamChunk) -> StreamChunk:
    logprobs = (first.logprobs or []) + (second.logprobs or []) or None
    return replace(
        second, text=first.text + second.text, token_ids=first.token_ids + second.token_ids, logprobs=logprobs
    )
