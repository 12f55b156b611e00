"""Compresses running sequences: takes down the queries that policies ask for, and has pages kept in part.

Knows which layers can be compressed, when a sequence is due, and what a policy decides of each. The exact pages that a
sequence had stay with whoever else uses them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Sequenced
from dataclasses import dataclass
from math import lcm

import numpy as np
import torch
from numpy.typing import NDArray

from pagoda.cache.cache import Cache
from pagoda.cache.compression.progress import Compression
from pagoda.engine.batch import Batch
from pagoda.engine.request import Sequence
from pagoda.errors import ConfigError
from pagoda.kernels.base import AttentionKernels, AttentionRule, AttentionUse, LayerPages, compaction_obstacle
from pagoda.kernels.compaction import LastQueries, StoredLayer, StoredTokens
from pagoda.kernels.turning import turn_keys
from pagoda.layouts.spec import Reach, SiteSlot
from pagoda.models.attention import BoundSite
from pagoda.models.rotations import FoundRotation

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Layer:
    """A layer whose tokens may lie anywhere, and the attention calls that read it."""

    pages: LayerPages
    kernels: AttentionKernels
    calls: tuple[int, ...]


@dataclass(frozen=True)
class _Rows:
    """Rows of a step whose queries are taken down for `sequence`."""

    sequence: Sequence
    rows: slice


class QueryWatch:
    """Sees the queries of one step, call by call."""

    def __init__(self, rows: Sequenced[_Rows], calls: frozenset[int]) -> None:
        self._rows = rows
        self._calls = calls

    def saw(self, call: int, rule: AttentionRule, query: torch.Tensor, sinks: torch.Tensor | None) -> None:
        """`query` [rows, heads, width] are those of the step."""
        if call not in self._calls:
            return
        for each in self._rows:
            compression = each.sequence.compression
            assert compression is not None
            before = compression.calls.get(call)
            new = query[each.rows].clone()
            queries = new if before is None else torch.cat((before.queries, new))
            compression.calls[call] = LastQueries(rule, queries, sinks)


class Compressor:
    """Compresses sequences of one model, whose attention calls are `sites`, in `cache`.

    `find_rotations` is asked at most once, for how layers turn keys.
    """

    def __init__(
        self,
        sites: Sequenced[BoundSite],
        uses: Sequenced[AttentionUse],
        cache: Cache,
        find_rotations: Callable[[], Mapping[SiteSlot, FoundRotation]],
    ) -> None:
        self._cache = cache
        self._layers, self._obstacles = _layers(sites, uses)
        self._calls = frozenset(call for layers in self._layers.values() for each in layers for call in each.calls)
        self._geometries = {index: layers[0].pages.geometry for index, layers in self._layers.items()}
        self._find_rotations = find_rotations
        self._rotations: Mapping[SiteSlot, FoundRotation] | None = None

    @property
    def page_tokens(self) -> int:
        """Of all groups that can be compressed: after multiples of it no page of them is open."""
        return lcm(*(each.page_tokens for each in self._geometries.values()))

    def check_any(self) -> None:
        """Raise ConfigError if nothing of this model can be compressed."""
        if not self._layers:
            reason = "; ".join(self._obstacles) or "it has no attention over all tokens"
            raise ConfigError(f"kv_compression can keep nothing of this model in part: {reason}. Leave it out.")

    def tell_obstacles(self) -> None:
        for reason in self._obstacles:
            logger.warning("kv_compression leaves layers as they are: %s", reason)

    def find_rotations(self) -> None:
        """Look at how layers turn keys, which may run the model: sequences will leave out pages.

        Raises ConfigError if that is unknown.
        """
        if self._rotations is None:
            self._rotations = self._find_rotations()
        turned = {SiteSlot(index, each.pages.layer) for index, layers in self._layers.items() for each in layers}
        unknown = [site for site in turned if site not in self._rotations or not self._rotations[site].is_explained]
        if unknown:
            raise ConfigError(
                f"It is not known how {len(unknown)} of {len(turned)} layers put positions into keys, so first tokens "
                "cannot follow right before the last ones: choose another kv_compression, and context_full=stop."
            )

    def watch(self, batch: Batch) -> QueryWatch | None:
        """What is to see the queries of a step; None if none are asked for."""
        rows, first = [], 0
        for chunk in batch.chunks:
            compression, count = chunk.sequence.compression, len(chunk.tokens)
            if compression is not None and compression.due is not None:
                start = max(compression.due - compression.policy.num_queries, chunk.start)
                stop = min(compression.due, chunk.stop)
                if start < stop:
                    rows.append(_Rows(chunk.sequence, slice(first + start - chunk.start, first + stop - chunk.start)))
            first += count
        return QueryWatch(rows, self._calls) if rows else None

    @torch.inference_mode()
    def compress(self, sequence: Sequence) -> None:
        """Compress a sequence that is due. Raises OutOfPagesError if there is no room: it must start again then."""
        compression = sequence.compression
        assert compression is not None
        num_sinks = compression.policy.num_sinks
        if num_sinks is None:
            self._keep_best(sequence, compression)
        else:
            self._keep_ends(sequence, compression, num_sinks)
        compression.advance()

    def _keep_best(self, sequence: Sequence, compression: Compression) -> None:
        """Have it keep what the policy says of each layer and head."""
        cached = sequence.cached
        assert cached is not None
        kept: dict[int, tuple[int, NDArray[np.uint8]]] = {}
        for index, layers in self._layers.items():
            table = cached.tables[index]
            if table.num_slots > compression.budget:
                pages = torch.tensor(table.pages, dtype=torch.long)
                kept[index] = compression.budget, self._kept(index, layers, pages, table.num_slots, compression)
        if kept:
            self._cache.compact(cached, sequence.tokens, kept)

    def _keep_ends(self, sequence: Sequence, compression: Compression, num_sinks: int) -> None:
        """Have it keep its first and last pages, the first with keys as if they stood right before the last."""
        cached = sequence.cached
        assert cached is not None
        distance = cached.num_tokens - compression.budget
        is_first = compression.num_exact_tokens is None
        kept = {}
        for index, geometry in self._geometries.items():
            pages, pool = torch.tensor(cached.tables[index].pages), self._layers[index][0].pages.pages
            num_first = -(-num_sinks // geometry.page_tokens)
            num_last = compression.budget // geometry.page_tokens - num_first
            if is_first:
                compression.sinks[index] = pool[pages[:num_first]]
            sinks = self._turned(index, compression.sinks[index], distance)
            if is_first:
                kept[index] = compression.budget, torch.cat((sinks, pool[pages[-num_last:]])).numpy()
            else:
                kept[index] = num_last, sinks.numpy()
        if is_first:  # pages that others may hit would keep all those before them from being evicted
            self._cache.compact(cached, sequence.tokens, kept)
        else:
            self._cache.drop_middle(cached, kept)

    def _turned(self, index: int, sinks: torch.Tensor, distance: int) -> torch.Tensor:
        """The bytes of first pages whose keys stand `distance` positions later."""
        assert self._rotations is not None, "looked at before"
        target = sinks.clone()
        if len(target):
            for layer in self._layers[index]:
                rotation = self._rotations[SiteSlot(index, layer.pages.layer)].rotation
                turn_keys(layer.pages, rotation, distance, target)
        return target

    def _kept(
        self, index: int, layers: Sequenced[_Layer], pages: torch.Tensor, num_slots: int, compression: Compression
    ) -> NDArray[np.uint8]:
        count, size = compression.budget, layers[0].pages.geometry.page_tokens
        target = torch.zeros(-(-count // size), self._geometries[index].page_nbytes, dtype=torch.uint8)
        for layer in layers:
            calls = [compression.calls[call] for call in layer.calls if call in compression.calls]
            tokens = StoredTokens(layer.kernels, layer.pages, pages, num_slots)
            kept = compression.policy.kept(StoredLayer(tokens, calls), count)
            layer.kernels.move_tokens(layer.pages, pages, kept, target)
        return target.numpy()


def _layers(sites: Sequenced[BoundSite], uses: Sequenced[AttentionUse]) -> tuple[dict[int, list[_Layer]], list[str]]:
    """The layers of every group that can be compressed, and why others cannot."""
    layers, obstacles = dict[int, list[_Layer]](), list[str]()
    for group in sorted({site.group for site in sites}):
        calls = [call for call, site in enumerate(sites) if site.group == group]
        found = [compaction_obstacle(sites[call].layer, uses[call]) for call in calls]
        if sites[calls[0]].rule.reach is not Reach.FULL:
            obstacles.append(f"layers of reach {sites[calls[0]].rule.reach.value} keep what their window needs")
        elif not sites[calls[0]].layer.pages.is_cpu:
            obstacles.append("pages lie on a GPU, where tokens are not moved yet")
        elif any(found):
            obstacles.append(next(filter(None, found)))
        else:
            by_layer: dict[int, list[int]] = {}
            for call in calls:
                by_layer.setdefault(sites[call].layer.layer, []).append(call)
            layers[group] = [
                _Layer(sites[each[0]].layer, sites[each[0]].kernels, tuple(each)) for each in by_layer.values()
            ]
    return layers, obstacles
