"""What the keys of a head have in common, taken off before they are coded and given back by whoever reads them.

Keys of some models have channels that hold the same large number in every token (Qwen2's, from the biases of its key
projection), and codes of few bits spend themselves on it. A kept key is (key - c) / s. The products with queries stay
what they were: a query is multiplied by s, and its product with c is added to the score.

Rotary embedding (arXiv 2104.09864) turns what keys have in common with their position, so it is measured on keys turned
back. A page takes off c = R(first position of the page) b, for the few pairs of channels whose b is large and which
hardly turn within a page; nothing of it is stored. Both channels of a pair have one s: it commutes with the rotation.
Without rotation angles are zero.

Latents are values too, in channels that nothing rotates: what attention gives of them is multiplied by s, and c times
the sum of weights is added, which is one unless some go to a sink.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

Key = TypeVar("Key", bound=Hashable)

# How many pairs of channels of a head have a base, and how many entries of zero follow the angles of the last page:
# `csrc/attention.h` has the same.
MOST_PAIRS = 16
TURN_EDGE = 16


@dataclass(frozen=True, eq=False)
class PageTurns:
    """Cosines and sines of the first position of every page: fp32 [turns, 2, pages + TURN_EDGE].

    All layers that rotate alike share one. The last turn is none: cosine 1, sine 0.
    """

    table: torch.Tensor

    @classmethod
    def of(cls, frequencies: torch.Tensor, page_tokens: int, num_pages: int) -> PageTurns:
        """Of the angles per token that pairs of channels turn by, `frequencies` fp64 [turns - 1]."""
        import torch

        positions = torch.arange(num_pages, dtype=torch.float64) * page_tokens
        angles = torch.outer(torch.cat((frequencies.double(), torch.zeros(1, dtype=torch.float64))), positions)
        turns = torch.stack((angles.cos(), angles.sin()), dim=1).float()
        return cls(torch.nn.functional.pad(turns, (0, TURN_EDGE)).contiguous())

    @property
    def num_pages(self) -> int:
        return self.table.shape[2] - TURN_EDGE


@dataclass(frozen=True, eq=False)
class KeyConstants:
    """Of the heads of one layer. `pairs` names two channels and a turn; a base that is zero takes nothing off."""

    scales: torch.Tensor  # fp32 [heads, width], powers of two
    pairs: torch.Tensor  # int32 [heads, MOST_PAIRS or fewer, 3]
    bases: torch.Tensor  # fp32 [heads, pairs, 2]
    turns: PageTurns

    def taken_off(self, keys: torch.Tensor, pages: torch.Tensor) -> torch.Tensor:
        """What is kept of `keys` [tokens, heads, width] in the pages number `pages` of their sequences: fp32."""
        return (keys.float() - self.common(pages)) / self.scales

    def given_back(self, kept: torch.Tensor, pages: torch.Tensor | None = None) -> torch.Tensor:
        """Keys from what is kept of them, fp32 [heads, tokens, width]; `kept` is [pages, heads, page_tokens, width].

        They are of the pages number `pages` of a sequence, or of its first ones.
        """
        import torch

        common = self.common(torch.arange(len(kept), device=kept.device) if pages is None else pages)
        keys = kept * self.scales[:, None] + common[:, :, None]
        return keys.transpose(0, 1).flatten(1, 2)

    def error_bound(self, kept_bound: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Of `keys` [heads, tokens, width], where what is kept of them has `kept_bound`; and the rounding of sums."""
        largest = keys.abs() + self.bases.abs().sum(dim=-1).amax(dim=-1)[:, None, None]
        return kept_bound * self.scales[:, None] + largest * 2.0**-21

    @cached_property
    def num_pairs(self) -> int:
        return self.pairs.shape[1]

    def common(self, pages: torch.Tensor) -> torch.Tensor:
        """What keys in these pages have in common: fp32 [pages, heads, width]."""
        cosines, sines = self.turns.table[self.pairs[..., 2].long()].unbind(2)  # [heads, pairs, all pages]
        cosines, sines = cosines[..., pages].movedim(-1, 0), sines[..., pages].movedim(-1, 0)
        first, second = self.bases.unbind(-1)
        common = self.scales.new_zeros(len(pages), *self.scales.shape)
        for channels, values in (
            (self.pairs[..., 0], first * cosines - second * sines),
            (self.pairs[..., 1], second * cosines + first * sines),
        ):
            common.scatter_add_(2, channels.long().expand(len(pages), -1, -1), values)
        return common


def constants_on(device: torch.device, constants: Mapping[Key, KeyConstants]) -> dict[Key, KeyConstants]:
    """Constants on a device, where those that share a table of turns still do."""
    if all(each.scales.device == device for each in constants.values()):
        return dict(constants)
    tables = {id(each.turns): each.turns for each in constants.values()}
    moved = {name: PageTurns(turns.table.to(device)) for name, turns in tables.items()}
    return {
        key: KeyConstants(each.scales.to(device), each.pairs.to(device), each.bases.to(device), moved[id(each.turns)])
        for key, each in constants.items()
    }
