"""The order of numbers inside a plane, which all formats share.

A word holds the numbers that follow each other along the axis attention sums over: two channels of a key, two tokens of
a value, where a word holds two. Words of neighbouring tokens (keys) or channels (values) lie side by side, `n` numbers
to a word:

    key    [heads, width / n, page_tokens, n]      value    [heads, page_tokens / n, width, n]

This is the operand order of the dot and matrix instructions, so kernels load pages without shuffling them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pagoda.layouts.base import Axis, Plane

if TYPE_CHECKING:
    import torch


def by_token(numbers: torch.Tensor, plane: Plane, count: int) -> torch.Tensor:
    """View numbers [..., heads, width * page_tokens] as [..., heads, tokens / a, a, width / b, b]; writes go through.

    With `count` numbers to a word, token t is at [t // a, t % a] and channel c at [c // b, c % b], where a, b is
    1, count for keys and count, 1 for values.
    """
    page_tokens = numbers.shape[-1] // plane.width
    if plane.reduced is Axis.CHANNEL:
        words: torch.Tensor = numbers.unflatten(-1, (plane.width // count, page_tokens, count))
        return words.transpose(-3, -2).unsqueeze(-3)
    words = numbers.unflatten(-1, (page_tokens // count, plane.width, count))
    return words.transpose(-2, -1).unsqueeze(-1)


def put_tokens(view: torch.Tensor, pages: torch.Tensor, offsets: torch.Tensor, values: torch.Tensor) -> None:
    """Write `values` [tokens, heads, width] to `offsets` of `pages` through a view [pages, ...] of `by_token`."""
    inner, channels = view.shape[-3], view.shape[-1]
    view[pages, :, offsets // inner, offsets % inner] = values.unflatten(-1, (-1, channels)).to(view.dtype)


def merged(view: torch.Tensor) -> torch.Tensor:
    """A view of `by_token` as fp32 [..., heads, tokens, width]."""
    return view.float().flatten(-2).flatten(-3, -2)
