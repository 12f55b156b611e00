"""Keys and values of multi-head, grouped-query and multi-query attention."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

from pagoda.layouts.base import Axis, Layout, Plane


@dataclass(frozen=True)
class AttentionLayout(Layout):
    """One key row and one value row per KV head.

    MHA has as many KV heads as query heads, GQA fewer (arXiv 2305.13245), MQA one (arXiv 1911.02150). The widths of
    keys and values may differ.
    """

    num_kv_heads: int
    key_width: int
    value_width: int

    @property
    def planes(self) -> tuple[Plane, ...]:
        return (
            Plane("key", self.num_kv_heads, self.key_width, Axis.CHANNEL),
            Plane("value", self.num_kv_heads, self.value_width, Axis.TOKEN),
        )

    @classmethod
    def examples(cls) -> Mapping[str, Self]:
        return {
            "mha": cls(num_kv_heads=4, key_width=16, value_width=16),
            "gqa": cls(num_kv_heads=2, key_width=64, value_width=64),
            "mqa": cls(num_kv_heads=1, key_width=128, value_width=128),
            "keys wider than values": cls(num_kv_heads=2, key_width=192, value_width=128),
            "narrow": cls(num_kv_heads=1, key_width=8, value_width=2),
        }

    def resumable_tokens(self, num_matched_tokens: int) -> int:
        """Any prefix of a causal layer can be resumed at any token."""
        return num_matched_tokens

    def part(self, num_devices: int) -> Self:
        """Its share of the heads, or a copy of one: heads are never cut."""
        return replace(self, num_kv_heads=-(-self.num_kv_heads // num_devices))
