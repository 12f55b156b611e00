"""The weights of a decoder, put together of what its family says of attention, feed-forward part and norms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from pagoda.planning.spec import KINDS_WITHOUT_TOKENS, attention_layout, layer_kinds, query_heads
from pagoda.planning.text_config import Sizes, first
from pagoda.planning.weights.count import Experts, Feed, WeightCount


@dataclass(frozen=True)
class Decoder:
    """How a family builds its layers; without more said, as Llama does.

    matrices: of a feed-forward part, three with a gate. norms: before, behind and between the parts of a layer. extras:
    what attention has besides its four projections. recurrence: the weights of a layer that does not attend. plain:
    matrices that never become codes, by the kind of their layer. is_plain: all are such, in layers. expansion: what
    makes keys and values of latents, if that becomes codes. has_fused_qkv: one matrix makes queries, keys and values.
    """

    attention: Callable[[Sizes, Decoder], int] | None = None
    feed: Callable[[Sizes, Decoder, int], Feed] | None = None
    extras: Callable[[Sizes], int] | None = None
    recurrence: Callable[[Sizes], int] | None = None
    plain: Callable[[Sizes, str], int] | None = None
    expansion: Callable[[Sizes], int] | None = None
    matrices: int = 3
    norms: int = 2
    has_norm_bias: bool = False
    has_qkv_bias: bool = False
    has_output_bias: bool = False
    has_feed_bias: bool = False
    has_head_bias: bool = False
    is_tied: bool = False
    is_plain: bool = False
    has_fused_qkv: bool = False
    positions: str | None = None  # the size of a table of positions

    def count(self, sizes: Sizes) -> WeightCount:
        """All weights of the model that `sizes` describes."""
        width, vocabulary = hidden_width(sizes), first(sizes, "vocab_size")
        kinds = layer_kinds(sizes)
        feeds = [(self.feed or dense)(sizes, self, index) for index in range(len(kinds))]
        mixers = sum(self._mixer(sizes, kind) for kind in kinds)
        norm = width * (1 + self.has_norm_bias)
        is_tied = sizes.get("tie_word_embeddings", self.is_tied)
        positions = sizes[self.positions] * width if self.positions else 0
        norms = norm * (self.norms * len(kinds) + 1)
        layers = mixers + sum(feed.always for feed in feeds) + norms
        plain = norms + sum(self.plain(sizes, kind) for kind in kinds) if self.plain else norms
        return WeightCount(
            table=positions + (0 if is_tied else vocabulary * width),
            head=vocabulary * width + (vocabulary if self.has_head_bias else 0),
            layers=layers,
            experts=_experts(sizes, sum(feed.routed for feed in feeds)),
            plain=layers if self.is_plain else plain,
            fine=sum(self._keys_and_values(sizes, kind) for kind in kinds),
        )

    def _keys_and_values(self, sizes: Sizes, kind: str) -> int:
        if self.expansion is not None:
            return self.expansion(sizes)
        is_of_its_own = self.attention is None and not self.has_fused_qkv and not self.is_plain
        if not is_of_its_own or (kind in KINDS_WITHOUT_TOKENS and self.recurrence):
            return 0
        heads = Heads.of(sizes)
        return hidden_width(sizes) * heads.num_kv * (heads.key_width + heads.value_width)

    def _mixer(self, sizes: Sizes, kind: str) -> int:
        if kind in KINDS_WITHOUT_TOKENS and self.recurrence:
            return self.recurrence(sizes)
        return (self.attention or projections)(sizes, self) + (self.extras(sizes) if self.extras else 0)


def projections(sizes: Sizes, decoder: Decoder) -> int:
    """Of queries, keys, values and the output."""
    width, heads = hidden_width(sizes), Heads.of(sizes)
    into = heads.num_queries * heads.key_width + heads.num_kv * (heads.key_width + heads.value_width)
    stated = bool(sizes.get("attention_bias") or sizes.get("bias"))
    biases = into * (decoder.has_qkv_bias or stated) + width * (decoder.has_output_bias or stated)
    return width * (into + heads.num_queries * heads.value_width) + biases


def dense(sizes: Sizes, decoder: Decoder, index: int) -> Feed:  # noqa: ARG001
    """One feed-forward part that all tokens pass through."""
    return Feed(feed_forward(sizes, decoder, feed_width(sizes)))


def feed_forward(sizes: Sizes, decoder: Decoder, inner: int) -> int:
    width = hidden_width(sizes)
    has_bias = decoder.has_feed_bias or sizes.get("mlp_bias") or sizes.get("bias")
    return decoder.matrices * width * inner + (((decoder.matrices - 1) * inner + width) if has_bias else 0)


def hidden_width(sizes: Sizes) -> int:
    return first(sizes, "hidden_size", "n_embd", "d_model")


def feed_width(sizes: Sizes) -> int:
    """Of all layers, or of the widest where each has its own."""
    names = ("intermediate_size", "n_inner", "ffn_hidden_size", "d_ff")
    stated = next((sizes[name] for name in names if sizes.get(name)), 4 * hidden_width(sizes))
    return int(max(stated) if isinstance(stated, list) else stated)


class Heads(NamedTuple):
    """Of queries, and of keys and values; queries are as wide as keys."""

    num_queries: int
    num_kv: int
    key_width: int
    value_width: int

    @classmethod
    def of(cls, sizes: Sizes) -> Heads:
        key, value = attention_layout(sizes).planes
        return cls(query_heads(sizes), key.num_heads, key.width, value.width)


def norms_of_heads(sizes: Sizes) -> int:
    """One norm for all query heads and one for all key heads, as wide as a head."""
    return 2 * Heads.of(sizes).key_width


def norms_over_heads(sizes: Sizes) -> int:
    """One norm over all query heads together, and one over all key heads."""
    heads = Heads.of(sizes)
    return (heads.num_queries + heads.num_kv) * heads.key_width


def _experts(sizes: Sizes, num_weights: int) -> Experts:
    if not num_weights:
        return Experts()
    count = first(sizes, "num_local_experts", "n_routed_experts", "num_experts")
    return Experts(num_weights, count, first(sizes, "num_experts_per_tok"))
