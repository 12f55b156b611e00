"""Draws a token by an exponential race: each token has a random time of its own, whatever the others weigh.

A token arrives after an exponentially distributed time over its weight, and the first to arrive is drawn: the
Gumbel-max trick (Maddison et al., "A* Sampling", NeurIPS 2014). Its time hangs on the draw's key and the token's id
alone, so weights that differ by rounding draw the same token all but always. A number on the running sum of the
weights would not: every rounding before a token shifts it. This is what keeps a seeded text the same when a part of its
prompt comes from the cache, or its batch is another one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Tokens of less than this share of the greatest weight arrive together, as one; a draw within them is rare.
LIKELY = 1e-4
# Entries that a draw within the rest adds up at a time, before it looks at each of those where its number falls.
PICK_BLOCK = 256

# SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
STEP = 0x9E3779B97F4A7C15
MIXES = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
LAST_SHIFT = 31
_STEP, _LAST_SHIFT = np.uint64(STEP), np.uint64(LAST_SHIFT)
_MIXES = tuple((np.uint64(shift), np.uint64(factor)) for shift, factor in MIXES)
# Ids that no token has: the time of the rest, and the number that picks within it.
_REST = np.array([-1, -2])


def first_to_arrive(weights: NDArray[np.float32], token_ids: NDArray[np.int64] | None, key: int) -> int:
    """The index drawn from `weights` [n], which are not all 0 and are overwritten; never one of weight 0.

    `token_ids` [n] are the tokens' ids, their own indices where None; `key` has 64 bits and is another for each draw.
    """
    likely = np.flatnonzero(weights > LIKELY * weights.max())
    times = -np.log(numbers(key, likely if token_ids is None else token_ids[likely])) / weights[likely]
    first = int(times.argmin())
    weights[likely] = 0
    rest = float(weights.sum(dtype=np.float64))
    if rest > 0:
        of_rest, within = numbers(key, _REST)
        if -np.log(of_rest) / rest < times[first]:
            return pick(weights, within)
    return int(likely[first])


def numbers(key: int, token_ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """A number between 0 and 1, neither of them, for each of `token_ids` [n]."""
    mixed = token_ids.astype(np.uint64) * _STEP + np.uint64(key)
    for shift, factor in _MIXES:
        mixed = (mixed ^ (mixed >> shift)) * factor
    mixed ^= mixed >> _LAST_SHIFT
    return ((mixed >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def pick(weights: NDArray[np.float32], number: float) -> int:
    """The index in `weights` [n], which are not all 0, that `number` from 0 up to 1 falls on; never one of weight 0."""
    ends = np.add.reduceat(weights, range(0, len(weights), PICK_BLOCK)).cumsum(dtype=np.float64)
    wanted = min(number * ends[-1], np.nextafter(ends[-1], 0))
    block = int(ends.searchsorted(wanted, side="right"))
    start = block * PICK_BLOCK
    inside = weights[start : start + PICK_BLOCK]
    before = ends[block - 1] if block else 0.0
    index = int(inside.cumsum(dtype=np.float64).searchsorted(wanted - before, side="right"))
    # The block's own sum has been rounded otherwise.
    return start + min(index, int(inside.nonzero()[0][-1]))
