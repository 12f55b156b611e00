"""Whose work an item is: a search in the running sums of what sequences have."""

import triton
import triton.language as tl


@triton.jit
def sequence_of(starts, item, num_sequences, factor: tl.constexpr, unit: tl.constexpr, spare: tl.constexpr):
    """The last sequence that starts at or before `item`; both may be blocks.

    Sequence s starts at starts[s] * factor // unit + s * spare: with one to spare, sequences whose counts are no
    multiples of `unit` have room for what is left over.
    """
    step = 1
    while step < num_sequences:
        step *= 2
    sequence = item * 0
    while step > 0:
        other = sequence + step
        is_there = other < num_sequences
        start = tl.load(starts + other, mask=is_there, other=0) * factor // unit + other * spare
        sequence = tl.where(is_there & (start <= item), other, sequence)
        step = step // 2
    return sequence
