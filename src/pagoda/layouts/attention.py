"""Keys and values of multi-head, grouped-query and multi-query attention."""

from dataclasses import dataclass

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

    def resumable_tokens(self, num_matched_tokens: int) -> int:
        """Any prefix of a causal layer can be resumed at any token."""
        return num_matched_tokens
