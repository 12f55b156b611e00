"""How the whole pages of a budget are shared among the layers of a model, or the KV heads of a layer.

Knows numbers of pages and scores. Does not know what pages are: what is given to one is taken from others, so that all
together keep as much as if each kept the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Share:
    """What a KV head keeps on average of `num_slots` tokens: `num_pages`, of `page_tokens` each."""

    num_pages: int
    page_tokens: int
    num_slots: int

    @property
    def num_tokens(self) -> int:
        return self.num_pages * self.page_tokens

    @property
    def most_pages(self) -> int:
        """As many as a head can fill."""
        return self.num_slots // self.page_tokens

    def whole_pages(self, wanted: Sequence[float], least_tokens: int) -> list[int]:
        """The pages nearest to the tokens `wanted` of each, `num_pages` on average, with room for `least_tokens`."""
        size, least, total = self.page_tokens, -(-least_tokens // self.page_tokens), self.num_pages * len(wanted)
        assert least <= self.num_pages <= self.most_pages, "there is as much for each"
        given = [min(max(int(tokens // size), least), self.most_pages) for tokens in wanted]
        while sum(given) < total:
            lacking = [index for index, pages in enumerate(given) if pages < self.most_pages]
            given[max(lacking, key=lambda index: wanted[index] - given[index] * size)] += 1
        while sum(given) > total:
            having = [index for index, pages in enumerate(given) if pages > least]
            given[min(reversed(having), key=lambda index: wanted[index] - given[index] * size)] -= 1
        return given


def tokens_of_heads(scores: torch.Tensor, count: int, safe: int, most: int) -> list[int]:
    """How many of the best tokens of all heads together are those of each, `count` on average (AdaKV).

    `scores` are [KV heads, tokens]. A head has its `safe` best tokens in any case, and at most `most`. Of equal scores
    those of lower rank in their head come first.
    """
    import torch

    ranked = scores.sort(dim=-1, descending=True).values[:, :most].clone()
    ranked[:, :safe] = float("inf")
    best = ranked.T.flatten().sort(descending=True, stable=True).indices[: count * len(scores)]
    counts: list[int] = torch.bincount(best % len(scores), minlength=len(scores)).tolist()
    return counts
