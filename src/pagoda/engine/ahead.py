"""Decode steps that are queued before the host knows what the step before drew, so that a device need not wait for it.

The tokens go from step to step on the device. What is queued ahead decides nothing: the scheduler plans as ever, and of
its batch those rows are taken that are under way already; others are computed as ever. Rows of a sequence that has
ended or was sent back meanwhile are thrown away: what they wrote lies behind the tokens of its pages, where nobody
reads, and whoever gets such a page next has it written after them. Knows neither why sequences end nor what kernels do.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from pagoda.cache.cache import Cache
from pagoda.cache.prefix.keys import TOKEN_TYPE
from pagoda.cache.sequence import CachedSequence
from pagoda.engine.batch import Batch, Chunk
from pagoda.engine.exchange import sent
from pagoda.engine.forward import Forward, Queued
from pagoda.engine.request import Phase, Sequence

logger = logging.getLogger(__name__)

# Stands for a token that the host does not know yet.
UNKNOWN = array(TOKEN_TYPE, [0])


@dataclass(frozen=True)
class _Row:
    """What was queued of one sequence: its token after the first `start`, which goes into the last of its `pages`."""

    start: int
    cached: CachedSequence
    pages: tuple[int, ...]  # by layer group

    def is_of(self, chunk: Chunk) -> bool:
        """Whether `chunk` asks for just this."""
        return (
            chunk.start == self.start
            and len(chunk.tokens) == len(chunk.drawn) == 1
            and not chunk.scored
            and not chunk.repeats
            and chunk.sequence.cached is self.cached
            and _last_pages(self.cached) == self.pages
        )


class Ahead:
    """Queues steps of `forward` over `cache`. Of those that `ends_soon` tells of, no further token is computed.

    Since the start `num_rows` have been queued, in `num_steps`, of which `num_taken` were used.
    """

    def __init__(self, cache: Cache, forward: Forward, ends_soon: Callable[[Sequence], bool]) -> None:
        self._cache = cache
        self._forward = forward
        self._ends_soon = ends_soon
        self._queued: Queued | None = None
        self._rows: dict[Sequence, _Row] = {}
        self._told: set[type[Exception]] = set()
        self.num_steps = 0
        self.num_rows = 0
        self.num_taken = 0

    def take(self, batch: Batch) -> tuple[Queued | None, Batch]:
        """What is under way of a batch, and the rest of it."""
        queued, rows = self._queued, self._rows
        self._queued, self._rows = None, {}
        self._give_back(rows, batch)
        if queued is None:
            return None, batch
        taken, rest = list[Chunk](), list[Chunk]()
        for chunk in batch.chunks:
            row = rows.get(chunk.sequence)
            (taken if row is not None and row.is_of(chunk) else rest).append(chunk)
        if not taken:
            return None, batch
        self.num_taken += len(taken)
        return replace(queued, batch=Batch(tuple(taken))), Batch(tuple(rest))

    def queue(self, parts: list[Queued], num_computing: int) -> None:
        """Queue the step after one, all `parts` of which are queued, if it can be known: of all that go on.

        If not all `num_computing` sequences are in it, others may have their turn then. What raises here is no harm.
        """
        if not self._forward.answers_later:
            return
        try:
            chunks = self._going_on(parts, num_computing)
            if chunks and self._forward.is_ready_for(len(chunks)):
                self._queue(parts, chunks)
        except Exception as error:
            self._tell(error)

    def _going_on(self, parts: list[Queued], num_computing: int) -> list[Chunk]:
        """The chunks of those that are in the next step, if that is known; else none."""
        chunks = [chunk for part in parts for chunk in part.batch.chunks]
        if len(chunks) != num_computing or not _are_plain(parts, chunks):
            return []
        return [each for each in chunks if not self._ends_soon(each.sequence)]

    def _queue(self, parts: list[Queued], chunks: list[Chunk]) -> None:
        cached = [chunk.cached for chunk in chunks]
        if not self._cache.reserve_ahead(cached, [len(chunk.tokens) for chunk in chunks]):
            return
        batch = Batch(tuple([Chunk(each.sequence, each.stop, UNKNOWN, range(0), range(1)) for each in chunks]))
        self._rows = {
            chunk.sequence: _Row(chunk.start, each, _last_pages(each))
            for chunk, each in zip(batch.chunks, cached, strict=True)
        }
        self._queued = self._forward.queue_ahead(batch, _tokens(parts, batch.sequences))
        self.num_steps += 1
        self.num_rows += len(batch)

    def _tell(self, error: Exception) -> None:
        """Of each kind once: what keeps a step from being queued mostly keeps the next one, too."""
        level = logging.DEBUG if type(error) in self._told else logging.ERROR
        self._told.add(type(error))
        logger.log(level, "A step could not be queued ahead; it is computed when its turn comes", exc_info=error)

    def _give_back(self, rows: dict[Sequence, _Row], batch: Batch) -> None:
        """Free what was reserved for sequences that run and are not in the next step after all."""
        planned = set(batch.sequences)
        for sequence, row in rows.items():
            if sequence not in planned and sequence.phase is Phase.RUNNING and sequence.cached is row.cached:
                self._cache.give_back(row.cached)


def _are_plain(parts: list[Queued], chunks: list[Chunk]) -> bool:
    """Whether the device draws a token after each of the `chunks` of `parts`, and that is all that comes of them."""
    drawing = {each for part in parts for each in part.drawing}
    return all(chunk.sequence in drawing and _is_plain(chunk) for chunk in chunks)


def _is_plain(chunk: Chunk) -> bool:
    """Whether nobody looks at logits or queries of a sequence, and the next step has one token of it."""
    sequence, request = chunk.sequence, chunk.sequence.request
    return (
        len(chunk.drawn) == 1
        and not chunk.scored
        and request.params.logprobs is None
        and (sequence.compression is None or sequence.compression.is_over)
    )


def _tokens(parts: list[Queued], sequences: list[Sequence]) -> torch.Tensor:
    """What `parts` draw for these: int64 [sequences], on the device."""
    drawing = [each for part in parts for each in part.drawing]
    tokens = parts[0].tokens if len(parts) == 1 else torch.cat([part.tokens for part in parts])
    if drawing == sequences:
        return tokens
    places = {sequence: place for place, sequence in enumerate(drawing)}
    return tokens[sent(torch.tensor([places[each] for each in sequences]), tokens.device)]


def _last_pages(cached: CachedSequence) -> tuple[int, ...]:
    return tuple([table.pages[-1] for table in cached.tables])
