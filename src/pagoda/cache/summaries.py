"""What tells kernels how high the scores of a page's tokens can be, beside the pages of a pool.

Knows which pages are given to somebody: then what was summarised of them is gone. Kernels make summaries, and say so.
"""

from __future__ import annotations

import torch

from pagoda.formats.page import PageGeometry, aligned, summary_numbers
from pagoda.kernels.base import LayerSummaries


class KeySummaries:
    """Of `num_pages` pages, for each layer of their group. With `poison`, what is forgotten is filled with NaN."""

    def __init__(self, geometry: PageGeometry, num_pages: int, poison: bool, device: torch.device) -> None:
        keys = [planes[0].plane for planes in geometry.slots]
        # Rows of tensors that kernels are given begin alike.
        self._is_made = torch.zeros(len(keys), aligned(num_pages), dtype=torch.uint8, device=device)[:, :num_pages]
        # Zeros that on the host take no memory before they are written.
        self._numbers = [
            torch.zeros(num_pages, plane.num_heads, summary_numbers(plane), dtype=torch.bfloat16, device=device)
            for plane in keys
        ]
        self._poison = poison
        if poison:
            for numbers in self._numbers:
                numbers.fill_(float("nan"))

    def of_layer(self, layer: int) -> LayerSummaries:
        return LayerSummaries(self._numbers[layer], self._is_made[layer])

    def forget(self, page: int) -> None:
        """Another content is about to be written to a page."""
        self._is_made[:, page].zero_()
        if self._poison:
            for numbers in self._numbers:
                numbers[page].fill_(float("nan"))
