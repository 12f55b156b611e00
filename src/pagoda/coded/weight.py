"""A matrix of coded numbers, held once, as it is stored."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class CodedWeight:
    """A matrix [rows, depth] of numbers in blocks of GGUF. `stored` is what it holds: bytes, [rows, those of a row]."""

    type_name: str
    stored: torch.Tensor
    depth: int

    @classmethod
    def from_gguf(cls, type_name: str, blocks: torch.Tensor, depth: int) -> CodedWeight:
        return cls(type_name, blocks, depth)

    @property
    def rows(self) -> int:
        return len(self.stored)

    @property
    def nbytes(self) -> int:
        return self.stored.nbytes

    def decode(self, dtype: torch.dtype) -> torch.Tensor:
        return self._decoded(self.stored).to(dtype)

    def decode_rows(self, numbers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return self._decoded(self.stored[numbers.flatten()]).to(dtype).view(*numbers.shape, self.depth)

    def _decoded(self, blocks: torch.Tensor) -> torch.Tensor:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        return torch.from_numpy(dequantize(blocks.numpy(), GGMLQuantizationType[self.type_name]))
