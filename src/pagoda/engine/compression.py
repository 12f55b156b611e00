"""Compresses running sequences: has the queries seen that policies ask for, and pages kept in part.

Knows when a sequence is due, and what a policy decides of each layer. The exact pages that a sequence had stay with
whoever else uses them.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Collection, Mapping
from collections.abc import Sequence as Sequenced
from dataclasses import replace
from math import lcm

import numpy as np
import torch
from numpy.typing import NDArray

from pagoda.cache.cache import Cache
from pagoda.cache.compression.base import Policy
from pagoda.cache.compression.progress import Compression
from pagoda.cache.compression.shares import Share
from pagoda.cache.sequence import CachedSequence, Kept
from pagoda.devices import made_on
from pagoda.engine.batch import Batch, Chunk
from pagoda.engine.compressible import CompressibleLayer, compressible_layers
from pagoda.engine.query_watch import QueryWatch, Rows, WatchedRows
from pagoda.engine.repeating import RepeatedRows
from pagoda.engine.request import Sequence
from pagoda.errors import ConfigError
from pagoda.kernels.base import AttentionUse
from pagoda.kernels.compaction import StoredLayer
from pagoda.kernels.turning import turn_keys
from pagoda.layouts.spec import SiteSlot
from pagoda.models.attention import BoundSite
from pagoda.models.rotations import FoundRotation

logger = logging.getLogger(__name__)


class Compressor:
    """Compresses sequences of one model, whose attention calls are `sites`, in `cache`.

    Results of calls are multiplied by `projections`, as far as these are known. `find_rotations` is asked at most once,
    for how layers turn keys.
    """

    def __init__(
        self,
        sites: Sequenced[BoundSite],
        uses: Sequenced[AttentionUse],
        projections: Sequenced[Callable[[], torch.Tensor] | None],
        cache: Cache,
        find_rotations: Callable[[], Mapping[SiteSlot, FoundRotation]],
    ) -> None:
        self._cache = cache
        self._layers, self._obstacles = compressible_layers(sites, uses, projections)
        self._geometries = {index: layers[0].pages.geometry for index, layers in self._layers.items()}
        self._device = sites[0].layer.pages.device if sites else torch.device("cpu")
        self._find_rotations = find_rotations
        self._knows_rotations = False

    @property
    def groups(self) -> Collection[int]:
        """Layer groups that can be compressed."""
        return self._layers.keys()

    @property
    def page_tokens(self) -> int:
        """Of all groups that can be compressed: after multiples of it no page of them is open."""
        return lcm(*(each.page_tokens for each in self._geometries.values()))

    def can_share(self, num_tokens: int) -> bool:
        """Whether others can go on from what the first `num_tokens` of a sequence were compressed to.

        Layers that are left as they are have to resume there, and what a window needs is shared in whole pages.
        """
        beside = [group for index, group in enumerate(self._cache.groups) if index not in self._layers]
        return all(num_tokens % group.page_tokens == 0 for group in beside if group.prefixes is not None)

    def check(self, policy: Policy) -> None:
        """Raise ConfigError if nothing of this model can be compressed, or not by `policy`."""
        if not self._layers:
            reason = "; ".join(self._obstacles) or "it has no attention over all tokens"
            raise ConfigError(f"kv_compression can keep nothing of this model in part: {reason}. Leave it out.")
        if policy.needs_outputs and not all(each.is_projected for each in self._all_layers()):
            raise ConfigError(
                "critical needs the layer that attention's results go through, which is not known of all calls of this "
                "model. Leave it out."
            )
        if not policy.is_even and any(each.layer_nbytes is None for each in self._geometries.values()):
            raise ConfigError(
                f"{policy.name} would give layers or heads other numbers of tokens, which needs layers whose keys and "
                "values are kept alike: choose one that gives all the same, such as snapkv without head_floor."
            )

    def tell_obstacles(self) -> None:
        for reason in self._obstacles:
            logger.warning("kv_compression leaves layers as they are: %s", reason)

    def prepare(self, policy: Policy) -> None:
        """Find out what `policy` needs of the model, which may run it. Raises ConfigError if that stays unknown."""
        if not policy.needs_rotation:
            return
        if not self._knows_rotations:
            found = self._find_rotations()
            self._layers = {index: [each.turning(found) for each in layers] for index, layers in self._layers.items()}
            self._knows_rotations = True
        layers = self._all_layers()
        num_unknown = sum(each.rotation is None for each in layers)
        if num_unknown:
            raise ConfigError(
                f"It is not known how {num_unknown} of {len(layers)} layers put positions into keys, which "
                f"{policy.name} needs: choose another kv_compression, and context_full=stop."
            )

    def watch(self, batch: Batch) -> QueryWatch | None:
        """What is to see the queries of a step; None if none are asked for."""
        rows, first = list[Rows](), 0
        for chunk in batch.chunks:
            if chunk.sequence.compression is not None:
                rows += _watched_rows(chunk, chunk.sequence.compression, first - chunk.start)
            first += len(chunk.tokens)
        return QueryWatch(rows, {call: each for each in self._all_layers() for call in each.calls}) if rows else None

    @torch.inference_mode()
    def compress(self, sequence: Sequence) -> None:
        """Compress a sequence that is due. Raises OutOfPagesError if there is no room: it must start again then."""
        with made_on(self._device):
            self._compress(sequence)

    def _compress(self, sequence: Sequence) -> None:
        compression = sequence.compression
        assert compression is not None
        if sequence.taken is not None:
            self._take(sequence, sequence.taken)
            compression.skip()
            return
        num_sinks = compression.policy.num_sinks
        if num_sinks is None:
            self._keep_best(sequence, compression)
        else:
            self._keep_ends(sequence, compression, num_sinks)
        compression.advance()

    def _take(self, sequence: Sequence, taken: CachedSequence) -> None:
        """Have it go on from `taken`, which is what it would be compressed to."""
        assert sequence.cached is not None
        self._cache.release(sequence.cached, sequence.tokens)
        sequence.cached, sequence.taken = taken, None

    def _all_layers(self) -> list[CompressibleLayer]:
        return [each for layers in self._layers.values() for each in layers]

    def _keep_best(self, sequence: Sequence, compression: Compression) -> None:
        """Have it keep what the policy says of each layer and head."""
        cached = sequence.cached
        assert cached is not None
        kept: dict[int, Kept] = {}
        for index in self._layers:
            table = cached.tables[index]
            if table.num_slots > compression.budget:
                pages = torch.tensor(table.pages, dtype=torch.long)
                choose = self._kept if compression.policy.is_even else self._packed
                kept[index] = choose(index, pages, table.num_slots, compression)
        if kept:
            self._cache.compact(cached, sequence.tokens, kept, sequence.request.compacted_key)

    def _keep_ends(self, sequence: Sequence, compression: Compression, num_sinks: int) -> None:
        """Have it keep its first and last pages, the first with keys as if they stood right before the last."""
        cached = sequence.cached
        assert cached is not None
        distance = cached.num_tokens - compression.budget
        is_first = compression.num_exact_tokens is None
        kept, dropped = dict[int, Kept](), dict[int, tuple[int, NDArray[np.uint8]]]()
        for index, geometry in self._geometries.items():
            pages, pool = torch.tensor(cached.tables[index].pages), self._layers[index][0].pages.pages
            num_first = -(-num_sinks // geometry.page_tokens)
            num_last = compression.budget // geometry.page_tokens - num_first
            if is_first:
                compression.sinks[index] = pool[pages[:num_first]]
            sinks = self._turned(index, compression.sinks[index], distance)
            if is_first:
                kept[index] = Kept(compression.budget, _bodies(torch.cat((sinks, pool[pages[-num_last:]]))))
            else:
                dropped[index] = num_last, _bodies(sinks)
        if is_first:  # pages that others may hit would keep all those before them from being evicted
            self._cache.compact(cached, sequence.tokens, kept)
        else:
            self._cache.drop_middle(cached, dropped)

    def _turned(self, index: int, sinks: torch.Tensor, distance: int) -> torch.Tensor:
        """The bytes of first pages whose keys stand `distance` positions later."""
        target = sinks.clone()
        if len(target):
            for layer in self._layers[index]:
                assert layer.rotation is not None, "looked for before"
                turn_keys(layer.pages, layer.rotation, distance, target)
        return target

    def _kept(self, index: int, pages: torch.Tensor, num_slots: int, compression: Compression) -> Kept:
        count, geometry = compression.budget, self._geometries[index]
        target = torch.zeros(-(-count // geometry.page_tokens), geometry.page_nbytes, dtype=torch.uint8)
        observer, observed = compression.policy.observer, compression.observed
        for layer in self._layers[index]:
            kept = compression.policy.kept(_seen(layer, pages, num_slots, compression), count)
            layer.kernels.move_tokens(layer.pages, pages, kept, target)
            if observer is not None:
                observed.update({call: observer.left_of(observed[call], kept) for call in layer.calls})
        return Kept(count, _bodies(target))

    def _packed(self, index: int, pages: torch.Tensor, num_slots: int, compression: Compression) -> Kept:
        """Of layers and heads that keep other numbers of pages: cells of packed pages, one after the other."""
        geometry, layers, policy = self._geometries[index], self._layers[index], compression.policy
        share = Share(compression.budget // geometry.page_tokens, geometry.page_tokens, num_slots)
        target = torch.zeros(share.num_pages, geometry.page_nbytes, dtype=torch.uint8)
        cell_starts = array("i", [0])
        for layer, count in zip(layers, policy.pages_of_layers(len(geometry.slots), share), strict=True):
            seen = _seen(layer, pages, num_slots, compression)
            kept = policy.kept_of_heads(seen, replace(share, num_pages=count))
            layer.kernels.pack_tokens(layer.pages, pages, kept, target, cell_starts[-1])
            for slots in kept:
                cell_starts.append(cell_starts[-1] + len(slots) // geometry.page_tokens)
        return Kept(compression.budget, _bodies(target), cell_starts)


def _bodies(pages: torch.Tensor) -> NDArray[np.uint8]:
    """What is written into pages, uint8 [pages, page_nbytes]."""
    return pages.cpu().numpy()


def _watched_rows(chunk: Chunk, compression: Compression, row: int) -> list[Rows]:
    """Those of a chunk that are looked at; token number n of what it is of has the row `row` + n."""
    if chunk.repeats:
        assert compression.repeat is not None
        start, stop = max(compression.repeat.num_tokens, chunk.start), chunk.stop
        repeated = RepeatedRows(compression, compression.repeat, chunk.cached, slice(row + start, row + stop), stop)
        return [repeated] if start < stop else []
    due = compression.watched_until(chunk.stop)
    if due is None:
        return []
    start, stop = max(compression.first_watched(due), chunk.start), min(due, chunk.stop)
    return [WatchedRows(chunk.sequence, slice(row + start, row + stop), stop)] if start < stop else []


def _seen(layer: CompressibleLayer, pages: torch.Tensor, num_slots: int, compression: Compression) -> StoredLayer:
    """What there is to see of a layer of a sequence that is due."""
    assert compression.due is not None
    calls = [compression.calls[call] for call in layer.calls if call in compression.calls]
    observed = [compression.observed[call] for call in layer.calls if call in compression.observed]
    return layer.seen(pages, num_slots, compression.due, calls, observed)
