"""A context is repeated before it is compressed: what a model reads for that, chunk by chunk.

Knows token ids, and how far it is. Does not know who runs the model, in which pages, or what is made of its queries.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

# So many tokens before a chunk say where it begins; the authors' number.
CUE_TOKENS = 8


@dataclass(frozen=True)
class RepeatPrompt:
    """What asks a model to repeat all of a text, or what follows the tokens that come behind. It may be nothing."""

    whole: tuple[int, ...] = ()
    part: tuple[int, ...] = ()


WORDLESS = RepeatPrompt()


@dataclass(frozen=True)
class Repeats:
    """How contexts are repeated: at most `chunk_tokens` at a time, behind `prompt`. Pages have `page_tokens`."""

    chunk_tokens: int
    page_tokens: int
    prompt: RepeatPrompt = WORDLESS

    def asked(self, context: Sequence[int], first: int) -> Sequence[int]:
        """What comes before the chunk of `context` that begins with its token `first`."""
        return [*self.prompt.part, *context[max(first - CUE_TOKENS, 0) : first]] if first else self.prompt.whole

    def num_asked(self, first: int) -> int:
        return len(self.prompt.part) + min(first, CUE_TOKENS) if first else len(self.prompt.whole)

    def most_slots(self, num_tokens: int) -> int:
        """How many tokens there has to be room for while a context of `num_tokens` is repeated.

        Its last page is copied unless it is full.
        """
        longest = self.num_asked(0) + min(self.chunk_tokens, num_tokens)
        if num_tokens > self.chunk_tokens:
            rest = num_tokens - self.chunk_tokens
            longest = max(longest, self.num_asked(self.chunk_tokens) + min(self.chunk_tokens, rest))
        return num_tokens + longest + self.page_tokens

    def most_chunk_tokens(self, num_tokens: int, num_slots: int) -> int:
        """The largest chunks that such a context can be repeated in with `num_slots`; less than 1 if in none."""
        asked = max(self.num_asked(0), len(self.prompt.part) + CUE_TOKENS)
        return num_slots - num_tokens - asked - self.page_tokens


@dataclass(eq=False)
class Repeat:
    """Where a sequence stands that repeats its first `num_tokens`: the chunk from its token `first` on comes now.

    For that `num_computed` are computed of `tokens`, which are the context, what is asked, and the chunk. They go on
    from all but the last token of the context: so that is computed each time, and the sequence itself goes on with it
    once all is repeated, as if it had not been.
    """

    plan: Repeats
    num_tokens: int
    first: int = 0
    num_computed: int = 0
    tokens: Sequence[int] = ()

    @property
    def start(self) -> int:
        """How many tokens of the context a sequence has that begins to repeat it."""
        return self.num_tokens - 1

    @property
    def stop(self) -> int:
        """Where the chunk ends."""
        return min(self.first + self.plan.chunk_tokens, self.num_tokens)

    @property
    def is_done(self) -> bool:
        return self.first >= self.num_tokens

    @property
    def num_left_of_chunk(self) -> int:
        """Tokens that are still to be computed for this chunk."""
        whole = self.num_tokens + self.plan.num_asked(self.first) + self.stop - self.first
        return whole - max(self.num_computed, self.start)

    @property
    def num_left(self) -> int:
        """The same for all chunks."""
        later = self.num_tokens - self.stop
        num_chunks = -(-later // self.plan.chunk_tokens)
        return self.num_left_of_chunk + later + num_chunks * (1 + self.plan.num_asked(self.stop))

    @property
    def most_slots(self) -> int:
        return self.plan.most_slots(self.num_tokens)

    def begin(self, tokens: array[int]) -> None:
        """Repeat the next chunk of the context, with which `tokens` begin."""
        context = tokens[: self.num_tokens]
        asked = array(tokens.typecode, self.plan.asked(context, self.first))
        self.tokens, self.num_computed = context + asked + context[self.first : self.stop], self.start

    def end(self) -> None:
        """The chunk is repeated."""
        self.first, self.num_computed, self.tokens = self.stop, 0, ()
