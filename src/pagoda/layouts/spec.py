"""What a whole model leaves behind: its layers sorted into groups that keep the same tokens.

Knows layer groups and where each attention call of the model finds its own layer in them. Does not know bytes, pages or
tensors; `planning/spec.py` derives a spec from a checkpoint's config, `models/discovery.py` from the model itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from pagoda.layouts.base import Layout
from pagoda.layouts.state import StateLayout


class Reach(StrEnum):
    """Which tokens a query attends to: earlier ones of its own sequence, or an encoder's."""

    FULL = "full"  # all of the earlier ones
    SLIDING = "sliding"  # the last `span` tokens, itself included
    CHUNKED = "chunked"  # those in its own chunk of `span` tokens
    ENCODER = "encoder"  # all that the encoder made of the sequence's encoder input


@dataclass(frozen=True)
class LayerGroup:
    """The layers of a model that keep the same tokens; each group has its own page pool.

    `layouts` has one entry per layer of the group, in the order of their calls; entries may differ in heads and widths.
    `span` is the window or chunk in tokens, and None for full attention. The first `sink_tokens` are kept besides.
    """

    reach: Reach
    span: int | None
    layouts: tuple[Layout, ...]
    sink_tokens: int = 0

    @property
    def name(self) -> str:
        """What users know it by: "full", "sliding 4096"."""
        window = str(self.reach) if self.span is None else f"{self.reach} {self.span}"
        return f"{window} after {self.sink_tokens}" if self.sink_tokens else window

    @property
    def elements_per_token(self) -> int:
        return sum(layout.elements_per_token for layout in self.layouts)

    def num_kept(self, num_tokens: int) -> int:
        """How many of `num_tokens` tokens at most are read, and must be kept, when the next one comes."""
        if self.span is None or self.reach is Reach.FULL:
            return num_tokens
        return min(num_tokens, self.span + self.sink_tokens)

    def first_needed(self, num_tokens: int) -> int:
        """The first token behind the sinks that a query at position `num_tokens`, or a later one, attends to."""
        if self.span is None or self.reach is Reach.FULL:
            return 0
        if self.reach is Reach.SLIDING:
            return max(num_tokens - self.span + 1, 0)
        return num_tokens // self.span * self.span

    def resumable_tokens(self, num_matched_tokens: int) -> int:
        """The deepest point from which every layer of the group can resume."""
        return min(layout.resumable_tokens(num_matched_tokens) for layout in self.layouts)


@dataclass(frozen=True)
class SiteSlot:
    """Where one attention call of the model keeps its keys and values.

    `writes` is False for a call that reads what an earlier call has stored (layers that share a cache).
    """

    group: int
    layer: int
    writes: bool = True


@dataclass(frozen=True)
class CacheSpec:
    """The groups of a model and, per attention call in call order, the slot it uses.

    `states` are those of its recurrent layers, in the order of their calls: a group of its own that keeps no tokens.
    """

    groups: tuple[LayerGroup, ...]
    sites: tuple[SiteSlot, ...]
    states: tuple[StateLayout, ...] = ()

    @property
    def elements_per_token(self) -> int:
        """Of a token of the sequence, which an encoder's tokens are not."""
        return sum(group.elements_per_token for group in self.groups if group.reach is not Reach.ENCODER)

    @property
    def elements_per_encoder_token(self) -> int:
        return sum(group.elements_per_token for group in self.groups if group.reach is Reach.ENCODER)

    def part(self, num_devices: int) -> CacheSpec:
        """What each of so many devices keeps under tensor parallelism."""
        groups = [replace(g, layouts=tuple(each.part(num_devices) for each in g.layouts)) for g in self.groups]
        return replace(self, groups=tuple(groups), states=tuple(each.part(num_devices) for each in self.states))

    def state_nbytes(self, weight_nbytes: int) -> int:
        """Bytes of the recurrent state of one sequence, with `weight_nbytes` for a number of the weights."""
        return sum(layout.nbytes(weight_nbytes) for layout in self.states)


def group_layers(layers: list[tuple[Reach, int | None, Layout]], sources: list[int | None]) -> CacheSpec:
    """Sort attention calls, in call order, into groups of equal reach and span.

    `sources[i]` is the earlier call whose keys and values call i reads, or None if it stores its own.
    """
    members: dict[tuple[Reach, int | None], list[Layout]] = {}
    sites: list[SiteSlot] = []
    for (reach, span, layout), source in zip(layers, sources, strict=True):
        if source is not None:
            sites.append(SiteSlot(sites[source].group, sites[source].layer, writes=False))
            continue
        group = members.setdefault((reach, span), [])
        sites.append(SiteSlot(list(members).index((reach, span)), len(group)))
        group.append(layout)
    groups = tuple(LayerGroup(reach, span, tuple(layouts)) for (reach, span), layouts in members.items())
    return CacheSpec(groups, tuple(sites))
