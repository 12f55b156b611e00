"""Compresses running sequences: takes down the queries that policies ask for, and has pages kept in part.

Knows which requests and layers can be compressed, when a sequence is due, and what a policy decides of each. The exact
pages that a sequence had stay with whoever else uses them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from collections.abc import Sequence as Sequenced
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from pagoda.cache.cache import Cache
from pagoda.cache.compression.base import Policy
from pagoda.cache.compression.choice import policy_of
from pagoda.cache.compression.progress import Compression
from pagoda.engine.batch import Batch
from pagoda.engine.request import Request, Sequence
from pagoda.errors import ConfigError, InvalidSamplingError
from pagoda.kernels.base import AttentionRule, Kernels, LayerPages, compaction_obstacle
from pagoda.kernels.compaction import Beside, LastQueries, StoredLayer, move_tokens
from pagoda.kernels.rotation import PairRotation
from pagoda.layouts.spec import Reach
from pagoda.models.attention import BoundSite
from pagoda.models.calibration import rotations
from pagoda.models.model import Model

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class _Layer:
    """A layer whose tokens may lie anywhere, and the attention calls that read it.

    `projections` are what the results of these are multiplied by, as far as they are known; so is the `rotation`, once
    it is asked for.
    """

    pages: LayerPages
    calls: tuple[int, ...]
    projections: tuple[torch.Tensor, ...]
    rotation: PairRotation | None = None


@dataclass(frozen=True)
class _Rows:
    """Rows of a step whose queries are taken down for `sequence`, up to its token number `stop`."""

    sequence: Sequence
    rows: slice
    stop: int


class QueryWatch:
    """Sees the queries of one step, call by call; of those in `places` it knows the group and the layer."""

    def __init__(self, rows: Sequenced[_Rows], places: Mapping[int, tuple[int, _Layer]]) -> None:
        self._rows = rows
        self._places = places

    def saw(self, call: int, rule: AttentionRule, query: torch.Tensor, sinks: torch.Tensor | None) -> None:
        """`query` [rows, heads, width] are those of the step."""
        if call not in self._places:
            return
        for each in self._rows:
            compression = each.sequence.compression
            assert compression is not None
            before = compression.calls.get(call)
            new = query[each.rows].clone()
            queries = new if before is None else torch.cat((before.queries, new))
            compression.calls[call] = LastQueries(rule, queries, sinks)
            if compression.policy.needs_whole_prompt:
                self._observe(call, each.sequence, compression, each.stop)

    def _observe(self, call: int, sequence: Sequence, compression: Compression, stop: int) -> None:
        """Have the policy observe all blocks that end at `stop` or before; the rest is left for later."""
        assert sequence.cached is not None
        group, layer = self._places[call]
        table, last = sequence.cached.tables[group], compression.calls[call]
        pages, size = torch.tensor(table.pages, dtype=torch.long), layer.pages.geometry.page_tokens
        first = stop - len(last.queries)
        while first < stop and (end := compression.block_end(first)) <= stop:
            block = replace(last, queries=last.queries[: end - first])
            beside = Beside(rotation=layer.rotation, num_tokens=end)
            num_slots = table.num_slots + end - table.num_tokens
            view = StoredLayer(layer.pages, pages[: -(-num_slots // size)], num_slots, [block], beside)
            compression.observed[call] = compression.policy.observe(view, compression.observed.get(call))
            last, first = replace(last, queries=last.queries[end - first :]), end
        compression.calls[call] = replace(last, queries=last.queries.clone())


class Compressor:
    """Compresses sequences of `model`, whose attention calls are `sites`, in `cache`.

    Requests that do not say how are compressed by `default`. Raises ConfigError if that cannot be.
    """

    def __init__(self, sites: Sequenced[BoundSite], model: Model, kernels: Kernels, cache: Cache, default: str) -> None:
        self._cache = cache
        self._model, self._kernels = model, kernels
        self._layers, self._obstacles = _layers(sites, model)
        self._knows_rotations = False
        self._page_nbytes = {index: layers[0].pages.geometry.page_nbytes for index, layers in self._layers.items()}

        self._default = policy_of(default)
        if self._default is not None:
            self._check(self._default)
            self._prepare(self._default)
            for reason in self._obstacles:
                logger.warning("kv_compression leaves layers as they are: %s", reason)

    def check(self, request: Request) -> None:
        """Raise InvalidSamplingError if a request asks for what cannot be."""
        asked = request.params.kv_compression
        try:
            policy = None if asked is None else policy_of(asked)
            if policy is None:
                return
            self._check(policy)
        except ConfigError as error:
            raise InvalidSamplingError(str(error)) from error
        if request.breakpoints or request.scores_prompt:
            reason = "prompt_logprobs" if request.scores_prompt else "leases of its prompt"
            raise InvalidSamplingError(f"kv_compression does not go with {reason}: leave one of the two out.")

    def policy(self, request: Request) -> Policy | None:
        """What a request is compressed by: not what was said for all, where it needs the whole prompt.

        Raises InvalidSamplingError where the model has to be run to find out that it cannot be.
        """
        asked = request.params.kv_compression
        if asked is not None:
            try:
                return self._prepare(policy_of(asked))
            except ConfigError as error:
                raise InvalidSamplingError(str(error)) from error
        needs_all = request.breakpoints or request.scores_prompt or request.params.max_tokens == 0
        return None if needs_all else self._default

    def watch(self, batch: Batch) -> QueryWatch | None:
        """What is to see the queries of a step; None if none are asked for."""
        rows, first = [], 0
        for chunk in batch.chunks:
            compression, count = chunk.sequence.compression, len(chunk.tokens)
            if compression is not None and compression.due is not None:
                start = max(compression.first_watched(compression.due), chunk.start)
                stop, row = min(compression.due, chunk.stop), first - chunk.start
                if start < stop:
                    rows.append(_Rows(chunk.sequence, slice(row + start, row + stop), stop))
            first += count
        return QueryWatch(rows, self._places()) if rows else None

    def _places(self) -> dict[int, tuple[int, _Layer]]:
        """By attention call, its group and layer."""
        return {call: (index, each) for index, layers in self._layers.items() for each in layers for call in each.calls}

    @torch.inference_mode()
    def compress(self, sequence: Sequence) -> None:
        """Compress a sequence that is due. Raises OutOfPagesError if there is no room: it must start again then."""
        compression, cached = sequence.compression, sequence.cached
        assert compression is not None
        assert cached is not None
        kept: dict[int, tuple[int, NDArray[np.uint8]]] = {}
        for index, layers in self._layers.items():
            table = cached.tables[index]
            if table.num_slots > compression.budget:
                pages = torch.tensor(table.pages, dtype=torch.long)
                kept[index] = compression.budget, self._kept(index, layers, pages, table.num_slots, compression)
        if kept:
            self._cache.compact(cached, sequence.tokens, kept)
        compression.advance()

    def _check(self, policy: Policy) -> None:
        """Raise ConfigError if nothing of this model can be compressed, or not by `policy`."""
        if not self._layers:
            reason = "; ".join(self._obstacles) or "it has no attention over all tokens"
            raise ConfigError(f"kv_compression can keep nothing of this model in part: {reason}. Leave it out.")
        layers = [each for group in self._layers.values() for each in group]
        if policy.needs_outputs and any(len(each.projections) < len(each.calls) for each in layers):
            raise ConfigError(
                "critical needs the layer that attention's results go through, which is not known of all calls of this "
                "model. Leave it out."
            )

    def _prepare(self, policy: Policy | None) -> Policy | None:
        """`policy`, once all is known that it needs of the model; ConfigError if that cannot be known."""
        if policy is None or not policy.needs_rotation:
            return policy
        if not self._knows_rotations:
            found = {(each.group, each.layer): turns for each, turns in rotations(self._model, self._kernels).items()}
            self._layers = {
                index: [replace(each, rotation=found.get((index, each.pages.layer))) for each in layers]
                for index, layers in self._layers.items()
            }
            self._knows_rotations = True
        if any(each.rotation is None for layers in self._layers.values() for each in layers):
            raise ConfigError(
                f"{policy.name} needs to know how queries are turned by their positions, which is not sure for all "
                "layers of this model. Choose another policy."
            )
        return policy

    def _kept(
        self, index: int, layers: Sequenced[_Layer], pages: torch.Tensor, num_slots: int, compression: Compression
    ) -> NDArray[np.uint8]:
        count, size = compression.budget, layers[0].pages.geometry.page_tokens
        target = torch.zeros(-(-count // size), self._page_nbytes[index], dtype=torch.uint8)
        for layer in layers:
            calls = [compression.calls[call] for call in layer.calls if call in compression.calls]
            kept = compression.policy.kept(
                StoredLayer(layer.pages, pages, num_slots, calls, _beside(layer, compression)), count
            )
            move_tokens(layer.pages, pages, kept, target)
            for call in layer.calls:
                if call in compression.observed:
                    compression.observed[call] = compression.policy.after(compression.observed[call], kept)
        return target.numpy()


def _beside(layer: _Layer, compression: Compression) -> Beside:
    """What there is of a layer of a sequence that is due."""
    assert compression.due is not None
    observed = [compression.observed[call] for call in layer.calls if call in compression.observed]
    return Beside(layer.projections, observed, layer.rotation, compression.due)


def _layers(sites: Sequenced[BoundSite], model: Model) -> tuple[dict[int, list[_Layer]], list[str]]:
    """The layers of every group that can be compressed, and why others cannot."""
    layers, obstacles = dict[int, list[_Layer]](), list[str]()
    uses, projections = model.discovered.uses, model.projections
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
            layers[group] = [_layer(sites, projections, each) for each in by_layer.values()]
    return layers, obstacles


def _layer(sites: Sequenced[BoundSite], projections: Sequenced[torch.Tensor | None], calls: list[int]) -> _Layer:
    found = (projections[call] for call in calls)
    return _Layer(sites[calls[0]].layer, tuple(calls), tuple(each for each in found if each is not None))
