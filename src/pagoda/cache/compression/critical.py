"""CriticalKV's second stage (arXiv 2502.03805): a token adds its weight times its value to the output of attention.

Some of a budget goes to tokens of high weight, and the rest to those whose weight times the size of their projected
value is high: there the output changes most if they leave.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# So that a token nobody attends to is told by its value; the authors' number.
EPSILON = 1e-4


def best_by_output(scores: torch.Tensor, output_norms: torch.Tensor, count: int, num_by_score: int) -> torch.Tensor:
    """The best `count` tokens of `scores` [KV heads, tokens]: `num_by_score` by these, and the others by both.

    `output_norms` [KV heads, query heads of each, tokens] are L1 norms of values times the output projection.
    """
    first = scores.sort(dim=-1, descending=True, stable=True).indices[:, :num_by_score]
    added = (scores + EPSILON) * output_norms.mean(dim=1)
    added = added.scatter(-1, first, float("inf"))
    return added.sort(dim=-1, descending=True, stable=True).indices[:, :count]
