"""Takes down the queries of running sequences that policies ask for, or has them observed block by block.

Knows the rows of one step. Does not know what is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Sequenced
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from pagoda.cache.compression.base import Observer
from pagoda.cache.compression.progress import Compression
from pagoda.devices import made_on
from pagoda.engine.compressible import CompressibleLayer
from pagoda.engine.request import Sequence
from pagoda.kernels.base import AttentionRule
from pagoda.kernels.compaction import LastQueries


class Rows(Protocol):
    """Some of the rows of a step."""

    @property
    def rows(self) -> slice: ...

    def saw(self, call: int, layer: CompressibleLayer, last: LastQueries) -> None:
        """Attention call number `call`, which reads `layer`, has their queries `last`."""


@dataclass(frozen=True)
class WatchedRows:
    """Rows whose queries are taken down for `sequence`, up to its token number `stop`."""

    sequence: Sequence
    rows: slice
    stop: int

    def saw(self, call: int, layer: CompressibleLayer, last: LastQueries) -> None:
        compression = self.sequence.compression
        assert compression is not None
        before, queries = compression.calls.get(call), last.queries.clone()
        if before is not None:
            queries = torch.cat((before.queries, queries))
        observer = compression.policy.observer
        if observer is None:  # it may not be known yet when it is compressed
            queries = queries[-compression.policy.num_queries :]
        compression.calls[call] = replace(last, queries=queries)
        if observer is not None:
            self._observe(call, layer, compression, observer)

    def _observe(self, call: int, layer: CompressibleLayer, compression: Compression, observer: Observer) -> None:
        """Have all blocks observed that end by now; the rest is left for later."""
        assert self.sequence.cached is not None
        last, stop = compression.calls[call], self.stop
        table = self.sequence.cached.tables[layer.slot.group]
        pages, size = torch.tensor(table.pages, dtype=torch.long), layer.pages.geometry.page_tokens
        first = stop - len(last.queries)
        while first < stop and (end := compression.block_end(first)) <= stop:
            block = replace(last, queries=last.queries[: end - first])
            num_slots = table.num_slots + end - table.num_tokens
            view = layer.seen(pages[: -(-num_slots // size)], num_slots, end, [block])
            compression.observed[call] = observer.observe(view, compression.observed.get(call))
            last, first = replace(last, queries=last.queries[end - first :]), end
        compression.calls[call] = replace(last, queries=last.queries.clone())


class QueryWatch:
    """Sees the queries of one step, call by call; `layers` are those that calls read."""

    def __init__(self, rows: Sequenced[Rows], layers: Mapping[int, CompressibleLayer]) -> None:
        self._rows = rows
        self._layers = layers

    def saw(self, call: int, rule: AttentionRule, query: torch.Tensor, sinks: torch.Tensor | None) -> None:
        """`query` [rows, heads, width] are those of the step."""
        if call in self._layers:
            with made_on(query.device):
                for each in self._rows:
                    each.saw(call, self._layers[call], LastQueries(rule, query[each.rows], sinks))
