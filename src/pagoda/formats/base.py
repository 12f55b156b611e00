"""The interface of a format: how many bytes a plane takes, how values become those bytes and come back.

Knows one plane of one page at a time. Does not know layers, pools or attention. Byte counts need no torch, so the
planner can ask for them; only `encode` and `decode` touch tensors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from pagoda.layouts.base import Plane

if TYPE_CHECKING:
    import torch


class Format(ABC):
    """One way to write a plane of a page. Implementations are frozen data."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The name users select it by (`kv_cache_dtype`)."""

    @property
    @abstractmethod
    def relative_error_bound(self) -> float:
        """Largest |decoded - value| / |value| of an element in the format's normal range."""

    @abstractmethod
    def plane_nbytes(self, plane: Plane, page_tokens: int) -> int:
        """Bytes that `page_tokens` tokens of `plane` take, scales and padding included."""

    @abstractmethod
    def encode(self, values: torch.Tensor, plane: Plane) -> torch.Tensor:
        """Write `values` [heads, page_tokens, width] as uint8 [plane_nbytes]."""

    @abstractmethod
    def decode(self, data: torch.Tensor, plane: Plane) -> torch.Tensor:
        """Read uint8 [plane_nbytes] back as fp32 [heads, page_tokens, width]."""
