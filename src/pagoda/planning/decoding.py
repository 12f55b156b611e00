"""What a decode step has to read for a token: the weights, which a batch shares, and the cache, which it does not.

Bytes of pages are asked of the geometries that the engine has, and of those that it would have in other formats. Knows
no time and no bandwidth: twice the bytes take about twice as long where reading them is what takes the time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pagoda.config import EngineConfig
from pagoda.errors import ConfigError
from pagoda.formats.page import PageGeometry, aligned
from pagoda.layouts.spec import CacheSpec, LayerGroup, Reach
from pagoda.planning.facts import ModelFacts
from pagoda.planning.memory import MemoryPlan
from pagoda.planning.page_formats import choose_geometries

# Other formats to think of, the mildest first.
SMALLER_FORMATS = ("int8", "int4")


@dataclass(frozen=True)
class DecodeReads:
    """Bytes read for one token, on average: its share of the weights, pages by layer group, recurrent states.

    `others` has the bytes of all pages in other formats that have fewer.
    """

    weights: float
    groups: Mapping[str, float]
    states: float
    others: Mapping[str, float]

    @property
    def cache(self) -> float:
        """Pages and states."""
        return sum(self.groups.values()) + self.states

    @property
    def total(self) -> float:
        return self.weights + self.cache

    def speed_up(self, format_name: str) -> float:
        """How many times fewer bytes there would be in another format."""
        return self.total / (self.weights + self.states + self.others[format_name])


@dataclass(frozen=True)
class DecodeCosts:
    """What reading takes with the memory of one engine: `per_token` bytes of each of `groups`, by format.

    The format of that name is the one that the engine has, the empty one.
    """

    weight_nbytes: int
    state_nbytes: int
    groups: tuple[LayerGroup, ...]
    per_token: Mapping[str, tuple[float, ...]]

    def reads(self, context: float, batch: float = 1.0, num_encoder_tokens: int = 0) -> DecodeReads:
        """For a token after `context` others, in steps of `batch` rows."""
        read = [_tokens_read(group, round(context), num_encoder_tokens) for group in self.groups]
        groups = dict.fromkeys((group.name for group in self.groups), 0.0)
        for group, tokens, nbytes in zip(self.groups, read, self.per_token[""], strict=True):
            groups[group.name] += tokens * nbytes
        others = {
            name: sum(tokens * nbytes for tokens, nbytes in zip(read, sizes, strict=True))
            for name, sizes in self.per_token.items()
            if name
        }
        return DecodeReads(self.weight_nbytes / max(batch, 1.0), groups, self.state_nbytes, others)


def decode_costs(facts: ModelFacts, memory: MemoryPlan, config: EngineConfig) -> DecodeCosts:
    """Of an engine that was started with `config`."""
    per_token = {"": _read_nbytes(facts.spec, memory.geometries)}
    for name in SMALLER_FORMATS:
        try:
            geometries = choose_geometries(facts, replace(config, kv_cache_dtype=name))
        except ConfigError:
            continue  # the model cannot be kept in it
        sizes = _read_nbytes(facts.spec, geometries)
        if sum(sizes) < sum(per_token[""]):
            per_token[name] = sizes
    return DecodeCosts(
        weight_nbytes=facts.weight_nbytes or 0,
        state_nbytes=memory.states.geometry.page_nbytes if memory.states else 0,
        groups=facts.spec.groups,
        per_token=per_token,
    )


def _read_nbytes(spec: CacheSpec, geometries: Sequence[PageGeometry]) -> tuple[float, ...]:
    """Bytes of a token that attention reads in each group; layers that share a cache read it one after the other."""
    nbytes = [0.0] * len(geometries)
    for site in spec.sites:
        geometry = geometries[site.group]
        slots = geometry.slots[site.layer]
        nbytes[site.group] += sum(aligned(slot.nbytes) for slot in slots) / geometry.page_tokens
    return tuple(nbytes)


def _tokens_read(group: LayerGroup, context: int, num_encoder_tokens: int) -> int:
    """How many tokens of a group a query after `context` tokens attends to."""
    if group.reach is Reach.ENCODER:
        return num_encoder_tokens
    first = group.first_needed(context)
    return context - first + min(group.sink_tokens, first)
