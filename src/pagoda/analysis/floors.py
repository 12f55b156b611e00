"""The least time that a step can take: what must be read, and what must be computed, at the machine's full rates.

Nothing is faster than this, and programs are slower by what they do not reach of either. Traffic of
activations, traffic between devices and the scans of recurrent layers are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pagoda.analysis.source import Described
from pagoda.cache.reading import Reading
from pagoda.formats.page import PageGeometry, aligned
from pagoda.layouts.base import Layout
from pagoda.layouts.spec import LayerGroup, Reach
from pagoda.planning.spec import query_heads
from pagoda.planning.users import Load


@dataclass(frozen=True)
class DecodeFloor:
    """A step in which each of `users` gets a token: bytes that one device reads, and how long that takes."""

    users: int
    context: int
    weight_nbytes: int
    cache_nbytes: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Of all users together."""
        return self.users / self.seconds


@dataclass(frozen=True)
class PrefillFloor:
    """A prompt of `num_tokens`, of which `num_computed` are computed: operations on all devices, and their time."""

    num_tokens: int
    num_computed: int
    weight_flops: int
    attention_flops: int
    seconds: float


def load_nbytes(geometries: Sequence[PageGeometry], load: Load) -> int:
    """Keys and values that one sequence of `load` reads to go on; no page is rounded up."""
    if load.policy is None:
        return kept_nbytes(geometries, load.num_tokens, load.num_encoded)
    return round(sum(each.nbytes_per_token * kept_tokens(each, load) for each in geometries))


def read_nbytes(geometries: Sequence[PageGeometry], load: Load, reading: Reading | None) -> int:
    """The same where `reading` says what layers read that attend to all, and with what they choose pages by."""
    whole = load_nbytes(geometries, load)
    if reading is None:
        return whole
    return whole - round(sum(_unread_nbytes(each, kept_tokens(each, load), reading) for each in geometries))


def _unread_nbytes(geometry: PageGeometry, num_tokens: int, reading: Reading) -> float:
    left = num_tokens - reading.most_pages * reading.page_tokens
    slots = geometry.slots[reading.dense_layers :]
    if left <= 0 or not geometry.summary_nbytes:
        return 0.0
    keys_and_values = sum(aligned(slot.nbytes) for planes in slots for slot in planes) / geometry.page_tokens
    summaries = geometry.summary_nbytes * len(slots) / len(geometry.slots) / geometry.page_tokens
    return left * keys_and_values - num_tokens * summaries


def kept_tokens(geometry: PageGeometry, load: Load) -> int:
    """How many tokens a group of layers keeps of a sequence of `load`."""
    if is_cross(geometry):
        return load.num_encoded
    if load.policy is not None and geometry.group.span is None:
        return load.held(geometry.page_tokens).at_end
    return geometry.group.num_kept(load.num_tokens)


def kept_nbytes(geometries: Sequence[PageGeometry], num_tokens: int, num_encoded: int) -> int:
    """Keys and values that one sequence reads to go on; no page is rounded up."""
    counts = [num_encoded if is_cross(each) else each.group.num_kept(num_tokens) for each in geometries]
    return round(sum(each.nbytes_per_token * count for each, count in zip(geometries, counts, strict=True)))


def is_cross(geometry: PageGeometry) -> bool:
    return geometry.group.reach is Reach.ENCODER


def attention_flops(model: Described, load: Load) -> int:
    """Operations of scores and sums in all layers, over the tokens of a prompt behind those that all users share."""
    groups = model.facts.spec.groups
    num_known = min(load.num_shared, load.num_tokens - 1)
    total = 0
    for group in groups:
        if group.reach is Reach.ENCODER:
            pairs = (load.num_tokens - num_known) * load.num_encoded
        else:
            pairs = _pairs(group, load.num_tokens, num_known)
        total += pairs * sum(_pair_flops(model, layout) for layout in group.layouts)
    return total


def _pair_flops(model: Described, layout: Layout) -> int:
    """For a query and a key, in all heads: two operations for each number of the key and of the value.

    Of latents keys and values can be made for a prompt, whose heads are narrower.
    """
    sizes = model.text
    if sizes.get("kv_lora_rank"):
        widths = sizes["qk_nope_head_dim"] + sizes["qk_rope_head_dim"] + sizes["v_head_dim"]
    else:
        widths = sum(plane.width for plane in layout.planes)
    return int(2 * query_heads(sizes) * widths)


def _pairs(group: LayerGroup, num_tokens: int, num_known: int) -> int:
    """How many pairs of a query and a key there are: each query sees itself and what its group has kept."""
    return _seen(group, num_tokens) - _seen(group, num_known)


def _seen(group: LayerGroup, num_tokens: int) -> int:
    """Of all queries up to there."""
    if group.reach is Reach.CHUNKED and group.span is not None:
        chunks, rest = divmod(num_tokens, group.span)
        return chunks * _triangle(group.span) + _triangle(rest)
    most = group.num_kept(num_tokens)
    return _triangle(most) + (num_tokens - most) * most


def _triangle(count: int) -> int:
    """1 + 2 + ... + `count`."""
    return count * (count + 1) // 2
