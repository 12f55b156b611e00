"""Which rows meet which expert, ordered on the device: blocks of pairs of a row and an expert, each of one expert.

The host waits for none of their numbers: how many blocks there may be follows from how many pairs and experts there
are. Knows no weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

# Pairs that a program looks at together. Not measured.
CHUNK = 2048


@dataclass(frozen=True)
class Routing:
    """Pairs have numbers: those of a row follow one another, in the order of its experts.

    pairs: int32 [blocks, rows of a block]; where a block is not full, and in blocks that are not needed, their count.
    owners: int32 [blocks], the expert of each; their count for pairs whose expert is not there.
    """

    pairs: torch.Tensor
    owners: torch.Tensor

    @classmethod
    def of(cls, experts: torch.Tensor, num_experts: int, block_rows: int) -> Routing:
        """Of `experts` [rows, n], whole numbers on the device; pairs of one expert stay in their order."""
        count = experts.numel()
        num_blocks = min(count, count // block_rows + num_experts + 1)
        pairs = torch.empty(num_blocks, block_rows, dtype=torch.int32, device=experts.device)
        owners = torch.empty(num_blocks, dtype=torch.int32, device=experts.device)
        # One bin for experts that are not there, and one for pairs that are not.
        bins = triton.next_power_of_2(num_experts + 2)
        route_pairs[(num_experts + 1,)](
            experts.contiguous(), pairs, owners, count, num_experts, num_blocks, block_rows, bins, CHUNK, num_warps=8
        )
        return cls(pairs, owners)


@triton.jit(do_not_specialize=["num_pairs", "num_experts", "num_blocks"])
def route_pairs(
    experts, pairs, owners, num_pairs, num_experts, num_blocks,
    block_rows: tl.constexpr, bins: tl.constexpr, chunk: tl.constexpr
):  # fmt: skip
    """A program fills the blocks of one expert; the last those of experts that are not there, and all that are left."""
    own = tl.program_id(0)
    counts = tl.zeros((bins,), tl.int32)
    for first in range(0, num_pairs, chunk):
        pair = first + tl.arange(0, chunk)
        counts += tl.histogram(_expert_of(experts, pair, num_pairs, num_experts, bins), bins)
    expert = tl.arange(0, bins)
    blocks = (counts + block_rows - 1) // block_rows
    first_block = tl.sum(tl.where(expert < own, blocks, 0), axis=0)
    last_block = first_block + tl.sum(tl.where(expert == own, blocks, 0), axis=0)
    last_block = tl.where(own == num_experts, num_blocks, last_block)
    place = first_block * block_rows
    for first in range(0, num_pairs, chunk):
        pair = first + tl.arange(0, chunk)
        is_own = (_expert_of(experts, pair, num_pairs, num_experts, bins) == own).to(tl.int32)
        tl.store(pairs + place + tl.cumsum(is_own, axis=0) - 1, pair, mask=is_own > 0)
        place += tl.sum(is_own, axis=0)
    for first in range(place, last_block * block_rows, chunk):
        spare = first + tl.arange(0, chunk)
        tl.store(pairs + spare, spare * 0 + num_pairs, mask=spare < last_block * block_rows)
    for first in range(first_block, last_block, chunk):
        block = first + tl.arange(0, chunk)
        tl.store(owners + block, block * 0 + own, mask=block < last_block)


@triton.jit
def _expert_of(experts, pair, num_pairs, num_experts, bins: tl.constexpr):
    """Of each pair, `num_experts` for one that is not there, and the last bin beyond all pairs."""
    expert = tl.load(experts + pair, mask=pair < num_pairs, other=-1)
    is_there = (expert >= 0) & (expert < num_experts)
    return tl.where(pair < num_pairs, tl.where(is_there, expert.to(tl.int32), num_experts), bins - 1)
