"""The rows of a batch as sequences of the cache: what they hit, where their new tokens go, what stays of them.

A batch has columns as transformers counts them: in row r, token t is in column t + its padding, which is on the left.
Tokens of a call are committed when the next one begins: until then they may be taken back. Knows token ids and page
tables; neither layers nor tensors of keys and values.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pagoda.cache.cache import Cache
from pagoda.cache.groups.table import PageTable
from pagoda.cache.prefix.keys import TOKEN_TYPE
from pagoda.cache.prefix.namespace import Namespace
from pagoda.cache.sequence import CachedSequence
from pagoda.errors import OutOfPagesError, UnsupportedCallError
from pagoda.hf.layer_bytes import Places

NAMESPACE = Namespace()


@dataclass(frozen=True)
class Prompt:
    """The tokens of a row, which begin after `padding` columns."""

    tokens: array[int]
    padding: int


@dataclass(eq=False)
class Row:
    """A sequence. Of its `tokens` those of `sequence` are committed, and the others are in open pages."""

    sequence: CachedSequence
    tokens: array[int]
    padding: int


class Rows:
    """The sequences of the batch in flight, none between batches. `places` are those of each group in the last call."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._rows: list[Row] = []
        self.num_columns = 0
        self.places: list[Places] = []

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def paddings(self) -> tuple[int, ...]:
        return tuple(row.padding for row in self._rows)

    @property
    def num_open_tokens(self) -> int:
        """Tokens that are in no sealed page yet."""
        size = self._cache.main.page_tokens
        return sum(len(row.tokens) - row.sequence.num_tokens // size * size for row in self._rows)

    def prompts(self) -> list[Prompt]:
        return [Prompt(row.tokens, row.padding) for row in self._rows]

    def tables(self, group: int) -> list[PageTable]:
        return [row.sequence.tables[group] for row in self._rows]

    def num_known(self, prompts: Sequence[Prompt], limit: int) -> int:
        """Up to which column, at most `limit`, every row can be read from pages."""
        column = limit
        while True:
            deepest = column
            for prompt in prompts:
                tokens = max(column - prompt.padding, 0)
                found = self._cache.match(NAMESPACE, prompt.tokens, tokens).num_tokens
                if found < tokens:  # what is left of a row may be padding alone
                    deepest = min(deepest, prompt.padding + found)
            if deepest == column:
                return column
            column = deepest

    def begin(self, prompts: Sequence[Prompt], limit: int) -> int:
        """End the rows there are and begin others; up to which column, at most `limit`, they are read from pages."""
        self.end()
        while True:
            limit = self.num_known(prompts, limit)
            try:
                shortfall = self._attach(prompts, limit)
            except BaseException:
                self.end()
                raise
            if shortfall is None:
                self.num_columns = limit
                return limit
            # To make room for one row the cache has given up pages of another.
            self.end()
            limit = shortfall

    def grow(self, tokens: Sequence[Sequence[int]], num_columns: int) -> None:
        """Make room for the new tokens of a call, which end its `num_columns`; what was written before is committed."""
        self.commit()
        for row, new in zip(self._rows, tokens, strict=True):
            wanted = len(row.tokens) + len(new) - row.sequence.num_tokens
            if not self._cache.reserve(row.sequence, wanted):
                raise OutOfPagesError(
                    f"There are no pages for {wanted} more tokens beside those of the other {len(self) - 1} rows; "
                    "raise kv_cache_memory_bytes."
                )
        for row, new in zip(self._rows, tokens, strict=True):
            row.tokens.extend(new)
        self.num_columns += num_columns
        counts = [len(new) for new in tokens]
        self.places = [self._places(group, counts, num_columns) for group in range(len(self._cache.groups))]

    def commit(self) -> None:
        """What is written stays: full pages can be hit from now on."""
        for row in self._rows:
            self._cache.commit(row.sequence, row.tokens, len(row.tokens))

    def crop(self, num_tokens: int) -> bool:
        """Take back the last tokens; whether the rows now are others, which begin with those before them."""
        if all(len(row.tokens) - num_tokens >= row.sequence.num_tokens for row in self._rows):
            for row in self._rows:
                del row.tokens[len(row.tokens) - num_tokens :]
            self.num_columns -= num_tokens
            return False
        self.commit()
        prompts, columns = self.prompts(), self.num_columns - num_tokens
        shorter = [Prompt(each.tokens[: max(columns - each.padding, 0)], each.padding) for each in prompts]
        if any(not each.tokens for each in shorter) or self.begin(shorter, columns) < columns:
            self.end()
            raise UnsupportedCallError(
                f"crop takes back {num_tokens} tokens, and pages of those before them are gone (windows have moved "
                "on, or a row begins later); give the tokens anew."
            )
        return True

    def pick(self, indices: Sequence[int]) -> None:
        """The rows with these numbers in place of those there are: some twice, others not at all."""
        self.commit()
        before = self._rows
        self._rows = [
            Row(self._cache.fork(before[i].sequence), array(TOKEN_TYPE, before[i].tokens), before[i].padding)
            for i in indices
        ]
        for row in before:
            self._cache.release(row.sequence, row.tokens)

    def end(self) -> None:
        """What was committed can be hit by others; the rest is forgotten."""
        while self._rows:
            row = self._rows.pop()
            self._cache.release(row.sequence, row.tokens)
        self.num_columns = 0

    def _attach(self, prompts: Sequence[Prompt], columns: int) -> int | None:
        """Rows that begin with `columns` read from pages; if one cannot any more, how many it can."""
        for prompt in prompts:
            tokens = max(columns - prompt.padding, 0)
            hit = self._cache.match(NAMESPACE, prompt.tokens, tokens)
            if hit.num_tokens < tokens:
                return prompt.padding + hit.num_tokens
            sequence = self._cache.attach(hit, len(prompt.tokens))
            self._rows.append(Row(sequence, prompt.tokens[:tokens], prompt.padding))
        return None

    def _places(self, group: int, counts: Sequence[int], width: int) -> Places:
        size = self._cache.groups[group].page_tokens
        rows, columns, pages, offsets = [], [], [], []
        for number, (row, count) in enumerate(zip(self._rows, counts, strict=True)):
            tokens = torch.arange(len(row.tokens) - count, len(row.tokens))
            table = torch.tensor(row.sequence.tables[group].pages, dtype=torch.int64)
            rows.append(torch.full((count,), number))
            columns.append(torch.arange(width - count, width))
            pages.append(table[tokens // size])
            offsets.append(tokens % size)
        return Places(torch.cat(rows), torch.cat(columns), torch.cat(pages), torch.cat(offsets))
