"""How a record is cut into values of a store whose allocator rounds sizes up.

Redis and Valkey allocate in four sizes per doubling (1, 1.25, 1.5 and 1.75 times a power of two) and need a few bytes
beside a value, so that one of 2^n bytes takes 25 % more. Two parts, of which the first just fits into a size, never
waste more than `MOST_WASTE`.
"""

from __future__ import annotations

BESIDE_NBYTES = 64  # what is allocated with a value, and some bytes to spare
MOST_WASTE = 0.06
LEAST_CUT_NBYTES = 16 << 10  # below, what a second key takes matters as much


def allocated_nbytes(nbytes: int) -> int:
    """What a value of `nbytes` takes."""
    needed = nbytes + BESIDE_NBYTES
    step = _step(needed)
    return -(-needed // step) * step


def first_part_nbytes(nbytes: int) -> int:
    """How many bytes of a record of `nbytes` go into its first part: all of them where little is wasted."""
    if nbytes < LEAST_CUT_NBYTES or allocated_nbytes(nbytes) - nbytes <= MOST_WASTE * nbytes:
        return nbytes
    return allocated_nbytes(nbytes) - _step(nbytes + BESIDE_NBYTES) - BESIDE_NBYTES


def _step(needed: int) -> int:
    """How far apart the sizes are where `needed` bytes lie."""
    return 1 << max(0, (needed - 1).bit_length() - 3)
