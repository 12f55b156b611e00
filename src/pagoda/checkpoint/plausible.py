"""Whether the numbers of a config.json can be those of the weights beside it, found out before any of them is used.

Knows how much there is of the weights, and what kinds of numbers configurations have, by the words in their names. What
is right passes, however unusual: limits leave room. Whether the network they describe fits is `models/plausible.py`'s.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pagoda.checkpoint.weights import Outline
from pagoda.errors import CorruptCheckpointError

# Words in the names of numbers, and how large those may be. The first that is found decides.
KERNELS = re.compile(r"kernel|d_conv|conv_L_cache")
CHUNKS = re.compile(r"^(mamba_)?chunk_size$")  # of a recurrence, which is computed for every pair of tokens in one
SIZES = re.compile(r"size|dim|rank|width|vocab|embd|inner|d_(model|ff|kv)|words|channels|features|labels|bins")
LENGTHS = re.compile(r"position|window|length|seq|ctx|context|distance")
LAYERS = re.compile(r"layers?$|^depths?$|blocks?$|stack")
COUNTS = re.compile(r"heads?$|experts?$|experts_|group|cycles|iter|pretraining_tp|codebooks|ngram|prompt|inputs$")

# Families keep lists of one number for each layer, and of tokens; labels of a classifier mean nothing here.
MAX_ENTRIES = 1 << 16
MAX_LENGTH = 1 << 36
MAX_COUNT = 1 << 12
MAX_KERNEL = 1 << 9
MAX_CHUNK = 1 << 10
# Some share the weights of layers. None is deeper than the second.
SHARED_LAYERS, MAX_LAYERS = 256, 2048
# A dimension of a network may be the product of two numbers, or larger than those of its weights by padding.
SIZE_ROOM, SMALL_SIZE = 8, 1 << 20


def check_values(values: dict[str, Any], outline: Outline, file: Path) -> None:
    """Refuse the contents of `file`, a config.json, if some number or list in it is too large for the weights."""
    for name, value in _named(values):
        if isinstance(value, (dict, list)) and len(value) > MAX_ENTRIES:
            raise CorruptCheckpointError(f"{file} has {len(value)} entries in {name}, more than any configuration.")
        most = largest(name, outline)
        if most is not None and isinstance(value, (int, float)) and not value <= most:
            raise CorruptCheckpointError(
                f"{file} has {name} {value!r:.30}, which does not fit its weights: {outline.num_tensors} tensors of "
                f"{outline.num_elements} numbers in all, up to {outline.largest_size} along one dimension."
            )


def _named(values: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every value inside of `values` with the name that it, or the list that it is in, stands under."""
    pending = [(name, values)]
    while pending:
        name, value = pending.pop()
        yield name, value
        if isinstance(value, dict):
            pending += value.items()
        elif isinstance(value, list):
            pending += ((name, entry) for entry in value)


def largest(name: str, outline: Outline) -> int | None:
    """What a number called `name` is at most, None if it may have any size."""
    limits = {
        KERNELS: MAX_KERNEL,
        CHUNKS: MAX_CHUNK,
        SIZES: max(SIZE_ROOM * outline.largest_size, SMALL_SIZE),
        LENGTHS: MAX_LENGTH,
        LAYERS: min(max(SHARED_LAYERS, outline.largest_number + 1), MAX_LAYERS),
        COUNTS: max(MAX_COUNT, outline.num_tensors),
    }
    return next((most for pattern, most in limits.items() if pattern.search(name)), None)
