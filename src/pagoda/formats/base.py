"""The interface of a format: how many bytes a plane takes, how values become those bytes and come back.

Knows one plane of a page at a time. Does not know layers, pools or attention. Byte counts need no torch, so the planner
can ask for them; the rest works on tensors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from pagoda.layouts.base import Axis, Plane

if TYPE_CHECKING:
    import torch


class Format(ABC):
    """One way to write a plane of a page, token by token. Implementations are frozen data.

    The bytes of a token depend on that token alone: pages are filled in place, and copying a part of one is exact.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """The name users select it by (`kv_cache_dtype`)."""

    def of(self, plane: Plane) -> Format:  # noqa: ARG002
        """The format that `plane` is kept in: another than this one if keys and values differ."""
        return self

    def rotated_channels(self, plane: Plane) -> int:  # noqa: ARG002
        """How many channels at a time are kept as their Hadamard transform (formats/rotated.py); one if none are."""
        return 1

    def group_channels(self, plane: Plane) -> int:
        """How many channels at most share what formats/int4.py has for each group; all of them elsewhere."""
        return plane.width

    def model_dtype(self) -> torch.dtype:
        """The type of a model that these pages are meant for: what codes are decoded to, unless numbers are kept."""
        import torch

        return torch.bfloat16

    @property
    def has_codes(self) -> bool:
        """Whether numbers are codes, so that what is read must be scaled, and rounded once more."""
        return True

    @property
    def query_step(self) -> float:
        """What kernels may round bf16 queries to, as a share of their largest number; they must not where it is 0.

        Keys of few bits are rounded by more than queries are then.
        """
        return 0.0

    def width_multiple(self, axis: Axis) -> int:  # noqa: ARG002
        """What the width of a plane that is summed along `axis` must be a multiple of."""
        return 1

    def obstacle(self, plane: Plane) -> str | None:
        """Why `plane` cannot be kept in this format, or None."""
        multiple = self.width_multiple(plane.reduced)
        if plane.width % multiple == 0:
            return None
        wanted = "even" if multiple == 2 else f"a multiple of {multiple}"
        return f"its {plane.name} heads have {plane.width} channels, which must be {wanted}"

    @abstractmethod
    def plane_nbytes(self, plane: Plane, page_tokens: int) -> int:
        """Bytes that `page_tokens` tokens of `plane` take, scales and padding included."""

    @abstractmethod
    def error_bound(self, values: torch.Tensor, plane: Plane) -> torch.Tensor:
        """Largest |decoded - value| of each of `values` [heads, tokens, width], in the format's normal range."""

    @abstractmethod
    def write(
        self, data: torch.Tensor, plane: Plane, pages: torch.Tensor, offsets: torch.Tensor, values: torch.Tensor
    ) -> None:
        """Write `values` [tokens, heads, width] to the token `offsets` of `pages`, both int64 [tokens].

        `data` is uint8 [num_pages, plane_nbytes], a view of the pool.
        """

    @abstractmethod
    def decode(self, data: torch.Tensor, plane: Plane) -> torch.Tensor:
        """Read uint8 [..., plane_nbytes] back as fp32 [..., heads, page_tokens, width]."""

    def decode_kept(self, data: torch.Tensor, plane: Plane) -> torch.Tensor:
        """`decode`, but rows that are kept as their transform stay so."""
        return self.decode(data, plane)

    @abstractmethod
    def token_views(self, data: torch.Tensor, plane: Plane) -> tuple[torch.Tensor, ...]:
        """All that is written of a token in uint8 [..., plane_nbytes], as views through which it can be moved.

        Token t of a head is at [..., head, t // a, t % a] of each view [..., heads, page_tokens / a, a, x, y].
        """

    def encode(self, values: torch.Tensor, plane: Plane) -> torch.Tensor:
        """A plane of its own, uint8 [plane_nbytes], from `values` [heads, page_tokens, width]."""
        import torch

        page_tokens = values.shape[1]
        data = torch.empty(1, self.plane_nbytes(plane, page_tokens), dtype=torch.uint8, device=values.device)
        offsets = torch.arange(page_tokens, device=values.device)
        self.write(data, plane, torch.zeros_like(offsets), offsets, values.transpose(0, 1))
        return data[0]
