"""What one step computes, as data: the scheduler makes it, everybody reads it and nobody changes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pagoda.cache.sequence import CachedSequence
from pagoda.engine.request import Phase
from pagoda.engine.request import Sequence as Sample


class Chunk(NamedTuple):
    """`tokens` of a sequence, the first of which is its token number `start`.

    Logits are wanted of the rows `scored`, which tell how likely a prompt was, and then of `drawn`, after which tokens
    are drawn. Both count from the first row of the chunk. One that `repeats` is of what a sequence repeats.
    """

    sequence: Sample
    start: int
    tokens: Sequence[int]
    scored: range
    drawn: range
    repeats: bool = False

    @property
    def cached(self) -> CachedSequence:
        """The page tables that lead to its tokens."""
        cached = self.sequence.growing
        assert cached is not None
        return cached

    @property
    def stop(self) -> int:
        """How many tokens of the sequence, or of what it repeats, are computed after the step."""
        return self.start + len(self.tokens)


@dataclass(frozen=True)
class Batch:
    """The chunks of a step, at most one of each sequence."""

    chunks: tuple[Chunk, ...]

    def __bool__(self) -> bool:
        return bool(self.chunks)

    def __len__(self) -> int:
        return len(self.chunks)

    @property
    def sequences(self) -> list[Sample]:
        return [chunk.sequence for chunk in self.chunks]

    def unfinished(self) -> Batch:
        """What is left of it where requests have ended since."""
        left = tuple([chunk for chunk in self.chunks if chunk.sequence.phase is not Phase.FINISHED])
        return self if len(left) == len(self.chunks) else Batch(left)


def next_chunk(sequence: Sample, num_tokens: int) -> Chunk:
    """The next so many tokens of a sequence, whose pages are reserved."""
    assert sequence.cached is not None
    if (repeat := sequence.repeat) is not None:
        start = repeat.num_computed
        return Chunk(sequence, start, repeat.tokens[start : start + num_tokens], range(0), range(0), repeats=True)
    start = sequence.cached.num_tokens
    tokens = sequence.tokens[start : start + num_tokens]
    is_complete = start + num_tokens == len(sequence.tokens)
    drawn = range(num_tokens - 1, num_tokens) if is_complete else range(0)
    return Chunk(sequence, start, tokens, _rows_to_score(sequence, start, num_tokens), drawn)


def _rows_to_score(sequence: Sample, start: int, num_tokens: int) -> range:
    """A prompt is scored from its first token to its last; rows that are computed again are not scored again."""
    if not sequence.num_unscored:
        return range(0)
    known = len(sequence.request.prompt_logprobs)
    assert start <= known, "a hit goes no further than what is scored"
    return range(known - start, max(min(num_tokens, known + sequence.num_unscored - start), known - start))
