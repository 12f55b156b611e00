"""Memory for weights, in huge pages where the system grants them: pieces of it, from which many take.

What lies there need not be moved once more. Does not know what takes it.
"""

from __future__ import annotations

import math

import torch

from pagoda.kernels.native_calls import allocate

PIECE_NBYTES = 256 << 20
ALIGNMENT = 64


class WeightMemory:
    """Gives memory that lives as long as any tensor in the same piece; a piece takes none before it is written."""

    def __init__(self, piece_nbytes: int = PIECE_NBYTES) -> None:
        self._piece_nbytes = piece_nbytes
        self._left = torch.empty(0, dtype=torch.uint8)

    def take(self, *shape: int) -> torch.Tensor:
        """uint8 `shape`, zeros. Raises MemoryError."""
        nbytes = math.prod(shape)
        if nbytes > len(self._left):
            self._left = allocate(max(nbytes, self._piece_nbytes))
        taken, self._left = self._left[:nbytes], self._left[-(-nbytes // ALIGNMENT) * ALIGNMENT :]
        return taken.view(shape)
