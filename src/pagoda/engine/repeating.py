"""What asks a model to repeat a text, and what it attends to in the text while it does.

Knows the rows of one step. Does not know what is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pagoda.cache.compression.kvzip import NUM_SINKS
from pagoda.cache.compression.progress import Compression
from pagoda.cache.compression.repeat import WORDLESS, Repeat, RepeatPrompt
from pagoda.cache.sequence import CachedSequence
from pagoda.engine.compressible import CompressibleLayer
from pagoda.errors import RequestError
from pagoda.kernels.compaction import LastQueries
from pagoda.tokenizing import encode

# The words of KVzip's authors.
WHOLE = "\n\nRepeat the previous context exactly."
PART = "\n\nRepeat the part of the previous context exactly, starting with "


def read_repeat_prompt(tokenizer: Any, vocab_size: int) -> RepeatPrompt:
    """Those words as token ids; none without a tokenizer, or with one that is not the model's."""
    if tokenizer is None:
        return WORDLESS
    try:
        whole, part = (tuple(encode(tokenizer, text, add_special_tokens=False).input_ids) for text in (WHOLE, PART))
    except RequestError:
        return WORDLESS
    return RepeatPrompt(whole, part) if max((*whole, *part), default=0) < vocab_size else WORDLESS


@dataclass(frozen=True)
class RepeatedRows:
    """Rows of a step that repeat a chunk, or ask for it: the last that `repeat` has by its token `stop`.

    Their pages are those of `cached`.
    """

    compression: Compression
    repeat: Repeat
    cached: CachedSequence
    rows: slice
    stop: int

    def saw(self, call: int, layer: CompressibleLayer, last: LastQueries) -> None:
        """Note the largest weight that each token of the chunk has had."""
        repeat, size = self.repeat, layer.pages.geometry.page_tokens
        pages = torch.tensor(self.cached.tables[layer.slot.group].pages, dtype=torch.long)
        met = self._met(size)
        num_slots = len(met) * size - (-self.stop % size)
        peaks = layer.seen(pages[met], num_slots, self.stop, [last]).peak.amax(dim=1)
        found = self.compression.observed.get(call)
        if found is None:
            found = self.compression.observed[call] = peaks.new_zeros(len(peaks), repeat.num_tokens)
        first = met.index(repeat.first // size) * size + repeat.first % size
        chunk = found[:, repeat.first : repeat.stop]
        torch.maximum(chunk, peaks[:, first : first + chunk.shape[1]], out=chunk)

    def _met(self, size: int) -> list[int]:
        """The pages that weights are relative to: of the first tokens, of the chunk, and of its repetition."""
        repeat = self.repeat
        parts = ((0, NUM_SINKS), (repeat.first, repeat.stop), (repeat.num_tokens, self.stop))
        return sorted({page for first, stop in parts for page in range(first // size, -(-stop // size))})
