"""The bytes of weights that are rounded to codes when they are loaded (`--quantization`), by how many there are.

Knows what codes take, which a test holds to those that are made. Does not know which weights get some: the counts say.
"""

from __future__ import annotations

from typing import NamedTuple

from pagoda.planning.weights.count import WeightCount

# Each group of 32 numbers has one of 16 bits beside its codes: a scale.
FINE_BITS = 8 + 16 / 32
# And a minimum.
BITS = {"int8": FINE_BITS, "int4": 4 + 2 * 16 / 32}


class ReadBytes(NamedTuple):
    """Of the weights that a decode step reads if it reads every routed expert, and of these `experts`."""

    most: int
    experts: int


def coded_nbytes(count: WeightCount, quantization: str, number_nbytes: int) -> tuple[int, ReadBytes]:
    """Bytes of all weights, and of what is read of them.

    Matrices have codes of `quantization`, but of 8 bits in tables, heads and what makes keys and values. All else are
    numbers.
    """
    inner = count.layers + count.encoder
    coarse = inner - count.plain - count.fine
    coded = (count.fine * FINE_BITS + coarse * BITS[quantization]) / 8
    nbytes = (count.plain * number_nbytes + coded) / inner if inner else 0.0
    experts = round(count.experts.num_weights * BITS[quantization] / 8)
    most = round(count.layers * nbytes + count.head * FINE_BITS / 8) + experts
    unread = round(count.encoder * nbytes + count.table * FINE_BITS / 8)
    return most + unread, ReadBytes(most, experts)
