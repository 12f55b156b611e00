"""Computes prompts for nobody yet, so that whoever begins with them finds their pages: one at a time, piece by piece.

What is held, or lies in a tier, is not computed again. Knows no files and not why; runs on a thread of whoever asks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event, Lock

from pagoda.errors import RequestCancelledError
from pagoda.prompts import ReadPrompt
from pagoda.sampling_params import SamplingParams
from pagoda.server.backend.base import Backend, PreparedCall
from pagoda.server.ground.messages import Call, Job, News, Origin, Scope, Work, new_id
from pagoda.server.ground.tenants import Tenant

NOTHING = SamplingParams(max_tokens=0)  # more than the prompt


@dataclass(frozen=True)
class Warmed:
    """A prompt whose pages are held now, and how many of its tokens had to be computed for that."""

    num_tokens: int
    num_computed: int


class Warmer:
    """Over `backend`. `between` is called before each piece of `piece_tokens`, and may wait."""

    def __init__(self, backend: Backend, piece_tokens: int, between: Callable[[], None] = lambda: None) -> None:
        self._backend = backend
        self._piece_tokens = piece_tokens
        self._between = between
        self._stopping = Event()
        self._lock = Lock()
        self._running: PreparedCall | None = None

    def warm(self, token_ids: Sequence[int], scope: Scope) -> Warmed:
        """Compute what is missing, for requests of `scope`. Raises a RequestError for what cannot be served."""
        num_computed, start = 0, 0
        for end in [*range(self._piece_tokens, len(token_ids), self._piece_tokens), len(token_ids)]:
            self._between()
            num_missing = end - max(self._computed(list(token_ids[:end]), scope).num_cached_tokens or 0, start)
            # The last token of a prompt is computed whatever is held.
            num_computed += num_missing if num_missing > 1 else 0
            start = end
        return Warmed(len(token_ids), num_computed)

    def stop(self) -> None:
        """End what runs, and begin nothing more. May be called from any thread."""
        with self._lock:
            self._stopping.set()
            if self._running is not None:
                self._running.cancel()

    def _computed(self, token_ids: list[int], scope: Scope) -> Job:
        work = Work(ReadPrompt(None, token_ids), NOTHING)
        origin = Origin(Tenant(scope.tenant))
        prepared = self._backend.prepare(Call(new_id("warm_"), origin, [work], "prompt", cache_salt=scope.cache_salt))
        ended: SimpleQueue[News] = SimpleQueue()
        with self._lock:
            if self._stopping.is_set():
                raise RequestCancelledError("No more is computed in advance.")
            prepared.start(lambda _, news: ended.put(news))
            self._running = prepared
        news = ended.get()
        with self._lock:
            self._running = None
        if isinstance(news, Exception):
            raise news
        return prepared.jobs[0]
