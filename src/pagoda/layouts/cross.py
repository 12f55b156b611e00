"""Keys and values of what an encoder made of its input, as the decoder's cross-attention reads them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from pagoda.layouts.attention import AttentionLayout


@dataclass(frozen=True)
class CrossLayout(AttentionLayout):
    """One key row and one value row per KV head for every token of the encoder (arXiv 1706.03762).

    They depend on the whole of the encoder's input, and on nothing of the decoder's.
    """

    @classmethod
    def examples(cls) -> Mapping[str, Self]:
        return {"cross": cls(num_kv_heads=4, key_width=16, value_width=16)}

    def resumable_tokens(self, num_matched_tokens: int) -> int:  # noqa: ARG002
        """No part of it is good for another input: it is taken over whole, or computed."""
        return 0
